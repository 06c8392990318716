"""The least VRAM of each phase, found by bisection against the balloon, beside what the planner says.

Runs in a process of its own with ComfyUI's Dynamic VRAM. The transformers have few layers: what a block needs does not
depend on how many there are.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import host
from .balloon import Send, started
from .bisection import bisect
from .cases import GIB

GRAIN = 0.02  # of the result: where the bisection ends
FIRST = 30 * GIB  # bytes that every phase does with
REPORTED = 300  # characters of an error: PyTorch's says how much was asked for, and how much was free


@dataclass(frozen=True)
class Case:
    """One phase of one model at one size."""

    phase: str  # "sampling", "VAE decode", "VAE encode", "text encode"
    shapes: str  # file in tests/shapes
    precision: str
    width: int = 0
    height: int = 0
    frames: int = 0


@dataclass
class Found:
    """What a case came to. GiB."""

    case: Case
    allocated: float = 0.0  # by PyTorch at the peak, with room for all
    sparing: float = 0.0  # by PyTorch at the peak of the last try that ran
    least: float = 0.0  # by bisection
    planned: float = 0.0
    seconds: float = 0.0  # of the second call, with room for all
    tries: list[tuple[float, str]] = field(default_factory=list)
    problem: str = ""


SIZES = ((832, 480, 81), (1280, 720, 81))
VARIANTS = ("i2v_A14B_expert", "s2v_14B", "vace_14B", "animate_14B")
SHORT = 21  # frames: the layers of a VAE remember two each
CASES = (
    *(Case("sampling", "t2v_A14B_expert", "fp8", *size) for size in SIZES),
    Case("text encode", "umt5_xxl", "fp8"),
    *(Case("VAE decode", "vae21", "bf16", *size, SHORT) for size in ((832, 480), (1280, 720))),
    Case("VAE decode", "vae22", "bf16", 1280, 704, SHORT),
    Case("sampling", "ti2v_5B", "fp16", 1280, 704, 121),
    *(Case("sampling", "t2v_A14B_expert", "Q4_K", *size) for size in SIZES),
    *(Case("sampling", shapes, "fp8", *SIZES[0]) for shapes in VARIANTS),
    *(Case("VAE encode", "vae21", "bf16", *size, SHORT) for size in ((832, 480), (1280, 720))),
    Case("VAE encode", "vae22", "bf16", 1280, 704, SHORT),
    *(Case("sampling", "t2v_A14B_expert", "bf16", *size) for size in SIZES),
)


def main(arguments: list[str]) -> int:
    """Orders: base folder, output file, seconds; prints and writes each case as it is found."""
    orders = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    base, output, end = Path(orders["base"]), Path(orders["output"]), time.monotonic() + orders["seconds"]
    with started() as balloon:
        return _all(orders["phases"], base, output, end, balloon)


def _all(phases: list[str], base: Path, output: Path, end: float, balloon: Send) -> int:
    host.start(base, cpu=False)
    import torch

    rows: list[Found] = []
    with torch.inference_mode():
        for case in CASES:
            if time.monotonic() > end or case.phase not in phases:
                continue
            found = Found(case)
            try:
                search(found, case, base, balloon)
            except Exception as error:  # noqa: BLE001  (one case that does not run here is a row, not the end)
                found.problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            rows.append(found)
            print(json.dumps(asdict(found)), flush=True)
            output.write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")
    sys.stdout.flush()
    return 0


def search(found: Found, case: Case, base: Path, balloon: Send) -> None:
    """Fills in what the case takes."""
    import torch

    from ....wan_core.planner.memory import Clip
    from .phase_calls import prepare, release

    clip = Clip(case.width, case.height, case.frames)
    call, planned = prepare(case.phase, case.shapes, case.precision, clip, base)
    found.planned = round(planned, 3)
    for _ in range(2):  # the first call compiles and probes
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.seconds = round(time.perf_counter() - start, 3)
    found.allocated = round(torch.cuda.max_memory_allocated() / GIB, 3)

    def attempt(size: int) -> str:
        release()
        try:
            balloon(f"leave {size}")
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            found.sparing = round(torch.cuda.max_memory_allocated() / GIB, 3)
            problem = ""
        except Exception as error:  # noqa: BLE001  (whatever a lack of memory makes fail)
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:REPORTED]}"
        gc.collect()
        return problem

    high = max(found.planned * 1.3, found.allocated + 3.0) * GIB
    least, found.tries = bisect(attempt, 0.4 * GIB, high, GRAIN)
    if least is None:
        found.problem = f"fails with {high / GIB:.1f} GiB, too: {found.tries[-1][1]}"
    else:
        found.least = round(least / GIB, 3)
    release()
    balloon(f"leave {FIRST}")
