"""What the attention programs take, and how each is compared with its reference on the card before its first use."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from .fused import accepts as takes_rows

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]
HEAD = 128  # values of a head
TOKENS = 424  # of the comparison: the last tile is not full


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
    """True where the results of both are `near`: a Triton of another version refuses a program, or errs."""
    generator = torch.Generator(device).manual_seed(0)  # its own: the run's noise stays as it is
    q, k, v = torch.randn(3, 1, TOKENS, 2 * HEAD, device=device, generator=generator).bfloat16().unbind(0)
    expected = reference(q.float(), k.float(), v.float(), 2)
    try:
        error = (run(q, k, v, 2) - expected).norm()
    except Exception as problem:  # noqa: BLE001  (a compiler's own errors, of any kind)
        logging.info("attention kernel %s does not work here: %s", name, str(problem).splitlines()[:1])
        return False
    return bool(error < near * expected.norm())
