"""Measures a forward of the transformer and the VAEs beside ComfyUI's own: `python3 tools/bench.py`.

Weights are random, in the sizes of the published files; every engine gets the same ones and the same inputs, in one
process with ComfyUI's Dynamic VRAM. Prints a table and writes it to --output as JSON and Markdown. --smoke runs
everything once with small sizes, on any machine. The first run sets up what is missing, as tools/demo.py does.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from pack import import_pack


def in_the_environment(arguments: list[str], script: str = __file__) -> int:
    """Runs a script in the Python of the tests, with the path of its ComfyUI."""
    from setup.console import Console, SetupError
    from setup.environment import prepare
    from setup.places import bytecode_in_cache

    comfyui = os.environ.get("COMFYUI_PATH")
    try:
        prepared = prepare(Console(), comfyui=Path(comfyui).expanduser().absolute() if comfyui else None)
    except (SetupError, OSError) as error:
        print(f"Cannot set up: {error}", file=sys.stderr)
        return 1
    environment = {**os.environ, "COMFYUI_PATH": str(prepared.comfyui), **bytecode_in_cache()}
    return subprocess.call([str(prepared.python), script, *arguments], env=environment)


if __name__ == "__main__":
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch or "COMFYUI_PATH" not in os.environ:
        sys.exit(in_the_environment(sys.argv[1:]))
    import_pack()
    from wancore.tools.benchmark.run import main

    sys.exit(main(sys.argv[1:]))
