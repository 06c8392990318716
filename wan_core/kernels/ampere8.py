"""Attention in 8 bits for cards from Ampere (sm_80) on in Triton: see attention8.py, values are rounded to float16.

A program computes QUERIES queries of a head, KEYS keys at a time. What GeForce cards do at a half or a quarter of their
rate is left out: the products with values are summed in float16 within a tile (at most 64 * 64 * 7, which it holds),
tiles are added up in float32, and scores become floats by an addition.
Parity: tests/core/test_attention8.py in Triton's interpreter, and `works` on the card before the first use.
Source of the sums in float16: Zhang et al., "SageAttention", arXiv 2410.02367, section 4.4.
"""

# Triton compiles the program: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import math
from functools import cache, partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..paths import MAJORS8
from . import attention8
from .agreement import agrees, takes
from .attention8 import BLOCK
from .rounding import Rounded, rounded

NAME = "ampere, 8 bits"
QUERIES, KEYS, WARPS, STAGES = 128, 64, 8, 3  # of a program; tiles of keys and values on their way
NEAR = 0.01  # from the reference, relative: sums in float16

HALF_INTEGER = tl.constexpr(0x4B400000)  # added to whole numbers below 2^22, gives the bits of the float 1.5 * 2^23 + n
OFFSET = tl.constexpr(12582912.0)  # 1.5 * 2^23
LOG_E = tl.constexpr(1.4426950408889634)
LIFT, LOG_LIFT = tl.constexpr(attention8.LIFT), tl.constexpr(math.log2(attention8.LIFT))


@triton.jit
def _tile(tokens, keys, values, factor, top, total, sums, inside, LAST: tl.constexpr):
    """One tile of keys and values -> the highest scores, the sums of probabilities, the sums of values."""
    x = (tl.dot(tokens, tl.trans(keys), out_dtype=tl.int32) + HALF_INTEGER).to(tl.float32, bitcast=True)
    if LAST:
        x = tl.where(inside[None, :], x, OFFSET / 1.5)  # below every score
    highest = tl.maximum(top, (tl.max(x, axis=1) - OFFSET) * factor)
    shift = OFFSET * factor + highest - LOG_LIFT
    shrink = tl.exp2(top - highest)
    p = tl.exp2(x * factor[:, None] - shift[:, None])
    if LAST:
        p = tl.where(inside[None, :], p, 0.0)
    added = tl.dot(p.to(tl.float16), values, out_dtype=tl.float16)
    return highest, total * shrink + tl.sum(p, axis=1), sums * shrink[:, None] + added


@triton.jit
def _attention_kernel(
    q, k, v, q_scale, k_scale, v_scale, v_mean, out, length, heads,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """QUERIES queries of one head over all keys."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, places, columns = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES), tl.arange(0, KEYS), tl.arange(0, D)
    plane, width, blocks = batch * heads + head, heads * D, tl.cdiv(length, BLOCK)
    first = batch * length * width + head * D
    at_rows = first + rows.to(tl.int64)[:, None] * width + columns[None, :]
    at_keys = first + places.to(tl.int64)[:, None] * width + columns[None, :]
    tokens = tl.load(q + at_rows, mask=(rows < length)[:, None], other=0)
    scale = tl.load(q_scale + plane * length + rows, mask=rows < length, other=1.0) * (LOG_E / D**0.5)
    k_scale += plane * blocks
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, D], tl.float32)
    whole = length // KEYS
    for tile in range(whole):
        factor = scale * tl.load(k_scale + tile * KEYS // BLOCK)
        keys, values = tl.load(k + at_keys), tl.load(v + at_keys)
        top, total, sums = _tile(tokens, keys, values, factor, top, total, sums, places < KEYS, LAST=False)
        at_keys += KEYS * width
    left = length - whole * KEYS
    if left > 0:
        inside = places < left
        keys = tl.load(k + at_keys, mask=inside[:, None], other=0)
        values = tl.load(v + at_keys, mask=inside[:, None], other=0.0)
        factor = scale * tl.load(k_scale + whole * KEYS // BLOCK)
        top, total, sums = _tile(tokens, keys, values, factor, top, total, sums, inside, LAST=True)
    channel = plane * D + columns
    scale_back, mean = tl.load(v_scale + channel) * LIFT, tl.load(v_mean + channel)
    sums = sums / total[:, None] * scale_back[None, :] + mean[None, :]
    tl.store(out + at_rows, sums.to(out.dtype.element_ty), mask=(rows < length)[:, None])


def accepts(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """True for q, k and v [B, L, heads * 128] of one length in half precision, without gaps and gradients."""
    fits = q.shape == k.shape == v.shape and v.is_contiguous() and takes(q, k, v, heads)
    return fits and works(q.device)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, L, heads * 128], rounded as attention8.reference -> [B, L, heads * 128]."""
    with torch.cuda.device_of(q):
        return _launch(rounded(q, k, v, heads, torch.empty_like(v, dtype=torch.float16)), heads, q.dtype)


def attention_using_up(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """As `attention`, but `v` is worth nothing afterwards: the values in float16 lie there, and not beside it."""
    with torch.cuda.device_of(q):
        return _launch(rounded(q, k, v, heads, v.view(torch.float16)), heads, q.dtype)


def _launch(given: Rounded, heads: int, dtype: torch.dtype) -> Tensor:
    batch, length, width = given.q.shape
    out = torch.empty(batch, length, width, dtype=dtype, device=given.q.device)
    _attention_kernel[(triton.cdiv(length, QUERIES), heads, batch)](
        given.q, given.k, given.v, given.q_scale, given.k_scale, given.about.v_scale, given.about.v_mean, out,
        length, heads, QUERIES=QUERIES, KEYS=KEYS, BLOCK=BLOCK, D=width // heads, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out


@cache
def works(device: torch.device) -> bool:
    """Compares once with the reference."""
    if torch.version.hip or torch.cuda.get_device_capability(device)[0] not in MAJORS8:
        return False
    return agrees(NAME, device, attention, partial(attention8.reference, values=torch.float16), NEAR)
