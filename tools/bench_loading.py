"""Measures how long a full-size model takes to load, and how much memory: python3 tools/bench_loading.py FOLDER

Writes files of random weights with the sizes of one Wan 2.2 A14B expert into FOLDER (8 to 29 GB each, deleted again),
and loads each in a process of its own: with the pack's loader, with ComfyUI's Load Diffusion Model where it can, and
plainly read from start to end. They take turns, and the least time of all runs counts: the file is in the disk cache by
then, and other work on the machine only adds. The forward is tiny, but with the 512 tokens that a text encoder gives.
Processes start together and wait, with all imported that ComfyUI has at its start, until it is their turn. What the
first forward of a process takes whatever it loads (the GPU's context, libraries, kernels out of their caches) is
measured before, with a file of one block; the import of FlashAttention-4, which a process makes once if its clips are
long enough, after all else.
Needs the environment of tools/test.py; COMFYUI_PATH is the ComfyUI to measure with.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pack import import_pack

SHAPES = "t2v_A14B_expert"
CHUNK = 64 * 2**20  # bytes read at once
RUNS = 3
AT_ONCE = 6  # processes that wait
TEXT_TOKENS = 512
FORMATS = ("bf16", "fp8", "Q8_0", "Q4_K")
IN_BLOCKS = ("Q8_0", "Q4_K")


def write(path: Path, kind: str, layers: int | None = None) -> None:
    """Writes one file of random weights in one of FORMATS."""
    import_pack()
    from wancore.tools.benchmark.memory import files  # imports PyTorch, before which a measuring process has to set up

    files.transformer(path, SHAPES, kind, layers=layers)


def path_of(folder: Path, kind: str, layers: int | None = None) -> Path:
    """Where the file of a format lies; fewer layers are in its name, so that it is never taken for a whole one."""
    part = "" if layers is None else f"_{layers}_layers"
    return folder / f"wan2.2_t2v_high_noise_14B_{kind}{part}{'.gguf' if kind in IN_BLOCKS else '.safetensors'}"


def load_natively(path: Path) -> Any:
    """ComfyUI's Load Diffusion Model."""
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(path))


def load_ours(path: Path) -> Any:
    """Wan Load Models."""
    from wancore.nodes.bridge.model import load_model

    return load_model(str(path))


def read_plainly(path: Path) -> None:
    """The whole file through one buffer."""
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


WAYS: dict[str, Callable[[Path], Any]] = {"native": load_natively, "ours": load_ours, "read": read_plainly}


def measure(way: str, path: Path) -> dict[str, float]:
    """Seconds to load, seconds until a first tiny forward is done, and peak memory beyond the start's, in GB.

    once: seconds until a forward of the file of one block that lies beside the file, the process's first.
    """
    result = {"once": until_a_forward(way, one_block(path))["first"]}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result |= until_a_forward(way, path)
    result["peak"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9
    result["anonymous"] = _anonymous()
    result["attention"] = _import_of_attention() if way == "ours" else 0.0
    return result


def one_block(path: Path) -> Path:
    """Where the file of one block lies that goes with a full-size one."""
    return path.with_name(f"one_block_{path.name}")


def until_a_forward(way: str, path: Path) -> dict[str, float]:
    """Seconds to load the file, and until a first tiny forward is done."""
    start = time.perf_counter()
    patcher = WAYS[way](path)
    result = {"load": time.perf_counter() - start}
    if patcher is not None:
        import torch
        from comfy import model_management

        model_management.load_models_gpu([patcher])
        device = patcher.load_device
        width = patcher.model.diffusion_model.text_embedding[0].in_features
        noise, text = torch.randn(1, 16, 1, 32, 32, device=device), torch.randn(1, TEXT_TOKENS, width, device=device)
        patcher.model.apply_model(noise, torch.tensor([0.9], device=device), c_crossattn=text)
        if device.type == "cuda":
            torch.cuda.synchronize()
    result["first"] = time.perf_counter() - start
    return result


def _import_of_attention() -> float:
    """Seconds that the import of FlashAttention-4 takes; 0 where it is not installed, or was imported before."""
    start = time.perf_counter()
    if "flash_attn.cute" in sys.modules:
        return 0.0
    try:
        importlib.import_module("flash_attn.cute")
    except ImportError:
        return 0.0
    return time.perf_counter() - start


def _anonymous() -> float:
    """GB of this process's memory that are no pages of a file."""
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon")), 0.0)


def ways_of(kind: str) -> Iterator[str]:
    """How a file of this format can be read."""
    yield "read"
    if kind not in IN_BLOCKS:
        yield "native"
    yield "ours"


class Waiting:
    """A process that has imported ComfyUI, or will have, and measures one way when it is told to."""

    def __init__(self, way: str, path: Path) -> None:
        self.way = way
        command = [sys.executable, __file__, "--measure", way, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self) -> None:
        """Returns when it has nothing more to import."""
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) != READY:
            if not line:
                raise RuntimeError(f"{self.way} ended with {self.process.wait()} before it measured")

    def measured(self) -> dict[str, float]:
        """What `measure` found, now."""
        out, _ = self.process.communicate("\n")
        if self.process.returncode:
            raise RuntimeError(f"{self.way} ended with {self.process.returncode}")
        return json.loads(out.splitlines()[-1])


def runs_of(path: Path, ways: Sequence[str], runs: int) -> dict[str, list[dict[str, float]]]:
    """{way: what each of its runs found}; the ways take turns, each time in the other order."""
    turns = [way for run in range(runs) for way in (ways if run % 2 == 0 else ways[::-1])]
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    at_once = min(AT_ONCE, os.cpu_count() or 1)  # what waits takes a core until it is ready, and some memory
    for start in range(0, len(turns), at_once):
        waiting = [Waiting(way, path) for way in turns[start : start + at_once]]
        for each in waiting:
            each.ready()
        for each in waiting:
            found[each.way].append(each.measured())
    return found


def rows(kind: str, size: float, found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Lines of the table: the least of each number."""
    for way, runs in found.items():
        least = {name: min(run[name] for run in runs) for name in runs[0]}
        numbers = " | ".join(f"{least[name]:.2f}" for name in COLUMNS)
        yield f"| {kind} | {size:.1f} | {way} | {numbers} |"


READY = "ready\n"
COLUMNS = ("load", "first", "peak", "anonymous", "once", "attention")
HEADER = """| format | GB | by | load s | until a forward s | peak GB | not mapped GB | one block s | attention s |
|---|---|---|---|---|---|---|---|---|"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files are written and deleted again")
    parser.add_argument("--format", choices=FORMATS, action="append", help="default: all")
    parser.add_argument("--layers", type=int, help="of 40; fewer for a smaller machine")
    parser.add_argument("--runs", type=int, default=RUNS, help="of each way")
    parser.add_argument("--raw", type=Path, help="a file for every single number, as JSON")
    parser.add_argument(
        "--write", action="store_true", help="write the files only; a later call measures and keeps them"
    )
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        wait_and_measure(options.measure, options.folder)
        return 0
    if not options.write:
        print(HEADER, flush=True)
    raw: dict[str, Any] = {}
    for kind in options.format or FORMATS:
        path = path_of(options.folder, kind, options.layers)
        is_given = path.exists()
        if not is_given:
            start = time.perf_counter()
            write(path, kind, options.layers)
            print(f"{path.name}: written in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        if not one_block(path).exists():
            write(one_block(path), kind, 1)
        if options.write:
            continue
        try:
            raw[kind] = runs_of(path, tuple(ways_of(kind)), options.runs)
            print(*rows(kind, path.stat().st_size / 1e9, raw[kind]), sep="\n", flush=True)
        finally:
            if not is_given:
                path.unlink()
                one_block(path).unlink()
        if options.raw:
            options.raw.write_text(json.dumps(raw, indent=1))
    return 0


def wait_and_measure(way: str, path: Path) -> None:
    """What a process of `Waiting` does."""
    start_comfyui()
    for name in ("comfy.sd", "wancore.nodes.bridge.model"):  # which a running ComfyUI has imported
        importlib.import_module(name)
    print(READY, end="", flush=True)
    sys.stdin.readline()
    print(json.dumps(measure(way, path)))


def start_comfyui() -> None:
    """ComfyUI in this process, with Dynamic VRAM where there is a GPU for it, as its main.py starts."""
    folder = Path(os.environ.get("COMFYUI_PATH", Path.home() / ".cache" / "comfyui-wancore" / "ComfyUI-0.30.0"))
    sys.path.insert(0, str(folder))
    sys.argv = sys.argv[:1]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy_aimdo.control

    comfy_aimdo.control.init()
    import torch

    if not torch.cuda.is_available():
        sys.argv.append("--cpu")
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    if torch.cuda.is_available() and comfy_aimdo.control.init_devices(range(torch.cuda.device_count())):
        comfy_aimdo.control.set_log_warning()
        comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
        comfy.memory_management.aimdo_enabled = True
    import_pack()
    torch.inference_mode().__enter__()


if __name__ == "__main__":
    sys.exit(main())
