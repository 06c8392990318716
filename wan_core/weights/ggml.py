"""The block formats of GGUF tensors: their sizes, and how packed bytes become numbers.

A tensor of a quantised type is a row of blocks; a block holds `elements` weights in `nbytes` bytes. Every function
below takes blocks [N, nbytes] uint8 and returns [N, elements] float32, on the device of its input.
Layouts: ggml-org/llama.cpp ggml/src/ggml-common.h and ggml-quants.c (dequantize_row_*). The order of the float32
operations is the reference's, so results are equal to the bit (tests/core/test_ggml.py, against the `gguf` package).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .ggml_types import BLOCK_TYPES, BY_NAME, TYPES, GgmlType

__all__ = ["BLOCK_TYPES", "BY_NAME", "DECODERS", "TYPES", "Decode", "GgmlType", "dequantize"]

Decode = Callable[[Tensor], Tensor]


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte `start` of each block, as float32 [N, 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """[..., n] bytes -> [..., 2n]: all low halves, then all high halves."""
    return torch.cat((packed & 0x0F, packed >> 4), dim=-1)


def _bits(packed: Tensor) -> Tensor:
    """[N, n] bytes -> [N, 8n] bits, lowest first."""
    shifts = torch.arange(8, device=packed.device, dtype=torch.uint8)
    return ((packed.unsqueeze(-1) >> shifts) & 1).flatten(1)


def _q4_0(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 2:18]).to(torch.int8) - 8)


def _q4_1(b: Tensor) -> Tensor:
    return _half(b, 0) * _nibbles(b[:, 4:20]) + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    return _half(b, 0) * ((_nibbles(b[:, 6:22]) | (_bits(b[:, 2:6]) << 4)).to(torch.int8) - 16)


def _q5_1(b: Tensor) -> Tensor:
    return _half(b, 0) * (_nibbles(b[:, 8:24]) | (_bits(b[:, 4:8]) << 4)) + _half(b, 2)


def _q8_0(b: Tensor) -> Tensor:
    return _half(b, 0) * b[:, 2:34].contiguous().view(torch.int8)


def _crumbs(packed: Tensor, run: int) -> Tensor:
    """[N, n] bytes -> [N, n / run, 4, run] two-bit numbers: each run of bytes holds four runs of numbers."""
    shifts = torch.tensor([0, 2, 4, 6], device=packed.device, dtype=torch.uint8).reshape(1, 1, 4, 1)
    return (packed.unflatten(1, (-1, 1, run)) >> shifts) & 3


def _q2_k(b: Tensor) -> Tensor:
    scales, quants = b[:, :16], _crumbs(b[:, 16:80], 32).reshape(-1, 16, 16)
    scale = _half(b, 80) * (scales & 0x0F)
    minimum = _half(b, 82) * (scales >> 4)
    return (scale.unsqueeze(-1) * quants - minimum.unsqueeze(-1)).flatten(1)


def _q3_k(b: Tensor) -> Tensor:
    mask, quants, packed = b[:, :32], _crumbs(b[:, 32:96], 32), b[:, 96:108]
    low = torch.cat((packed[:, :8] & 0x0F, packed[:, :8] >> 4), dim=1)
    high = _crumbs(packed[:, 8:12], 4).flatten(1)
    scale = _half(b, 108) * ((low | (high << 4)).to(torch.int8) - 32)
    shifts = torch.arange(8, device=b.device, dtype=torch.uint8).reshape(1, 8, 1)
    absent = ((mask.unsqueeze(1) >> shifts) & 1) ^ 1  # a cleared bit takes 4 off
    number = quants.reshape(-1, 16, 16).to(torch.int8) - (absent << 2).reshape(-1, 16, 16).to(torch.int8)
    return (scale.unsqueeze(-1) * number).flatten(1)


def _scales_and_minimums(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Unpacks 12 bytes into eight 6-bit scales and eight 6-bit minimums (get_scale_min_k4)."""
    first, second, third = packed.unflatten(1, (3, 4)).unbind(1)
    scale = torch.cat((first & 0x3F, (third & 0x0F) | ((first >> 2) & 0x30)), dim=1)
    minimum = torch.cat((second & 0x3F, (third >> 4) | ((second >> 2) & 0x30)), dim=1)
    return scale, minimum


def _k_with_minimum(b: Tensor, quants: Tensor) -> Tensor:
    """Eight groups of 32 numbers [N, 8, 32] with the scales and minimums at the head of the block."""
    scale, minimum = _scales_and_minimums(b[:, 4:16])
    scaled = (_half(b, 0) * scale).unsqueeze(-1) * quants
    return (scaled - (_half(b, 2) * minimum).unsqueeze(-1)).flatten(1)


def _q4_k(b: Tensor) -> Tensor:
    return _k_with_minimum(b, _nibbles(b[:, 16:144].unflatten(1, (4, 32))).reshape(-1, 8, 32))


def _q5_k(b: Tensor) -> Tensor:
    low = _nibbles(b[:, 48:176].unflatten(1, (4, 32))).reshape(-1, 8, 32)
    shifts = torch.arange(8, device=b.device, dtype=torch.uint8).reshape(1, 8, 1)
    high = (b[:, 16:48].unsqueeze(1) >> shifts) & 1
    return _k_with_minimum(b, low | (high << 4))


def _q6_k(b: Tensor) -> Tensor:
    low = _nibbles(b[:, :128].unflatten(1, (2, 64))).reshape(-1, 2, 4, 32)
    high = _crumbs(b[:, 128:192], 32)
    number = ((low | (high << 4)).to(torch.int8) - 32).reshape(-1, 16, 16)
    scale = _half(b, 208) * b[:, 192:208].contiguous().view(torch.int8)
    return (scale.unsqueeze(-1) * number).flatten(1)


# The sixteen values of the non-linear 4-bit types (kvalues_iq4nl).
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _iq4_values(packed: Tensor) -> Tensor:
    """[..., n] bytes -> [..., 2n] float32 values of the table."""
    table = torch.tensor(IQ4_VALUES, device=packed.device, dtype=torch.float32)
    return table[_nibbles(packed).int()]


def _iq4_nl(b: Tensor) -> Tensor:
    return _half(b, 0) * _iq4_values(b[:, 2:18])


def _iq4_xs(b: Tensor) -> Tensor:
    low = torch.stack((b[:, 4:8] & 0x0F, b[:, 4:8] >> 4), dim=-1).flatten(1)
    high = _crumbs(b[:, 2:4], 1).flatten(1)
    scale = _half(b, 0) * ((low | (high << 4)).to(torch.int8) - 32)
    return (scale.unsqueeze(-1) * _iq4_values(b[:, 8:136].unflatten(1, (8, 16)))).flatten(1)


DECODERS: dict[str, Decode] = {
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


def dequantize(packed: Tensor, kind: GgmlType, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """packed uint8 [bytes] of one tensor -> weights [shape] in `dtype`, computed in float32 on packed's device.

    Raises:
        ValueError: the byte count does not fit the shape.
    """
    plain, decode = kind.dtype, DECODERS.get(kind.name)
    if decode is None:
        assert plain is not None
        return packed.view(plain).reshape(shape).to(dtype)
    if packed.numel() % kind.nbytes:
        raise ValueError(f"{packed.numel()} bytes are not whole {kind.name} blocks of {kind.nbytes}")
    return decode(packed.reshape(-1, kind.nbytes)).to(dtype).reshape(shape)
