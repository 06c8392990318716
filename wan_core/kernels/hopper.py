"""What the programs for Hopper (sm_90) share: barriers of a ring, and a comparison on the card before the first use."""

# Triton compiles the program: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .fused import accepts as takes_rows

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
HEAD = 128  # values of a head
TOKENS = 424  # of the comparison: the last tile is not full


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """One barrier to a place of a ring, each of which opens after so many arrivals."""
    ring = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for place in gl.static_range(COUNT):
        mbarrier.init(ring.index(place), ARRIVALS)
    return ring


def takes(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """True on a GPU for q, k and v [B, L, heads * 128] in half precision, without gradients."""
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.dtype == k.dtype == v.dtype
        and q.shape[2] == heads * HEAD
        and takes_rows(q, k, v)
    )


def agrees(name: str, device: torch.device, run: Attention, reference: Attention, near: float) -> bool:
    """True on Hopper, where the results of both are `near`: a Triton whose Gluon differs refuses a program or errs."""
    if torch.version.hip or torch.cuda.get_device_capability(device) != (9, 0):  # AMD counts its cards the same way
        return False
    generator = torch.Generator(device).manual_seed(0)  # its own: the run's noise stays as it is
    q, k, v = torch.randn(3, 1, TOKENS, 2 * HEAD, device=device, generator=generator).bfloat16().unbind(0)
    expected = reference(q.float(), k.float(), v.float(), 2)
    try:
        error = (run(q, k, v, 2) - expected).norm()
    except Exception as problem:  # noqa: BLE001  (a compiler's own errors, of any kind)
        logging.info("attention kernel %s does not work here: %s", name, str(problem).splitlines()[:1])
        return False
    return bool(error < near * expected.norm())
