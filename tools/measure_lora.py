"""Measures LoRA on every form of weights: python3 tools/measure_lora.py [FORMAT...]

A small model in each form, with a LoRA on all of its matrices by ComfyUI's LoRA node and by Wan LoRA Pair; each layer's
weight is read off by unit vectors. The error is that of the worst layer, over the LoRA's own difference: 0 is the
stored weight plus the exact LoRA. Runs on the GPU under Dynamic VRAM where there is one, else on the CPU. Needs the
environment of tools/test.py.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from pathlib import Path

from bench_loading import start_comfyui

TESTS = Path(__file__).parents[1] / "tests"


def parts() -> tuple[types.ModuleType, types.ModuleType]:
    """The modules of the tests that write the files and read the layers."""
    sys.path.append(str(TESTS))
    for name in ("tests", "tests.bridge"):  # without the checkout on sys.path: its `nodes` would hide ComfyUI's
        module = types.ModuleType(name)
        module.__path__ = [str(TESTS.parent / name.replace(".", "/"))]
        sys.modules[name] = module
    return importlib.import_module("tests.bridge.every_layer"), importlib.import_module("tests.bridge.quantised_files")


def main() -> int:
    chosen = sys.argv[1:]
    start_comfyui()
    every_layer, files = parts()
    print("| weights | by | weight | after a second call | bias | the same bits without it |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        loras = every_layer.lora_files(Path(folder))
        for kind in chosen or files.ALL:
            path = files.write_format(Path(folder) / "wan2.2_t2v_high_noise_14B", kind)
            for node in every_layer.NODES:
                found = every_layer.errors(path, loras, node)
                numbers = " | ".join(f"{found[key]:.4f}" for key in ("weight", "again", "bias"))
                print(f"| {kind} | {node} | {numbers} | {'yes' if found['kept'] else 'no'} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
