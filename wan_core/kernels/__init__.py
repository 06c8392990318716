"""The small steps between the matrix products, each as one pass over memory where the device has a fused kernel.

`eager` is the readable reference; `fused` holds Triton kernels for NVIDIA and AMD. Which one runs is decided here, per
call, by `fused.accepts`: anything that it does not list goes through the reference. What goes into a linear layer is
returned in the `Form` that the layer takes (rows8.py); rows in int8 are turned and rounded (int8.py) after the step.
Shapes: B batch, L tokens, D width, H heads of d values, R rows of modulation, as in blocks.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..stream import Span
from ..weights import ggml as blocks
from ..weights.ggml_types import GgmlType
from . import eager, int8, rows8
from .eager import wide
from .int8 import Turned8
from .rows8 import Form, Rows8

try:
    from . import fused, ggml, int8_fused
except ImportError:  # no Triton: Windows without it, MPS, CPU builds of torch
    fused = ggml = int8_fused = None

__all__ = [
    "Form",
    "Rows8",
    "Turned8",
    "add_modulated_norm",
    "dequantize",
    "formed",
    "gated_add",
    "gated_add_norm",
    "gelu",
    "has_int8",
    "layer_norm",
    "linear8",
    "modulated_norm",
    "rms_norm",
    "rms_norm_rotate",
    "room_of",
    "split",
    "wide",
]


def dequantize(packed: Tensor, kind: GgmlType, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """packed uint8 [bytes] of one GGUF tensor -> weights [shape] in `dtype`, computed in float32."""
    if ggml is not None and ggml.accepts(packed, kind) and ggml.works(packed.device, dtype):
        return ggml.dequantize(packed, kind, shape, dtype)
    return blocks.dequantize(packed, kind, shape, dtype)


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, spans: Sequence[Span], *, eps: float, form: Form
) -> Tensor | Rows8:
    """LayerNorm(x) * (1 + scale) + shift for x [B, L, D], shift and scale [B, R, D]."""
    way = fused if fused is not None and fused.accepts(x, shift, scale) else eager
    return _rounded(way.modulated_norm(x, shift, scale, spans, eps=eps, form=form.written), form)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, form: Form) -> Tensor | Rows8:
    """LayerNorm(x) * weight + bias for x [B, L, D]."""
    way = fused if fused is not None and fused.accepts(x, weight, bias) else eager
    return _rounded(way.layer_norm(x, weight, bias, eps=eps, form=form.written), form)


def gated_add(x: Tensor, y: Tensor, gate: Tensor, spans: Sequence[Span]) -> Tensor:
    """x + y * gate for x, y [B, L, D] and gate [B, R, D]; may write the result, in x's dtype, into x."""
    if fused is not None and fused.accepts(x, y, gate):
        return fused.gated_add(x, y, gate, spans, in_place=_is_free(x))
    return eager.gated_add(x, y, gate, spans)


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
    """Returns z = x + y * gate and LayerNorm(z) * weight + bias."""
    way = fused if fused is not None and fused.accepts(x, y, gate, weight, bias) else eager
    z, normed = way.gated_add_norm(x, y, gate, spans, weight, bias, eps=eps, form=form.written)
    return z, _rounded(normed, form)


def add_modulated_norm(
    x: Tensor, y: Tensor, shift: Tensor, scale: Tensor, spans: Sequence[Span], *, eps: float, form: Form
) -> tuple[Tensor, Tensor | Rows8]:
    """Returns z = x + y and LayerNorm(z) * (1 + scale) + shift."""
    way = fused if fused is not None and fused.accepts(x, y, shift, scale) else eager
    z, normed = way.add_modulated_norm(x, y, shift, scale, spans, eps=eps, form=form.written)
    return z, _rounded(normed, form)


def gelu(x: Tensor, form: Form) -> Tensor | Rows8:
    """GELU by its tanh approximation, for x [B, L, D]; may write the result into x, which is twice the tokens' size."""
    if form.written.values is None:
        x = torch.ops.aten.gelu_(x, approximate="tanh") if _is_free(x) else F.gelu(x, approximate="tanh")
        return _rounded(x, form)
    way = fused if fused is not None and fused.accepts(x) else eager
    return way.gelu(x, form)


def _is_free(x: Tensor) -> bool:
    """True if nobody will ask for x again: neither a gradient nor a trace."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling() or x.requires_grad)


def split(x: Tensor | Rows8, size: int) -> tuple[Tensor | Rows8, ...]:
    """Successive parts of `size` tokens of x [B, L, D], the last one with what is left."""
    return x.split(size) if isinstance(x, Rows8) else x.split(size, 1)


def room_of(x: Tensor | Rows8) -> Tensor:
    """Room for what comes of x [B, L, D], part by part: that of x itself where nobody will ask for it again."""
    if isinstance(x, Rows8):
        return torch.empty(x.values.shape, dtype=x.dtype, device=x.values.device)
    return x if _is_free(x) else torch.empty_like(x)


def formed(x: Tensor, form: Form) -> Tensor | Rows8:
    """x [B, L, D] in the form that a layer takes."""
    if form.written.values is None:
        return _rounded(x, form)
    way = fused if fused is not None and fused.accepts(x) else rows8
    return way.formed(x, form)


def _rounded(x: Tensor | Rows8, form: Form) -> Tensor | Rows8:
    """x [B, L, D], as a kernel leaves it in `form.written`, in `form`."""
    if form.written == form or isinstance(x, Rows8):
        return x
    x = x.contiguous()
    way = int8_fused if int8_fused is not None and int8_fused.accepts(x) else int8
    return int8.formed(x, form, way.rounded_rows)


def has_int8(device: torch.device) -> bool:
    """Whether layers over Turned8 have fused kernels on a device: without them nothing is gained."""
    return int8_fused is not None and int8_fused.works(device)


def linear8(x: Turned8, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, L, K], weight [N, K] in floating point, which is rounded by rows, bias [N] -> [B, L, N] in x.dtype."""
    if int8_fused is None or not int8_fused.accepts(weight):
        return int8.linear(x, weight, bias)
    values, scale = x.values.contiguous(), x.scale.contiguous()  # parts of several samples have gaps
    return int8_fused.product(values, scale, *int8_fused.rounded_rows(weight), bias, x.dtype)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """RMS norm of x [B, L, D] over the whole width, all heads together; may write the result, in x's dtype, into x."""
    if fused is not None and fused.accepts(x, weight):
        return fused.rms_norm(x, weight, eps=eps, in_place=_is_free(x))
    return eager.rms_norm(x, weight, eps=eps)


def rms_norm_rotate(x: Tensor, weight: Tensor, rotation: Tensor, heads: int, *, eps: float) -> Tensor:
    """RMS norm over the width, then the rotation [1, L, 1, d / 2] of rope.py: [B, L, D] -> [B, L, H, d], x's dtype.

    May write the result into x.
    """
    if fused is not None and fused.can_rotate(rotation) and fused.accepts(x, weight):
        return fused.rms_norm_rotate(x, weight, rotation, heads, eps=eps, in_place=_is_free(x))
    return eager.rms_norm_rotate(x, weight, rotation, heads, eps=eps)
