"""The functions of int8.py as Triton programs, for cards whose tensor cores multiply int8 (sm_80 and later).

Rows are turned as products of squares of 16 on the tensor cores; a row is read twice, for its scale and to be rounded.
Parity: tests/core/test_int8.py, on CPU through Triton's interpreter (TRITON_INTERPRET=1).
"""

# Triton compiles the programs: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import logging
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import int8
from .fused import FLOATS, INTERPRETED
from .rows8 import Form

ROWS, ROUND_WARPS = 16, 4  # of a program that rounds
OUT_ROWS, OUT_COLUMNS, INNER = 128, 128, 128  # of a program that multiplies
WARPS, STAGES = 4, 3
TOGETHER = 8  # programs of neighbouring rows that share columns of weights in the cache
TRIED = (200, 512)  # rows and channels of the comparison: the last tile is not full
TRIED_IN = torch.float16 if INTERPRETED else torch.bfloat16  # whose products the interpreter lacks
NEAR = 5e-3  # from the reference, relative: turned in tf32, some values round to a neighbouring step (3e-3)

SIDE, BLOCK = tl.constexpr(int8.SIDE), tl.constexpr(int8.BLOCK)
STEPS, SMALLEST = tl.constexpr(int8.STEPS), tl.constexpr(int8.SMALLEST)


@triton.jit
def _hadamard():
    """[16, 16] of +-1/4: negative where both places share an odd number of bits."""
    shared = tl.arange(0, SIDE)[:, None] & tl.arange(0, SIDE)[None, :]
    shared ^= shared >> 2
    shared ^= shared >> 1
    return tl.where(shared & 1 == 0, 0.25, -0.25)


@triton.jit
def _turned(x, matrix, ROWS: tl.constexpr):
    """x [ROWS, 256] -> turned, float32."""
    x = tl.dot(tl.reshape(x, (ROWS * SIDE, SIDE)), matrix.to(x.dtype), input_precision="tf32")
    x = tl.permute(tl.reshape(x, (ROWS, SIDE, SIDE)), (0, 2, 1))
    x = tl.dot(tl.reshape(x, (ROWS * SIDE, SIDE)), matrix, input_precision="tf32")
    return tl.reshape(x, (ROWS, BLOCK))


@triton.jit
def round_kernel(x, out, scales, rows, width, ROWS: tl.constexpr):
    """ROWS rows, turned and rounded."""
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK)
    inside, matrix = (row < rows)[:, None], _hadamard()
    at = row[:, None] * width + column[None, :]
    peak = tl.zeros([ROWS], tl.float32)
    for block in range(width // BLOCK):
        part = _turned(tl.load(x + at + block * BLOCK, mask=inside, other=0.0), matrix, ROWS)
        peak = tl.maximum(peak, tl.max(tl.abs(part), axis=1))
    scale = tl.maximum(peak / STEPS, SMALLEST)
    tl.store(scales + row, scale, mask=row < rows)
    scale = 1.0 / scale
    for block in range(width // BLOCK):
        part = _turned(tl.load(x + at + block * BLOCK, mask=inside, other=0.0), matrix, ROWS) * scale[:, None]
        part = tl.where(part < 0, part - 0.5, part + 0.5)  # the cast cuts off
        tl.store(out + at + block * BLOCK, part.to(tl.int8), mask=inside)


@triton.jit
def product_kernel(
    x, x_scale, weight, weight_scale, bias, out, rows, columns, width,
    BIAS: tl.constexpr, OUT_ROWS: tl.constexpr, OUT_COLUMNS: tl.constexpr, INNER: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    """OUT_ROWS x OUT_COLUMNS of x [rows, width] times weight [columns, width], scaled, plus bias."""
    above, across = tl.cdiv(rows, OUT_ROWS), tl.cdiv(columns, OUT_COLUMNS)
    band = tl.program_id(0) // (TOGETHER * across)
    height = tl.minimum(above - band * TOGETHER, TOGETHER)
    place = tl.program_id(0) % (TOGETHER * across)
    row = (band * TOGETHER + place % height) * OUT_ROWS + tl.arange(0, OUT_ROWS)
    column = (place // height) * OUT_COLUMNS + tl.arange(0, OUT_COLUMNS)
    inner = tl.arange(0, INNER)
    # Rows and columns beyond the end are read again from the start, and not written.
    left = x + (row % rows).to(tl.int64)[:, None] * width + inner[None, :]
    right = weight + (column % columns)[None, :] * width + inner[:, None]
    sums = tl.zeros([OUT_ROWS, OUT_COLUMNS], tl.int32)
    for _ in range(width // INNER):
        sums = tl.dot(tl.load(left), tl.load(right), sums, out_dtype=tl.int32)
        left += INNER
        right += INNER
    in_rows, in_columns = row < rows, column < columns
    scale = tl.load(x_scale + row, mask=in_rows, other=0.0)[:, None]
    scale = scale * tl.load(weight_scale + column, mask=in_columns, other=0.0)[None, :]
    result = sums.to(tl.float32) * scale
    if BIAS:
        result += tl.load(bias + column, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    at = out + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(at, result.to(out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


def rounded_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """See int8.rounded_rows; x is contiguous."""
    width = x.shape[-1]
    rows = x.numel() // width
    values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    round_kernel[(triton.cdiv(rows, ROWS),)](x, values, scale, rows, width, ROWS=ROWS, num_warps=ROUND_WARPS)
    return values, scale


def product(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype):
    """x [B, L, K] and weight [N, K] int8 with their scales, bias [N] -> [B, L, N] in `dtype`."""
    (columns, width), rows = weight.shape, x.numel() // x.shape[-1]
    out = torch.empty(*x.shape[:-1], columns, dtype=dtype, device=x.device)
    grid = (triton.cdiv(rows, OUT_ROWS) * triton.cdiv(columns, OUT_COLUMNS),)
    product_kernel[grid](
        x, x_scale, weight, weight_scale, out if bias is None else bias, out, rows, columns, width,
        BIAS=bias is not None, OUT_ROWS=OUT_ROWS, OUT_COLUMNS=OUT_COLUMNS, INNER=INNER, TOGETHER=TOGETHER,
        num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out


def accepts(x: Tensor) -> bool:
    """True on a GPU for rows of whole blocks without gaps, of tokens or of a weight; no gradient and no tracing."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad):
        return False
    return x.dtype in FLOATS and x.shape[-1] % int8.BLOCK == 0 and x.is_contiguous() and works(x.device)


@cache
def works(device: torch.device) -> bool:
    """Compares once with the reference: a Triton of another version refuses a program, or errs."""
    if device.type != "cuda" and not INTERPRETED:
        return False
    generator = torch.Generator(device).manual_seed(0)  # its own: the run's noise stays as it is
    x, weight = torch.randn(2, *TRIED, device=device, generator=generator).to(TRIED_IN).unbind(0)
    bias = x[0, : len(weight)]
    expected = int8.linear(int8.formed(x[None], Form(torch.float32)), weight, bias)
    try:
        with torch.cuda.device_of(x):
            out = product(*rounded_rows(x[None]), *rounded_rows(weight), bias, torch.float32)
    except Exception as problem:  # noqa: BLE001  (a compiler's own errors, of any kind)
        logging.info("linear layers in int8 do not work here: %s", str(problem).splitlines()[:1])
        return False
    return bool((out - expected).norm() < NEAR * expected.norm())
