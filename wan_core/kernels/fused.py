"""The kernels of eager.py as Triton programs (programs.py): each token is read once and written once.

Parity: tests/core/test_kernels.py, on CPU through Triton's interpreter (TRITON_INTERPRET=1).
"""

# Triton compiles the programs: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportReturnType=false

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from ..stream import Span
from . import programs
from .rows8 import FLOAT8, Form, Rows8
from .trial import works

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
MAX_WIDTH = 16384  # a row has to fit the registers of one program
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # kernels run on CPU tensors then, for tests
STORED = torch.float32 if INTERPRETED else FLOAT8  # the interpreter loses the carry of 127 to 128: torch rounds there
GROUPS = (4, 2, 1)


def accepts(x: Tensor, *others: Tensor) -> bool:
    """True where the kernels take these tensors: on a GPU, float, rows contiguous, no gradient and no tracing."""
    tensors = (x, *others)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return False  # the compiler fuses the reference itself; gradients flow through the reference
    fits = x.shape[-1] <= MAX_WIDTH and all(
        (t.is_cuda or INTERPRETED) and t.dtype in FLOATS and t.stride(-1) == 1 for t in tensors
    )
    return fits and works(x.device, x.dtype)


def can_rotate(rotation: Tensor) -> bool:
    """True for complex64 and heads of a power of two."""
    half = rotation.shape[-1]
    return rotation.dtype == torch.complex64 and half & (half - 1) == 0


def _launch(width: int, least: int = 16) -> dict[str, int]:
    """Two blocks that hold a row, of `least` values or more, and warps: measured at 5120 and, for GELU's, 13824."""
    first = max(1 << (width.bit_length() - 1), least)
    rest = max(triton.next_power_of_2(max(width - first, 1)), least)
    return {"FIRST": first, "REST": rest, "num_warps": 4 if first + rest <= 8192 else 8}


def _group(share: int) -> int:
    """Tokens to a program, so that a row of modulation is read once for several of its `share` tokens."""
    return next(group for group in GROUPS if share % group == 0)


def _pieces(x: Tensor, spans: Sequence[Span]) -> list[tuple[slice, slice, int]]:
    """Tokens, rows of modulation and tokens per row of each span."""
    pieces, token, row = [], 0, 0
    for span in spans:
        pieces.append((slice(token, token + span.tokens), slice(row, row + span.rows), span.tokens // span.rows))
        token, row = token + span.tokens, row + span.rows
    assert token == x.shape[1]
    return pieces


def _like(x: Tensor, form: Form) -> Tensor | Rows8:
    """Room for the tokens x [B, L, D] in a form."""
    if form.values is None:
        return torch.empty(x.shape, dtype=form.dtype, device=x.device)
    return Rows8(
        torch.empty(x.shape, dtype=STORED, device=x.device),
        torch.empty(*x.shape[:2], 1, dtype=torch.float32, device=x.device),
        form.dtype,
        torch.empty(x.shape, dtype=form.dtype, device=x.device) if form.exact else None,
    )


def _done(out: Tensor | Rows8) -> Tensor | Rows8:
    return replace(out, values=out.values.to(FLOAT8)) if isinstance(out, Rows8) and STORED is not FLOAT8 else out


def _targets(out: Tensor | Rows8, tokens: slice) -> tuple[Tensor, Tensor, Tensor, dict[str, bool]]:
    """Values, scales, exact tokens (or any tensor in the place of absent ones), and which are there, of some tokens."""
    if isinstance(out, Tensor):
        part = out[:, tokens]
        return part, part, part, {"EIGHT": False, "EXACT": False}
    values, exact = out.values[:, tokens], out.values if out.exact is None else out.exact
    return values, out.scale[:, tokens], exact[:, tokens], {"EIGHT": True, "EXACT": out.exact is not None}


def _batch_step(rows: Tensor) -> int:
    """From one sample's rows to the next one's; rows that all samples share stay."""
    return rows.stride(0) if rows.shape[0] > 1 else 0


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, spans: Sequence[Span], *, eps: float, form: Form
) -> Tensor | Rows8:
    """See kernels.modulated_norm."""
    return _norm(x, None, None, scale, shift, spans, spans, eps, form, add_one=True)[1]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, form: Form) -> Tensor | Rows8:
    """See kernels.layer_norm."""
    spans = (Span(x.shape[1], 1),)
    return _norm(x, None, None, weight[None, None], bias[None, None], spans, spans, eps, form, add_one=False)[1]


def gated_add_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    spans: Sequence[Span],
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
    form: Form,
) -> tuple[Tensor, Tensor | Rows8]:
    """See kernels.gated_add_norm."""
    row = (1, len(spans), x.shape[-1])  # one row to each span
    whole = [Span(span.tokens, 1) for span in spans]
    return _norm(x, y, gate, weight.expand(row), bias.expand(row), spans, whole, eps, form, add_one=False)


def add_modulated_norm(
    x: Tensor, y: Tensor, shift: Tensor, scale: Tensor, spans: Sequence[Span], *, eps: float, form: Form
) -> tuple[Tensor, Tensor | Rows8]:
    """See kernels.add_modulated_norm."""
    return _norm(x, y, None, scale, shift, spans, spans, eps, form, add_one=True)


def _norm(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    gate_spans: Sequence[Span],
    spans: Sequence[Span],
    eps: float,
    form: Form,
    *,
    add_one: bool,
) -> tuple[Tensor, Tensor | Rows8]:
    """weight and bias [1 or B, rows of `spans`, D], gate [1 or B, rows of `gate_spans`, D]."""
    if weight.stride() != bias.stride():  # the kernel walks both with one set of strides
        weight, bias = weight.contiguous(), bias.contiguous()
    batch, length, width = x.shape
    total = x if y is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    result = _like(x, form)
    for (tokens, gates, gate_share), (_, rows, share) in zip(_pieces(x, gate_spans), _pieces(x, spans), strict=True):
        part, sums = x[:, tokens], total[:, tokens]
        added = part if y is None else y[:, tokens]
        factor = part if gate is None else gate[:, gates]
        out, scales, exact, kinds = _targets(result, tokens)
        group = 1 if gate is not None else _group(share)  # three rows to keep are more than the registers hold
        programs.norm_kernel[(part.shape[1] // group, batch)](
            part, added, factor, sums, weight[:, rows], bias[:, rows], out, scales, exact,
            width, gate_share, share, eps,
            part.stride(0), part.stride(1), added.stride(0), added.stride(1), _batch_step(factor), factor.stride(1),
            _batch_step(weight), weight.stride(1), out.stride(0), out.stride(1), length,
            ADD=y is not None, GATE=gate is not None, ADD_ONE=add_one, **kinds, GROUP=group, **_launch(width),
        )  # fmt: skip
    return total, _done(result)


def gelu(x: Tensor, form: Form) -> Tensor | Rows8:
    """See kernels.gelu."""
    return _formed(x, form, gelu=True)


def formed(x: Tensor, form: Form) -> Tensor | Rows8:
    """See kernels.formed."""
    return _formed(x, form, gelu=False)


def _formed(x: Tensor, form: Form, *, gelu: bool) -> Tensor | Rows8:
    batch, tokens, width = x.shape
    result = _like(x, form)
    out, scales, exact, kinds = _targets(result, slice(None))
    assert kinds["EIGHT"]  # nothing else is asked for
    options: dict[str, Any] = {"GELU": gelu, "EXACT": kinds["EXACT"], **_launch(width)}
    programs.form_kernel[(tokens, batch)](
        x, out, scales, exact,
        width, x.stride(0), x.stride(1), out.stride(0), out.stride(1), tokens,
        **options,
    )  # fmt: skip
    return _done(result)


def gated_add(x: Tensor, y: Tensor, gate: Tensor, spans: Sequence[Span], *, in_place: bool = False) -> Tensor:
    """See kernels.gated_add."""
    batch, _, width = x.shape
    result = x if in_place else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    for tokens, rows, share in _pieces(x, spans):
        part, added, factor, out = x[:, tokens], y[:, tokens], gate[:, rows], result[:, tokens]
        group = _group(share)
        programs.gated_add_kernel[(part.shape[1] // group, batch)](
            part, added, factor, out,
            width, share,
            part.stride(0), part.stride(1), added.stride(0), added.stride(1), _batch_step(factor), factor.stride(1),
            out.stride(0), out.stride(1),
            GROUP=group, **_launch(width),
        )  # fmt: skip
    return result


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, in_place: bool = False) -> Tensor:
    """See kernels.rms_norm."""
    return _rms(x, _result(x, in_place), weight, weight, 1, eps, rotate=False)


def rms_norm_rotate(
    x: Tensor, weight: Tensor, rotation: Tensor, heads: int, *, eps: float, in_place: bool = False
) -> Tensor:
    """See kernels.rms_norm_rotate."""
    turns = torch.view_as_real(rotation.contiguous())
    out = _result(x, in_place)
    return _rms(x, out, weight, turns, rotation.shape[-1], eps, rotate=True).unflatten(2, (heads, -1))


def _result(x: Tensor, in_place: bool) -> Tensor:
    return x if in_place else torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _rms(x: Tensor, out: Tensor, weight: Tensor, turns: Tensor, half: int, eps: float, *, rotate: bool) -> Tensor:
    batch, tokens, width = x.shape
    group = _group(tokens)
    programs.rms_norm_kernel[(tokens // group, batch)](
        x, weight, turns, out,
        width, eps,
        x.stride(0), x.stride(1), out.stride(0), out.stride(1),
        ROTATE=rotate, HALF=half, GROUP=group, **_launch(width, 2 * half),
    )  # fmt: skip
    return out
