"""Triton kernels, one program per token: a row of the width is read once, worked on in float32, and written once.

Parity with eager.py: tests/core/test_kernels.py, on CPU through Triton's interpreter (TRITON_INTERPRET=1).
"""

# Triton compiles these functions: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportReturnType=false

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..stream import Span

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
MAX_WIDTH = 16384  # a row has to fit the registers of one program
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on CPU tensors then, for tests


def accepts(x: Tensor, *others: Tensor) -> bool:
    """True where the kernels take these tensors: on a GPU, float, rows contiguous, no gradient and no tracing."""
    tensors = (x, *others)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return False  # the compiler fuses the reference itself; gradients flow through the reference
    return x.shape[-1] <= MAX_WIDTH and all(
        (t.is_cuda or INTERPRETED) and t.dtype in FLOATS and t.stride(-1) == 1 for t in tensors
    )


@triton.jit
def _layer_norm_kernel(
    x, weight, bias, out,
    width, share, eps,
    x_batch, x_token, row_batch, row_step, out_batch, out_token,
    ADD_ONE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """LayerNorm of one token, times its row of weight (+ 1), plus its row of bias; `share` tokens have one row."""
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, value - tl.sum(value) / width, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred) / width + eps)
    row = batch * row_batch + (token // share) * row_step + columns
    factor = tl.load(weight + row, mask=inside, other=0.0).to(tl.float32)
    if ADD_ONE:
        factor += 1.0
    result = normed * factor + tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    place = out + batch * out_batch + token * out_token + columns
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_add_kernel(
    x, y, gate, out,
    width, share,
    x_batch, x_token, y_batch, y_token, row_batch, row_step, out_batch, out_token,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """x + y * gate of one token; `share` tokens have one row of the gate."""
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
    added = tl.load(y + batch * y_batch + token * y_token + columns, mask=inside, other=0.0).to(tl.float32)
    row = batch * row_batch + (token // share) * row_step + columns
    result = value + added * tl.load(gate + row, mask=inside, other=0.0).to(tl.float32)
    place = out + batch * out_batch + token * out_token + columns
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _rms_norm_kernel(
    x, weight, turns, out,
    width, half, eps,
    x_batch, x_token, out_batch, out_token,
    ROTATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """RMS norm of one token over the width; then neighbouring values turn by the token's `half` complex numbers."""
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    value = tl.load(x + batch * x_batch + token * x_token + columns, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    result = value * tl.rsqrt(tl.sum(value * value) / width + eps) * factor
    if ROTATE:
        real, imaginary = tl.split(tl.reshape(result, (BLOCK // 2, 2)))
        turn = turns + 2 * (token * half + tl.arange(0, BLOCK // 2) % half)
        cosine, sine = tl.load(turn), tl.load(turn + 1)
        pair = tl.join(real * cosine - imaginary * sine, real * sine + imaginary * cosine)
        result = tl.reshape(pair, (BLOCK,))
    place = out + batch * out_batch + token * out_token + columns
    tl.store(place, result.to(out.dtype.element_ty), mask=inside)


def _launch(width: int) -> dict[str, int]:
    """Block size and warps for rows of `width` values."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": 4 if block <= 2048 else 8}


def _pieces(x: Tensor, spans: Sequence[Span]) -> list[tuple[slice, slice, int]]:
    """Tokens, rows of modulation and tokens per row of each span."""
    pieces, token, row = [], 0, 0
    for span in spans:
        pieces.append((slice(token, token + span.tokens), slice(row, row + span.rows), span.tokens // span.rows))
        token, row = token + span.tokens, row + span.rows
    assert token == x.shape[1]
    return pieces


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, spans: Sequence[Span], *, eps: float, dtype: torch.dtype
) -> Tensor:
    """See kernels.modulated_norm."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    if shift.stride() != scale.stride():  # the kernel walks both with one set of strides
        shift, scale = shift.contiguous(), scale.contiguous()
    for tokens, rows, share in _pieces(x, spans):
        _norm(x[:, tokens], scale[:, rows], shift[:, rows], out[:, tokens], share, eps, add_one=True)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype) -> Tensor:
    """See kernels.layer_norm."""
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    row = (1, 1, x.shape[-1])
    _norm(x, weight.reshape(row), bias.reshape(row), out, x.shape[1], eps, add_one=False)
    return out


def _norm(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, share: int, eps: float, *, add_one: bool) -> None:
    batch, tokens, width = x.shape
    row_batch = weight.stride(0) if weight.shape[0] > 1 else 0
    _layer_norm_kernel[(tokens, batch)](
        x, weight, bias, out,
        width, share, eps,
        x.stride(0), x.stride(1), row_batch, weight.stride(1), out.stride(0), out.stride(1),
        ADD_ONE=add_one, **_launch(width),
    )  # fmt: skip


def gated_add(x: Tensor, y: Tensor, gate: Tensor, spans: Sequence[Span]) -> Tensor:
    """See kernels.gated_add."""
    batch, _, width = x.shape
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for tokens, rows, share in _pieces(x, spans):
        part, added, factor, out = x[:, tokens], y[:, tokens], gate[:, rows], result[:, tokens]
        row_batch = factor.stride(0) if factor.shape[0] > 1 else 0
        _gated_add_kernel[(part.shape[1], batch)](
            part, added, factor, out,
            width, share,
            part.stride(0), part.stride(1), added.stride(0), added.stride(1), row_batch, factor.stride(1),
            out.stride(0), out.stride(1),
            **_launch(width),
        )  # fmt: skip
    return result


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """See kernels.rms_norm."""
    return _rms(x, weight, weight, 1, eps, rotate=False)


def rms_norm_rotate(x: Tensor, weight: Tensor, rotation: Tensor, heads: int, *, eps: float) -> Tensor:
    """See kernels.rms_norm_rotate."""
    turns = torch.view_as_real(rotation.contiguous())
    return _rms(x, weight, turns, rotation.shape[-1], eps, rotate=True).unflatten(2, (heads, -1))


def _rms(x: Tensor, weight: Tensor, turns: Tensor, half: int, eps: float, *, rotate: bool) -> Tensor:
    batch, tokens, width = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _rms_norm_kernel[(tokens, batch)](
        x, weight, turns, out,
        width, half, eps,
        x.stride(0), x.stride(1), out.stride(0), out.stride(1),
        ROTATE=rotate, **_launch(width),
    )  # fmt: skip
    return out
