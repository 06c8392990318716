"""The VAEs' norm over channels and SiLU with a gradient, one kernel for each way: most of a small VAE's kernels.

Forwards it is wan_core's kernel, backwards this file's. Parity with ChannelNorm: tests/pocket/test_norm_silu.py, on a
CPU through Triton's interpreter.
"""

# Triton compiles this function: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...wan_core.kernels import channels
from ...wan_core.vae.norms import LEAST_LENGTH

ELEMENTS = 4096  # values of one program


@triton.jit
def _backward_kernel(
    x, gamma, gradient, to_x, to_gamma, positions, channels, root, least, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """ROWS positions: the gradient at x, and one row of sums that make gamma's."""
    program = tl.program_id(0)
    rows = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    within = (rows[:, None] < positions) & (columns[None, :] < channels)
    place = rows[:, None] * channels + columns[None, :]
    value = tl.load(x + place, mask=within, other=0.0).to(tl.float32)
    came = tl.load(gradient + place, mask=within, other=0.0).to(tl.float32)
    gain = tl.load(gamma + columns, mask=columns < channels, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(value * value, axis=1))
    scale = root / tl.maximum(length, least)
    normed = value * scale[:, None]
    result = normed * gain[None, :]
    share = tl.sigmoid(result)
    came = came * share * (1.0 + result * (1.0 - share))
    tl.store(to_gamma + program * channels + columns, tl.sum(came * normed, axis=0), mask=columns < channels)
    came = came * gain[None, :]
    along = tl.sum(came * value, axis=1) / tl.maximum(length * length, least * least)
    along = tl.where(length > least, along, 0.0)  # shorter ones are scaled, and may become longer
    tl.store(to_x + place, ((came - value * along[:, None]) * scale[:, None]).to(to_x.dtype.element_ty), mask=within)


class NormSilu(torch.autograd.Function):
    """x [B, C, F, H, W], gamma [C, 1, 1, 1] -> SiLU(x / max(|x|, least) * sqrt(C) * gamma), channels last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor) -> Tensor:
        """wan_core's kernel."""
        x = x.contiguous(memory_format=torch.channels_last_3d)
        ctx.save_for_backward(x, gamma)
        return channels.norm_silu(x, gamma.to(x), None, least=LEAST_LENGTH)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """One kernel, and the sum of its programs' rows."""
        x, gamma = ctx.saved_tensors
        width = x.shape[1]
        positions, block = x.numel() // width, triton.next_power_of_2(width)
        rows = max(ELEMENTS // block, 1)
        programs = triton.cdiv(positions, rows)
        to_x = torch.empty_like(x)
        to_gamma = torch.empty((programs, width), device=x.device)
        gradient = gradients[0].contiguous(memory_format=torch.channels_last_3d)
        _backward_kernel[(programs,)](
            x, gamma, gradient, to_x, to_gamma, positions, width, width**0.5, LEAST_LENGTH,
            ROWS=rows, BLOCK=block, num_warps=8,
        )  # fmt: skip
        return to_x, to_gamma.sum(0).view_as(gamma).to(gamma.dtype)
