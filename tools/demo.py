"""Makes a clip from a fresh checkout: python3 tools/demo.py "a red circle moves to the right"

Needs Python 3.10 or newer and nothing else: the first run sets up what is missing (about 2 minutes and 6 GB), a later
one starts in seconds and needs no network. The weights are a miniature model; workflow, nodes and server are those that
a user has.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from setup.console import Console, SetupError
from setup.environment import prepare
from setup.places import ROOT, bytecode_in_cache

EXAMPLE = "a red circle moves to the right"


def size(text: str) -> str:
    """Refuses what is not WIDTHxHEIGHT before anything is set up."""
    if not re.fullmatch(r"[0-9]+x[0-9]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write width x height in pixels, such as 96x96")
    return text


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage='demo.py ["PROMPT"] [options]'
    )
    parser.add_argument("prompt", nargs="?", default=EXAMPLE, help=f"what the clip shows (default: {EXAMPLE})")
    parser.add_argument("--seed", type=int, default=1, help="seed of the noise (default: 1)")
    parser.add_argument(
        "--size", type=size, default="96x96", metavar="WxH", help="pixels, multiples of 16 (default: 96x96)"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the clip (default: 2)")
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder for the mp4 (default: output/)")
    parser.add_argument("--serve", action="store_true", help="leave the server running and print its address")
    parser.add_argument(
        "--comfyui",
        type=Path,
        default=os.environ.get("COMFYUI_PATH") or None,
        help="use this ComfyUI folder as it is, with its own Python if it has one (default: COMFYUI_PATH)",
    )
    parser.add_argument("--cpu", action="store_true", help="do not use the graphics card")
    return parser.parse_args(arguments)


def main() -> int:
    """Sets up, then hands over to tools/clip.py inside the environment."""
    console = Console()
    options = parse()
    console.say("Set-up")
    try:
        prepared = prepare(console, comfyui=options.comfyui and Path(options.comfyui).expanduser().absolute())
    except (SetupError, OSError) as error:
        print(f"Cannot set up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on where it was.", file=sys.stderr)
        return 130
    console.say(f"  ready: {prepared.comfyui}")
    command = [str(prepared.python), str(ROOT / "tools" / "clip.py"), "--comfyui", str(prepared.comfyui)]
    command += ["--prompt", options.prompt, "--seed", str(options.seed), "--size", options.size]
    command += ["--seconds", str(options.seconds), "--output", str(options.output.absolute())]
    command += [f"--{flag}" for flag in ("serve", "cpu") if getattr(options, flag)]
    environment = {**os.environ, **bytecode_in_cache()}
    if os.name == "posix":
        sys.stdout.flush()
        os.execve(command[0], command, environment)
    return subprocess.call(command, env=environment)


if __name__ == "__main__":
    sys.exit(main())
