"""Tells what weights files are and whether they fit together: python3 tools/doctor.py FILE...

Reads headers only. Give a model, its partner, the VAE, the text encoder and LoRAs together to have them checked
against each other. Exits with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from pack import import_pack

import_pack()
from wancore.wan_core.weights.doctor import diagnose  # noqa: E402


def capability() -> tuple[int, int] | None:
    """The first NVIDIA GPU's compute capability, from its driver; None without one. Importing torch takes seconds."""
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        major, minor = text.splitlines()[0].split(".")
        return int(major), int(minor)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="weights files, or folders with an index")
    diagnosis = diagnose(parser.parse_args().files, capability())
    print(diagnosis.report())
    return 0 if diagnosis.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
