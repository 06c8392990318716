"""Linear layers in int8: tokens and weights are turned by a Hadamard matrix, then rounded by rows.

A few channels of a video model are many times larger than the rest, and a scale that reaches them leaves the rest few
of 8 bits. Turned in blocks of 256 channels, each value carries a share of all of its block. The matrix is its own
inverse and goes on both sides of the product, so that the product stays what it was.
Source: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", arXiv 2404.00456.

These functions are the reference; int8_fused.py has them as Triton programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .rows8 import Form, Rows8

SIDE = 16
BLOCK = SIDE * SIDE  # channels that are turned together
STEPS = 127.0  # of int8
SMALLEST = 1e-12  # scale of a row of zeros


@dataclass(frozen=True)
class Turned8(Rows8):
    """Tokens whose turned channels are values * scale: [B, L, D] int8, [B, L, 1] float32."""

    def dequantised(self) -> Tensor:
        """[B, L, D] in `dtype`."""
        return turned_back(self.values.float() * self.scale).to(self.dtype)


@cache
def hadamard(device: torch.device) -> Tensor:
    """[16, 16] float32 of +-1/4, symmetric and its own inverse (Sylvester's construction)."""
    places = torch.arange(SIDE)
    bits = (places[:, None, None] & places[:, None]) >> torch.arange(4) & 1
    return (0.25 - 0.5 * (bits.sum(-1) % 2)).to(device)


def turned(x: Tensor) -> Tensor:
    """x [..., D], D a multiple of 256 -> each block of 256, as a square, between two matrices; on its side."""
    matrix = hadamard(x.device)
    return (matrix @ x.float().unflatten(-1, (-1, SIDE, SIDE)).mT @ matrix).flatten(-3)


def turned_back(x: Tensor) -> Tensor:
    """The inverse of `turned`: [..., D]."""
    matrix = hadamard(x.device)
    return (matrix @ x.float().unflatten(-1, (-1, SIDE, SIDE)) @ matrix).mT.flatten(-3)


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., D] -> its turned rows in int8 [..., D], and their scales [..., 1] float32."""
    x = turned(x)
    scale = (x.abs().amax(-1, keepdim=True) / STEPS).clamp(min=SMALLEST)
    return (x / scale).round().to(torch.int8), scale


def formed(x: Tensor, form: Form, rounded: Callable[[Tensor], tuple[Tensor, Tensor]] = rounded_rows) -> Turned8:
    """x [B, L, D] in int8, rounded by `rounded_rows` of this module or of int8_fused.py."""
    values, scale = rounded(x)
    return Turned8(values, scale, form.dtype, x.to(form.dtype) if form.exact else None)


def linear(x: Rows8, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, L, K], weight [N, K] in floating point, which is rounded by rows, bias [N] -> [B, L, N] in x.dtype."""
    values, scale = rounded_rows(weight)
    out = (x.values.float() @ values.float().mT) * x.scale * scale.squeeze(-1)
    return (out if bias is None else out + bias.float()).to(x.dtype)
