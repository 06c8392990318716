"""Time, memory and error of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Row:
    """One line of the table."""

    workload: str
    engine: str
    what: str  # precision, or decode and encode
    seconds: float | None = None
    first: float | None = None  # the first call, which reads the file and compiles
    peak: float | None = None  # GiB that PyTorch held at most
    error: float | None = None  # ||out - reference|| / ||reference||
    note: str = ""
    runs: list[float] = field(default_factory=list)


def synchronise() -> None:
    """Waits for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(row: Row, call: Callable[[], Any], runs: int) -> Any:
    """Fills in the row from one first call and the median of `runs` more; returns the last result."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    out: Any = None
    for _ in range(runs + 1):
        del out
        synchronise()
        before = time.perf_counter()
        out = call()
        synchronise()
        times.append(time.perf_counter() - before)
    row.first, row.runs = round(times[0], 4), [round(value, 4) for value in times[1:]]
    row.seconds = sorted(row.runs)[len(row.runs) // 2]
    if torch.cuda.is_available():
        row.peak = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return out


def laps(call: Callable[[], Any], runs: int) -> list[float]:
    """Milliseconds of each of `runs` calls: between two events on a GPU, by the clock elsewhere."""
    times: list[float] = []
    for _ in range(runs):
        if torch.cuda.is_available():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            before = time.perf_counter()
            call()
            times.append(1000 * (time.perf_counter() - before))
    return times


def difference(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference||."""
    out, reference = out.float(), reference.float()
    return round(float((out - reference).norm() / reference.norm()), 5)
