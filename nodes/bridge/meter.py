"""How long the forwards of a run take on the device, without waiting for it: events around each."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP

KEY = "wan_core_meter"
COMPUTED = 0.5  # of the longest forward: what took less was answered from a cache


class Meter:
    """Times the forwards of each expert."""

    def __init__(self) -> None:
        self.marks: dict[str, list[tuple[Any, Any, int]]] = defaultdict(list)  # before, behind, clips of the batch

    def on(self, model: Any, name: str) -> Any:
        """A clone of the MODEL that is timed under this name."""
        clone = model.clone()

        def timed(executor: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            before = _mark(x.device)
            out = executor(x, *args, **kwargs)
            self.marks[name].append((before, _mark(x.device), len(x)))
            return out

        clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, timed)
        return clone

    def seconds(self, name: str) -> float | None:
        """Median seconds of a forward of one clip, without the first one, which loads; None with fewer than two."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times = sorted(_between(before, behind) / batch for before, behind, batch in self.marks[name][1:])
        times = [value for value in times if value >= COMPUTED * times[-1]]
        return times[len(times) // 2] if times else None


def _mark(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event


def _between(before: Any, behind: Any) -> float:
    return behind - before if isinstance(before, float) else before.elapsed_time(behind) / 1e3
