"""The reference of every fused kernel, in plain PyTorch: float32 inside (float64 for a float64 model)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..rope import rotate
from ..stream import Span
from .rows8 import Form, Rows8, formed


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, spans: Sequence[Span], *, eps: float, form: Form
) -> Tensor | Rows8:
    """See kernels.modulated_norm."""
    normed = F.layer_norm(wide(x), x.shape[-1:], eps=eps)
    kept = wide(x).dtype if form.values else form.dtype
    return formed(_by_span(lambda t, a, b: torch.addcmul(a, t, b).to(kept), spans, (normed,), (shift, 1 + scale)), form)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, form: Form) -> Tensor | Rows8:
    """See kernels.layer_norm."""
    return formed(F.layer_norm(wide(x), x.shape[-1:], weight, bias, eps), form)


def gated_add(x: Tensor, y: Tensor, gate: Tensor, spans: Sequence[Span]) -> Tensor:
    """See kernels.gated_add."""
    return _by_span(lambda t, u, g: torch.addcmul(t, u, g).to(x.dtype), spans, (x, y), (gate,))


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
    x = gated_add(x, y, gate, spans)
    return x, layer_norm(x, weight, bias, eps=eps, form=form)


def add_modulated_norm(
    x: Tensor, y: Tensor, shift: Tensor, scale: Tensor, spans: Sequence[Span], *, eps: float, form: Form
) -> tuple[Tensor, Tensor | Rows8]:
    """See kernels.add_modulated_norm."""
    x = x + y
    return x, modulated_norm(x, shift, scale, spans, eps=eps, form=form)


def gelu(x: Tensor, form: Form) -> Tensor | Rows8:
    """See kernels.gelu."""
    return formed(F.gelu(wide(x) if form.values else x, approximate="tanh"), form)


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """See kernels.rms_norm."""
    return _normed(x, weight, eps).to(x.dtype)


def rms_norm_rotate(x: Tensor, weight: Tensor, rotation: Tensor, heads: int, *, eps: float) -> Tensor:
    """See kernels.rms_norm_rotate."""
    return rotate(_normed(x, weight, eps).unflatten(2, (heads, -1)), rotation).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """PyTorch's scaled dot product, which picks among its own kernels: see wan_core.attention.attention."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, L, H * d] -> [B, H, L, d]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In the weight's dtype."""
    x = x.to(weight.dtype)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # F.rms_norm writes out the squares on CPU
    return x * torch.rsqrt(size.square() / x.shape[-1] + eps) * weight


def _by_span(
    function: Callable[..., Tensor], spans: Sequence[Span], tokens: Sequence[Tensor], rows: Sequence[Tensor]
) -> Tensor:
    """Calls function once per span with its tokens as [B, R, n, D] and its rows as [B, R, 1, D]; joins the results."""
    token_parts = zip(*(x.split([span.tokens for span in spans], dim=1) for x in tokens), strict=True)
    row_parts = zip(*(x.split([span.rows for span in spans], dim=1) for x in rows), strict=True)
    results = [
        function(*(x.unflatten(1, (span.rows, -1)) for x in parts), *(x.unsqueeze(2) for x in values)).flatten(1, 2)
        for span, parts, values in zip(spans, token_parts, row_parts, strict=True)
    ]
    return results[0] if len(results) == 1 else torch.cat(results, dim=1)
