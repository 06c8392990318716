"""Kernels of convolutions as the matrices that kernels/convolution.py multiplies with (Triton).

A file keeps the taps of a channel together; a product wants the channels of a tap. The host owns the weights, and a
second copy would take as much memory, so they are turned for every chunk of a clip: in one pass over them.
Equal to the bit with PyTorch's: tests/core/test_kernels.py, on CPU through Triton's interpreter.
"""

# Triton compiles these functions: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CHANNELS = 128  # input channels of one program
SIDE = 3  # taps to a side of the kernels of `enlarging`


@triton.jit
def _turn_kernel(
    weight, out, inputs, taps, row_stride, channel_stride, tap_stride, CHANNELS: tl.constexpr, TAPS: tl.constexpr
):  # fmt: skip
    """CHANNELS input channels of one output channel: read as they lie, neighbours together, and so written."""
    row = tl.program_id(0).to(tl.int64)
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[:, None]
    tap = tl.arange(0, TAPS)[None, :]
    within = (channel < inputs) & (tap < taps)
    value = tl.load(weight + row * row_stride + channel * channel_stride + tap * tap_stride, mask=within)
    tl.store(out + (row * taps + tap) * inputs + channel, value, mask=within)


def turned(weight: Tensor) -> Tensor:
    """[C', C, T, H, W] -> [C', T * H * W * C]: the channels of a tap together."""
    flat = weight.flatten(2)  # a view, of some of the frames' taps too
    outputs, inputs, taps = flat.shape
    out = torch.empty((outputs, taps * inputs), dtype=weight.dtype, device=weight.device)
    grid = (outputs, triton.cdiv(inputs, CHANNELS))
    _turn_kernel[grid](
        flat, out, inputs, taps, *flat.stride(), CHANNELS=CHANNELS, TAPS=triton.next_power_of_2(taps), num_warps=4
    )  # fmt: skip
    return out


@triton.jit
def _column(weight, COLUMN: tl.constexpr, HALF: tl.constexpr, LOWER: tl.constexpr, SIDE: tl.constexpr, mask):
    """Of one column of taps what meets the upper (HALF 0) or lower input row: 0 | 1 + 2, for LOWER pixels 0 + 1 | 2."""
    place = weight + HALF * (1 + LOWER) * SIDE + COLUMN
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if HALF != LOWER:
        value += tl.load(place + SIDE, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _enlarging_kernel(weight, out, outputs, inputs, SIDE: tl.constexpr, CHANNELS: tl.constexpr):
    """CHANNELS input channels of one output channel: for each pixel of a square its 2 x 2 sums of taps."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = channel < inputs
    taps = weight + (row * inputs + channel) * (SIDE * SIDE)
    for phase in tl.static_range(4):
        for tap in tl.static_range(4):  # columns are shared out as rows are
            total = _column(taps, tap % 2 * (1 + phase % 2), tap // 2, phase // 2, SIDE, mask)
            if tap % 2 != phase % 2:
                total += _column(taps, tap % 2 * (1 + phase % 2) + 1, tap // 2, phase // 2, SIDE, mask)
            target = ((phase * outputs + row) * 4 + tap) * inputs + channel
            tl.store(out + target, total.to(out.dtype.element_ty), mask=mask)


def enlarging(weight: Tensor) -> Tensor:
    """[C', C, 3, 3] -> [4 * C', 4 * C]: what it is for the four pixels of each square of an enlarged image.

    Of the nine taps those that fall on the same input pixel are one, their sum, which is rounded once: 2 x 2 are left.
    """
    weight = weight.contiguous()
    outputs, inputs = weight.shape[:2]
    out = torch.empty((4 * outputs, 4 * inputs), dtype=weight.dtype, device=weight.device)
    grid = (outputs, triton.cdiv(inputs, CHANNELS))
    _enlarging_kernel[grid](weight, out, outputs, inputs, SIDE=SIDE, CHANNELS=CHANNELS, num_warps=4)
    return out
