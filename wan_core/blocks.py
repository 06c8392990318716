"""One transformer block and the small functions that a fused kernel may replace.

B batch, L tokens, D width, H heads of d values, R rows of modulation. Parameter names are the official ones.
Source: Wan-Video/Wan2.2 wan/modules/model.py WanAttentionBlock at 42bf4cf. Linear layers and attention compute in the
stream's dtype; norms, rotation, modulation and gates in float32 (float64 for a float64 model).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attention
from .config import TransformerConfig
from .hooks import Hooks
from .ops import Ops
from .rope import rotate
from .stream import Span, Stream


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, spans: Sequence[Span], *, eps: float, dtype: torch.dtype
) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift for x [B, L, D], shift and scale [B, R, D]; returns `dtype`."""
    normed = F.layer_norm(wide(x), x.shape[-1:], eps=eps)
    return _by_span(lambda t, a, b: torch.addcmul(a, t, b).to(dtype), spans, (normed,), (shift, 1 + scale))


def gated_add(x: Tensor, y: Tensor, gate: Tensor, spans: Sequence[Span]) -> Tensor:
    """x + y * gate for x, y [B, L, D] and gate [B, R, D]; returns x's dtype."""
    return _by_span(lambda t, u, g: torch.addcmul(t, u, g).to(x.dtype), spans, (x, y), (gate,))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm over the whole width, all heads together; returns the weight's dtype."""
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


class Attention(nn.Module):
    """The projections that both attentions have; queries and keys are normed over the width, all heads together."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        ops: type[Ops],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.ops, self.heads, self.eps = ops, config.num_heads, config.eps
        place = {"device": device, "dtype": dtype}
        self.q = ops.Linear(config.dim, config.dim, **place)
        self.k = ops.Linear(config.dim, config.dim, **place)
        self.v = ops.Linear(config.dim, config.dim, **place)
        self.o = ops.Linear(config.dim, config.dim, **place)
        self.norm_q = ops.RMSNorm(config.dim, eps=config.eps, **place)
        self.norm_k = ops.RMSNorm(config.dim, eps=config.eps, **place)

    def normed(self, x: Tensor, norm: nn.Module, like: Tensor) -> Tensor:
        """RMS norm of x [B, L, D] with the weight of `norm`, in `like`'s dtype."""
        with self.ops.weights(norm, like) as (weight, _):
            return rms_norm(x, weight, self.eps)


class SelfAttention(Attention):
    """Attention among all tokens, queries and keys turned by their positions."""

    def forward(self, x: Tensor, stream: Stream, hooks: Hooks) -> Tensor:
        """x [B, L, D], normed and modulated -> [B, L, D] to be added under a gate."""
        q = self._turned(self.q(x), self.norm_q, stream)
        k = self._turned(self.k(x), self.norm_k, stream)
        out = (hooks.attention or attention)(q.flatten(2), k.flatten(2), self.v(x), self.heads)
        for hook in hooks.self_attention:
            out = hook(out, q, k)
        return self.o(out)

    def _turned(self, x: Tensor, norm: nn.Module, stream: Stream) -> Tensor:
        """[B, L, D] -> [B, L, H, d]"""
        heads = self.normed(x, norm, stream.time).unflatten(2, (self.heads, -1))
        return rotate(heads, stream.rotation).to(x.dtype)


class CrossAttention(Attention):
    """Attention of the tokens to the text, and to pictures where the checkpoint has projections for them."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        ops: type[Ops],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(config, ops=ops, device=device, dtype=dtype)
        if config.image_dim:
            place = {"device": device, "dtype": dtype}
            self.k_img = ops.Linear(config.dim, config.dim, **place)
            self.v_img = ops.Linear(config.dim, config.dim, **place)
            self.norm_k_img = ops.RMSNorm(config.dim, eps=config.eps, **place)

    def forward(self, x: Tensor, stream: Stream, hooks: Hooks) -> Tensor:
        """x [B, L, D], normed -> [B, L, D] to be added as it is."""
        attend = hooks.attention or attention
        q = self.normed(self.q(x), self.norm_q, stream.time).to(x.dtype)
        k = self.normed(self.k(stream.context), self.norm_k, stream.time).to(x.dtype)
        out = attend(q, k, self.v(stream.context), self.heads)
        for context in stream.extra_contexts:
            k = self.normed(self.k_img(context), self.norm_k_img, stream.time).to(x.dtype)
            out = out + attend(q, k, self.v_img(context), self.heads)
        return self.o(out)


class Block(nn.Module):
    """Self-attention under a gate, cross-attention, feed-forward under a gate; each adds to the tokens."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        ops: type[Ops],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.eps = config.eps
        place = {"device": device, "dtype": dtype}
        self.self_attn = SelfAttention(config, ops=ops, **place)
        self.norm3 = ops.LayerNorm(config.dim, eps=config.eps, **place)
        self.cross_attn = CrossAttention(config, ops=ops, **place)
        self.ffn = nn.Sequential(
            ops.Linear(config.dim, config.ffn_dim, **place),
            nn.GELU(approximate="tanh"),
            ops.Linear(config.ffn_dim, config.dim, **place),
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim, **place))

    def forward(
        self, x: Tensor, stream: Stream, hooks: Hooks, between: Sequence[Callable[[Tensor], Tensor]] = ()
    ) -> Tensor:
        """x [B, L, D] -> [B, L, D]; `between` acts on the tokens before the feed-forward."""
        rows = stream.rows + self.modulation.to(stream.rows).unsqueeze(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = rows.unbind(2)
        y = modulated_norm(x, shift1, scale1, stream.spans, eps=self.eps, dtype=stream.dtype)
        x = gated_add(x, self.self_attn(y, stream, hooks), gate1, stream.spans)
        x = x + self.cross_attn(self.norm3(wide(x)).to(stream.dtype), stream, hooks)
        for hook in (*hooks.cross_attention, *between):
            x = hook(x)
        y = modulated_norm(x, shift2, scale2, stream.spans, eps=self.eps, dtype=stream.dtype)
        return gated_add(x, self.ffn(y), gate2, stream.spans)
