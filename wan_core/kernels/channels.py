"""Norm over the channels of a clip and SiLU, as one pass over memory, for tensors with channels last (Triton).

Parity with vae/causal.py ChannelNorm: tests/core/test_kernels.py, on CPU through Triton's interpreter.
"""

# Triton compiles this function: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fused import FLOATS, INTERPRETED
from .trial import works

ELEMENTS, WARPS = 4096, 4  # values of one program, and what computes them


def accepts(x: Tensor, gamma: Tensor) -> bool:
    """True for a clip [B, C, F, H, W] with channels last, without gradients or tracing."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and (x.requires_grad or gamma.requires_grad)):
        return False
    return (
        (x.is_cuda or INTERPRETED)
        and x.dtype in FLOATS
        and x.ndim == 5
        and 1 < x.shape[1] <= ELEMENTS
        and x.is_contiguous(memory_format=torch.channels_last_3d)
        and works(x.device, x.dtype)
    )


@triton.jit
def _norm_silu_kernel(
    x, gamma, out, positions, height, width, channels, root, least,
    NORM: tl.constexpr, BORDER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ROWS positions: their channels to length `root`, times gamma, and SiLU of that; zero at the border.

    Without NORM as they are: a border is all that they get.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    within = (rows[:, None] < positions) & (columns[None, :] < channels)
    place = rows.to(tl.int64)[:, None] * channels + columns[None, :]
    source, inside = place, within
    if BORDER:
        pitch, plane = width + 2 * BORDER, (height + 2 * BORDER) * (width + 2 * BORDER)
        start = tl.program_id(0) * ROWS
        pixel = start % pitch + tl.arange(0, ROWS)
        is_next = pixel >= pitch  # in the next line: a program sees two; what follows a frame's last is border, too
        row = start % plane // pitch + is_next.to(tl.int32) - BORDER
        pixel = tl.where(is_next, pixel - pitch, pixel) - BORDER
        is_pixel = (row >= 0) & (row < height) & (pixel >= 0) & (pixel < width)
        inside = within & is_pixel[:, None]
        source = ((start // plane * height + row) * width + pixel).to(tl.int64)[:, None] * channels + columns[None, :]
    value = tl.load(x + source, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        length = tl.sqrt(tl.sum(value * value, axis=1))
        gain = tl.load(gamma + columns, mask=columns < channels, other=0.0).to(tl.float32)
        value = value * (root / tl.maximum(length, least))[:, None] * gain[None, :]
        value = value * tl.sigmoid(value)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=within)


def norm_silu(x: Tensor, gamma: Tensor, past: Tensor | None, *, least: float) -> Tensor:
    """SiLU(x / max(|x|, least) * sqrt(C) * gamma) over the channels, behind `past` frames [B, C, P, H, W] of the same.

    x [B, C, F, H, W] -> [B, C, P + F, H, W], written where it stays: nothing is joined afterwards.
    """
    history = 0 if past is None else past.shape[2]
    shape = (*x.shape[:2], history + x.shape[2], *x.shape[3:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    if past is None:
        _run(_as_one(x), gamma, _as_one(out), border=0, least=least)
        return out
    out[:, :, :history] = past
    for sample in range(len(x)):
        _run(x[sample], gamma, out[sample, :, history:], border=0, least=least)
    return out


def _as_one(x: Tensor) -> Tensor:
    """Clips [B, C, F, H, W] with channels last -> [C, B * F, H, W] in the same memory."""
    return x.transpose(0, 1).view(x.shape[1], -1, *x.shape[3:])


def bordered_norm_silu(x: Tensor, gamma: Tensor, *, least: float) -> Tensor:
    """As `norm_silu`, with a border of zeros around each frame and the channels as last axis.

    x [B, C, F, H, W] -> [B, F, H + 2, W + 2, C].
    """
    batch, channels, frames, height, width = x.shape
    out = torch.empty((batch, frames, height + 2, width + 2, channels), dtype=x.dtype, device=x.device)
    for sample in range(batch):
        _run(x[sample], gamma, out[sample], border=1, least=least)
    return out


def bordered(x: Tensor) -> Tensor:
    """x [B, C, F, H, W] with channels last -> [B, F, H + 2, W + 2, C] within a border of zeros."""
    batch, channels, frames, height, width = x.shape
    out = torch.empty((batch, frames, height + 2, width + 2, channels), dtype=x.dtype, device=x.device)
    _run(_as_one(x), None, out, border=1)
    return out


def _run(x: Tensor, gamma: Tensor | None, out: Tensor, *, border: int, least: float = 0.0) -> None:
    """x [C, F, H, W] with channels last -> out, whose frames have `border` zeros on each side; no gamma: only that."""
    channels, frames, height, width = x.shape
    positions, block = frames * (height + 2 * border) * (width + 2 * border), triton.next_power_of_2(channels)
    rows = max(ELEMENTS // block, 1)
    if border:  # no program sees more than the end of a line and the start of the next
        rows = min(rows, 1 << (width + 2 * border).bit_length() - 1)
    _norm_silu_kernel[(triton.cdiv(positions, rows),)](
        x, None if gamma is None else gamma.reshape(-1), out, positions, height, width, channels, channels**0.5, least,
        NORM=gamma is not None, BORDER=border, ROWS=rows, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
