"""What the programs for Hopper (sm_90) share: barriers of a ring, and a comparison on the card before the first use."""

# Triton compiles the program: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from . import agreement
from .agreement import Attention


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """One barrier to a place of a ring, each of which opens after so many arrivals."""
    ring = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(COUNT):
        mbarrier.init(ring.index(place), ARRIVALS)
    return ring


def agrees(name: str, device: torch.device, run: Attention, reference: Attention, near: float) -> bool:
    """True on Hopper, where the results of both are `near`."""
    if torch.version.hip or torch.cuda.get_device_capability(device) != (9, 0):  # AMD counts its cards the same way
        return False
    return agreement.agrees(name, device, run, reference, near)
