"""Triton kernels that decode GGUF blocks: the packed bytes are read once, and the weight is written once.

One function per type gives element `j` of the block at `base`, in the reference's order of float32 operations, without
fused multiply-add, so that results are equal to those of weights/ggml.py to the bit (tests/core/test_kernels.py).
Every block and every tensor starts at an even byte, so a float16 in a block is one load.
"""

# Triton compiles these functions: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportReturnType=false, reportCallIssue=false, reportIndexIssue=false
# pyright: reportAttributeAccessIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..weights.ggml import IQ4_VALUES
from ..weights.ggml_types import GgmlType
from .fused import INTERPRETED
from .trial import works

__all__ = ["accepts", "dequantize", "works"]

SPAN = 1024  # elements of one program


def accepts(packed: Tensor, kind: GgmlType) -> bool:
    """True where the kernels take this tensor: whole blocks on a GPU, at an even address, no tracing."""
    return (
        kind.name in DECODERS
        and (packed.is_cuda or INTERPRETED)
        and packed.is_contiguous()
        and packed.data_ptr() % 2 == 0
        and packed.numel() % kind.nbytes == 0
        and not torch.compiler.is_compiling()  # the compiler fuses the reference itself
    )


@triton.jit
def _half(base, start: tl.constexpr):
    return tl.load((base + start).to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def _byte(place):
    return tl.load(place).to(tl.int32)


@triton.jit
def _signed(place):
    value = _byte(place)
    return tl.where(value > 127, value - 256, value)


@triton.jit
def _q4_0(base, j, values):
    return _half(base, 0) * (((_byte(base + 2 + j % 16) >> (j // 16 * 4)) & 15) - 8).to(tl.float32)


@triton.jit
def _q4_1(base, j, values):
    return _half(base, 0) * ((_byte(base + 4 + j % 16) >> (j // 16 * 4)) & 15).to(tl.float32) + _half(base, 2)


@triton.jit
def _q5(base, j, start: tl.constexpr):
    low = (_byte(base + start + 4 + j % 16) >> (j // 16 * 4)) & 15
    return low | (((_byte(base + start + j // 8) >> (j % 8)) & 1) << 4)


@triton.jit
def _q5_0(base, j, values):
    return _half(base, 0) * (_q5(base, j, 2) - 16).to(tl.float32)


@triton.jit
def _q5_1(base, j, values):
    return _half(base, 0) * _q5(base, j, 4).to(tl.float32) + _half(base, 2)


@triton.jit
def _q8_0(base, j, values):
    return _half(base, 0) * _signed(base + 2 + j).to(tl.float32)


@triton.jit
def _crumb(base, j):
    """Two bits: each run of 32 bytes holds four runs of numbers."""
    return (_byte(base + j // 128 * 32 + j % 32) >> (j % 128 // 32 * 2)) & 3


@triton.jit
def _q2_k(base, j, values):
    scales = _byte(base + j // 16)
    scale = _half(base, 80) * (scales & 15).to(tl.float32)
    return scale * _crumb(base + 16, j).to(tl.float32) - _half(base, 82) * (scales >> 4).to(tl.float32)


@triton.jit
def _q3_k(base, j, values):
    group = j // 16
    low = (_byte(base + 96 + group % 8) >> (group // 8 * 4)) & 15
    high = (_byte(base + 104 + group % 4) >> (group // 4 * 2)) & 3
    scale = _half(base, 108) * ((low | (high << 4)) - 32).to(tl.float32)
    absent = ((_byte(base + j % 32) >> (j // 32)) & 1) ^ 1
    return scale * (_crumb(base + 32, j) - (absent << 2)).to(tl.float32)


@triton.jit
def _k_with_minimum(base, j, number):
    """Scale and minimum of eight groups, 6 bits each, in twelve bytes."""
    group, place = j // 32, base + 4 + j // 32 % 4
    first, second, third = _byte(place), _byte(place + 4), _byte(place + 8)
    scale = tl.where(group < 4, first & 63, (third & 15) | ((first >> 2) & 48))
    minimum = tl.where(group < 4, second & 63, (third >> 4) | ((second >> 2) & 48))
    scaled = _half(base, 0) * scale.to(tl.float32) * number.to(tl.float32)
    return scaled - _half(base, 2) * minimum.to(tl.float32)


@triton.jit
def _q4_k(base, j, values):
    return _k_with_minimum(base, j, (_byte(base + 16 + j // 64 * 32 + j % 32) >> (j % 64 // 32 * 4)) & 15)


@triton.jit
def _q5_k(base, j, values):
    low = (_byte(base + 48 + j // 64 * 32 + j % 32) >> (j % 64 // 32 * 4)) & 15
    return _k_with_minimum(base, j, low | (((_byte(base + 16 + j % 32) >> (j // 32)) & 1) << 4))


@triton.jit
def _q6_k(base, j, values):
    low = (_byte(base + j // 128 * 64 + j % 64) >> (j % 128 // 64 * 4)) & 15
    scale = _half(base, 208) * _signed(base + 192 + j // 16).to(tl.float32)
    return scale * ((low | (_crumb(base + 128, j) << 4)) - 32).to(tl.float32)


@triton.jit
def _iq4_nl(base, j, values):
    return _half(base, 0) * tl.load(values + ((_byte(base + 2 + j % 16) >> (j // 16 * 4)) & 15))


@triton.jit
def _iq4_xs(base, j, values):
    group = j // 32
    low = (_byte(base + 4 + group // 2) >> (group % 2 * 4)) & 15
    high = (_byte(base + 2 + group // 4) >> (group % 4 * 2)) & 3
    scale = _half(base, 0) * ((low | (high << 4)) - 32).to(tl.float32)
    return scale * tl.load(values + ((_byte(base + 8 + group * 16 + j % 16) >> (j % 32 // 16 * 4)) & 15))


DECODERS: dict[str, Any] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}


@triton.jit
def _decode_kernel(
    packed, out, values, total,
    DECODE: tl.constexpr, ELEMENTS: tl.constexpr, NBYTES: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """`total` elements; `values` is the table of the non-linear types."""
    at = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    inside = at < total
    at = tl.where(inside, at, 0)
    value = DECODE(packed + at // ELEMENTS * NBYTES, (at % ELEMENTS).to(tl.int32), values)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


_TABLES: dict[torch.device, Tensor] = {}


def _table(device: torch.device) -> Tensor:
    if device not in _TABLES:
        _TABLES[device] = torch.tensor(IQ4_VALUES, device=device, dtype=torch.float32)
    return _TABLES[device]


def dequantize(packed: Tensor, kind: GgmlType, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """packed uint8 [bytes] of one tensor that `accepts` takes -> weights [shape] in `dtype`."""
    out = torch.empty(shape, device=packed.device, dtype=dtype)
    grid = (triton.cdiv(out.numel(), SPAN),)
    with torch.cuda.device_of(packed):
        _decode_kernel[grid](
            packed, out, _table(packed.device), out.numel(),
            DECODERS[kind.name], kind.elements, kind.nbytes, SPAN,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out
