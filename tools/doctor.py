"""Tells what weights files are and whether they fit together: python3 tools/doctor.py FILE...

Reads headers only. Give a model, its partner, the VAE, the text encoder and LoRAs together to have them checked
against each other. Exits with 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path

from pack import ROOT, import_pack

import_pack()
from wancore.wan_core.paths import OVERRIDE, Card, named_card  # noqa: E402
from wancore.wan_core.planner import pace  # noqa: E402
from wancore.wan_core.planner.overview import overview_of  # noqa: E402
from wancore.wan_core.planner.plan import Machine  # noqa: E402
from wancore.wan_core.weights.doctor import diagnose  # noqa: E402


def card() -> Card:
    """The first NVIDIA GPU as its driver tells it, or WANCORE_CARD's. Importing torch would take seconds."""
    try:
        numbers = version("torch").split("+")[0].split(".")
        release = int(numbers[0]), int(numbers[1])
    except PackageNotFoundError:
        release = 0, 0
    here = Card(None, 0.0, release, platform.system() == "Windows", find_spec("triton") is not None)
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap,memory.total", "--format=csv,noheader,nounits"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        capability, memory = text.splitlines()[0].split(",")
        major, minor = capability.split(".")
        here = replace(here, capability=(int(major), int(minor)), memory=float(memory) / 1024)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        pass
    return named_card(here)


def machine(named: Card) -> Machine:
    """What is free on it, as the driver and the system tell it; with the memory of WANCORE_CARD's where it has one."""
    ram = 0.0
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        ram = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        pass  # not Linux: the plan says what is needed, not what is missing
    if os.environ.get(OVERRIDE) and named.memory:
        return Machine(named.describe(), named.memory * 2**30, ram)
    try:
        command = ["nvidia-smi", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout
        name, free = text.splitlines()[0].rsplit(",", 1)
        return Machine(name.strip(), float(free) * 2**20, ram)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return Machine(ram=ram)


def learned(name: str) -> pace.Pace:
    """What runs on this card have taken, where the pack lies in a ComfyUI; see nodes/bridge/planning.py."""
    user = Path(os.environ.get("COMFYUI_PATH") or ROOT.parent.parent) / "user"
    return pace.read(user / "wancore" / "pace.json").get(name, pace.Pace({}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="weights files, or folders with an index")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may have letters that a console has not
    named = card()
    diagnosis = diagnose(parser.parse_args().files, named)
    print(diagnosis.report())
    here = machine(named)
    for line in overview_of(diagnosis.usable, here, learned(here.card)):
        print(line)
    return 0 if diagnosis.healthy else 1


if __name__ == "__main__":
    sys.exit(main())
