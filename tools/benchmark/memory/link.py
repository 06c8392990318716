"""The way from RAM to the GPU as slow as a card's: every transfer of weights is followed by more of the same.

ComfyUI brings weights to the GPU through one function. Behind each transfer of n bytes, (actual / wanted - 1) * n bytes
more go from pinned RAM to the GPU on the same stream: copy engines and link are busy exactly as long as the wanted rate
takes, and no multiprocessor is. Events around each transfer say what rate came out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.memory_management
import comfy.model_management as management
import torch

PIECE = 32 * 2**20  # bytes of one of the copies behind a transfer


@dataclass
class Transfers:
    """What went over the link since it was last asked."""

    bytes: int = 0
    seconds: float = 0.0  # in which at least one transfer was under way

    @property
    def rate(self) -> float:
        """GB/s while something was under way."""
        return self.bytes / self.seconds / 1e9 if self.seconds else 0.0


@dataclass
class Link:
    """Counts the transfers of weights, and slows them to `rate` GB/s where one is given."""

    rate: float | None = None
    native_rate: float = 0.0  # GB/s of this machine from pinned RAM
    extra: float = 0.0  # bytes that are copied behind each byte
    count: int = 0
    marks: list[tuple[int, Any, Any]] = field(default_factory=list)  # bytes, event before, event behind

    def install(self) -> None:
        """Puts itself around ComfyUI's function."""
        self.zero = torch.cuda.Event(enable_timing=True)
        self.zero.record()
        self.native_rate = measure()
        if self.rate is not None:
            self.extra = max(0.0, self.native_rate / self.rate - 1)
            self.source = torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
            self.target = torch.empty(PIECE, dtype=torch.uint8, device="cuda")
        self.original: Callable[..., None] = management.cast_to_gathered
        management.cast_to_gathered = self.transfer

    def transfer(
        self, tensors: list[Any], r: Any, non_blocking: bool = False, stream: Any = None, r2: Any = None
    ) -> None:
        """The native call between two events, with the copies behind it."""
        size = comfy.memory_management.vram_aligned_size(list(tensors))
        used = torch.cuda.current_stream() if stream is None else stream
        with torch.cuda.stream(used):
            before = torch.cuda.Event(enable_timing=True)
            before.record()
        self.original(tensors, r, non_blocking=non_blocking, stream=stream, r2=r2)
        on_gpu = [target for target in (r, r2) if target is not None and target.device.type == "cuda"]
        if not on_gpu:
            return
        with torch.cuda.stream(used):
            left = int(size * self.extra)
            while left > 0:
                part = min(left, PIECE)
                self.target[:part].copy_(self.source[:part], non_blocking=True)
                left -= part
            behind = torch.cuda.Event(enable_timing=True)
            behind.record()
        self.count += size
        self.marks.append((size, before, behind))

    def take(self) -> Transfers:
        """What was transferred since the last time; waits for the GPU."""
        torch.cuda.synchronize()
        spans = sorted((self.zero.elapsed_time(a), self.zero.elapsed_time(b)) for _, a, b in self.marks)
        busy, end = 0.0, float("-inf")
        for start, stop in spans:
            busy += max(0.0, stop - max(start, end))
            end = max(end, stop)
        found = Transfers(sum(size for size, _, _ in self.marks), busy / 1e3)
        self.marks.clear()
        return found


def measure() -> float:
    """GB/s from pinned RAM to the GPU."""
    source = torch.empty(256 * 2**20, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device="cuda")
    rates = []
    for _ in range(4):
        before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        target.copy_(source, non_blocking=True)
        behind.record()
        torch.cuda.synchronize()
        rates.append(len(source) / before.elapsed_time(behind) / 1e6)
    return max(rates)
