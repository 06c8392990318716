"""Rounding to 8 bits for attention8.py, as Triton programs: each token is read once and written once.

Parity: tests/core/test_attention8.py, on CPU through Triton's interpreter (TRITON_INTERPRET=1).
"""

# Triton compiles the programs: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention8 import BLOCK, HEADROOM, LIFT, Channels, channels, padded
from .fused import STORED
from .rows8 import FLOAT8

LARGEST = tl.constexpr(448.0)  # of float8 e4m3
SMALLEST = tl.constexpr(1e-12)  # scale of a row of zeros
STEPS = tl.constexpr(127.0)  # of int8
LOWERED, LIMIT = tl.constexpr(LIFT), tl.constexpr(HEADROOM)  # of values in float16


@dataclass(frozen=True)
class Rounded:
    """Queries, keys and values as the fused attention takes them."""

    q: Tensor  # [B, L, H * d] int8
    q_scale: Tensor  # [B, H, L]
    k: Tensor  # [B, L, H * d] int8
    k_scale: Tensor  # [B, H, blocks of keys]
    v: Tensor  # [B, H, d, whole blocks] float8, see attention8.values_in_order; or [B, L, H * d] float16
    about: Channels


@triton.jit
def _tokens_kernel(
    x, mean, out, scales, length, heads, x_batch, x_token,
    D: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """BLOCK tokens of one head, less `mean`, to int8 under one scale (TOGETHER) or one to a token."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, columns = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    inside, plane = (rows < length)[:, None], batch * heads + head
    place = x + batch * x_batch + rows.to(tl.int64)[:, None] * x_token + head * D + columns[None, :]
    value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if TOGETHER:
        value = tl.where(inside, value - tl.load(mean + plane * D + columns)[None, :], 0.0)
    peak = tl.max(tl.abs(value), axis=1)
    if TOGETHER:
        scale = tl.maximum(tl.max(peak, axis=0), SMALLEST) / STEPS
        tl.store(scales + plane * tl.num_programs(0) + block, scale)
        value = value * (1.0 / scale)
    else:
        scale = tl.maximum(peak, SMALLEST) / STEPS
        tl.store(scales + plane * length + rows, scale, mask=rows < length)
        value = value * (1.0 / scale)[:, None]
    rounded = tl.where(value < 0, value - 0.5, value + 0.5).to(tl.int8)
    place = out + (batch * length + rows)[:, None] * (heads * D) + head * D + columns[None, :]
    tl.store(place, rounded, mask=inside)


@triton.jit
def _values_kernel(
    x, mean, scales, out, length, whole, heads, x_batch, x_token, D: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """BLOCK tokens of one head, less `mean` over `scales`, to float8: channels first, keys as in attention8.KEYS."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    place, columns = tl.arange(0, BLOCK), tl.arange(0, D)
    rows = block * BLOCK + ((place & ~15) | ((place & 2) << 2) | ((place & 12) >> 1) | (place & 1))
    inside, channel = (rows < length)[:, None], (batch * heads + head) * D + columns
    source = x + batch * x_batch + rows.to(tl.int64)[:, None] * x_token + head * D + columns[None, :]
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32) - tl.load(mean + channel)[None, :]
    value = value * (1.0 / tl.load(scales + channel))[None, :]
    value = tl.where(inside, tl.minimum(tl.maximum(value, -LARGEST), LARGEST), 0.0)
    target = out + channel[None, :] * whole + (block * BLOCK + place)[:, None]
    tl.store(target, value.to(out.dtype.element_ty))


@triton.jit
def _halves_kernel(x, mean, scales, out, length, heads, x_batch, x_token, D: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK tokens of one head, less `mean` over `scales`, to float16; `out` may lie where `x` does."""
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, columns = block * BLOCK + tl.arange(0, BLOCK), tl.arange(0, D)
    inside, channel = (rows < length)[:, None], (batch * heads + head) * D + columns
    place = batch * x_batch + rows.to(tl.int64)[:, None] * x_token + head * D + columns[None, :]
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - tl.load(mean + channel)[None, :]
    value = value * (1.0 / (tl.load(scales + channel) * LOWERED))[None, :]
    tl.store(out + place, tl.minimum(tl.maximum(value, -LIMIT), LIMIT).to(tl.float16), mask=inside)


def rounded(q: Tensor, k: Tensor, v: Tensor, heads: int, halves: Tensor | None = None) -> Rounded:
    """Rounds q, k and v [B, L, H * d], in rows without gaps; values to float8, or to `halves` in float16.

    `halves` has the shape and strides of `v`, and may be its memory.
    """
    about = channels(k, v, heads)
    about = Channels(about.k_mean.contiguous(), about.v_mean.contiguous(), about.v_scale.contiguous())
    batch, length, width = q.shape
    size, blocks = width // heads, padded(length) // BLOCK
    q8, k8 = (torch.empty(batch, length, width, dtype=torch.int8, device=q.device) for _ in range(2))
    q_scale = torch.empty(batch, heads, length, device=q.device)
    k_scale = torch.empty(batch, heads, blocks, device=q.device)
    grid, sizes = (blocks, heads, batch), {"D": size, "BLOCK": BLOCK, "num_warps": 8}
    for x, out, scale, together in ((q, q8, q_scale, False), (k, k8, k_scale, True)):
        _tokens_kernel[grid](
            x, about.k_mean, out, scale, length, heads, x.stride(0), x.stride(1), TOGETHER=together, **sizes
        )  # fmt: skip
    common = about.v_mean, about.v_scale
    if halves is not None:
        _halves_kernel[grid](v, *common, halves, length, heads, v.stride(0), v.stride(1), **sizes)
        return Rounded(q8, q_scale, k8, k_scale, halves, about)
    v8 = torch.empty(batch, heads, size, padded(length), dtype=STORED, device=q.device)
    _values_kernel[grid](v, *common, v8, length, padded(length), heads, v.stride(0), v.stride(1), **sizes)
    return Rounded(q8, q_scale, k8, k_scale, v8.to(FLOAT8), about)
