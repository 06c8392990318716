"""Runs whole graphs on a GPU that is made small: `python3 tools/bench_memory.py`.

A second process takes the GPU's memory but for what a card of 8, 12, 16 or 24 GB leaves, RAM is capped, and the way
between them is slowed. Random weights in the sizes of the published files; the bundled workflows and ComfyUI's own
nodes; each prompt twice in one process. Prints, for every phase, the most of VRAM and RAM, and the time of every
forward; writes memory.json and memory.md to --output. The first run sets up what is missing, as tools/demo.py does.
"""

from __future__ import annotations

import importlib.util
import os
import sys

from bench import in_the_environment
from pack import import_pack

if __name__ == "__main__":
    if importlib.util.find_spec("torch") is None or "COMFYUI_PATH" not in os.environ:
        sys.exit(in_the_environment(sys.argv[1:], __file__))
    import_pack()
    if sys.argv[1:2] == ["--child"]:  # which brings comfy-aimdo in before PyTorch
        from wancore.tools.benchmark.memory.child import main
    elif sys.argv[1:2] == ["--least-child"]:
        from wancore.tools.benchmark.memory.least import main
    else:
        from wancore.tools.benchmark.memory.run import main
    sys.exit(main(sys.argv[1:]))
