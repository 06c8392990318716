"""One transformer block: two attentions and a feed-forward, each added to the tokens.

B batch, L tokens, D width, H heads of d values, R rows of modulation. Parameter names are the official ones.
Source: Wan-Video/Wan2.2 wan/modules/model.py WanAttentionBlock at 42bf4cf. Linear layers and attention compute in the
stream's dtype; norms, rotation, modulation and gates in float32 (float64 for a float64 model).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from . import kernels
from .attention import attention, attention_in_8_bits
from .config import TransformerConfig
from .hooks import Attention as HostAttention
from .hooks import Hooks
from .kernels import Form, Rows8
from .ops import Ops
from .stream import Stream


def _attend(hooks: Hooks, own: HostAttention) -> HostAttention:
    return own if hooks.attention is None else hooks.attention


def _form(ops: type[Ops], stream: Stream, *layers: nn.Module) -> Form:
    """The form in which these layers, all of the same input, take it."""
    return ops.form(stream.time.device, stream.dtype, *layers, int8=stream.int8)


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
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.q = ops.Linear(config.dim, config.dim, **place)
        self.k = ops.Linear(config.dim, config.dim, **place)
        self.v = ops.Linear(config.dim, config.dim, **place)
        self.o = ops.Linear(config.dim, config.dim, **place)
        self.norm_q = ops.RMSNorm(config.dim, eps=config.eps, **place)
        self.norm_k = ops.RMSNorm(config.dim, eps=config.eps, **place)

    def form(self, stream: Stream, *layers: nn.Module) -> Form:
        """The form in which these layers, all of the same input, take it."""
        return _form(self.ops, stream, *layers)

    def normed(self, x: Tensor, norm: nn.Module, stream: Stream) -> Tensor:
        """RMS norm of x [B, L, D] with the weight of `norm`."""
        with self.ops.weights(norm, stream.time) as (weight, _):
            return kernels.rms_norm(x, weight, eps=self.eps)


class SelfAttention(Attention):
    """Attention among all tokens, queries and keys turned by their positions."""

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, stream: Stream, hooks: Hooks) -> Tensor:
        """x [B, L, D] and the modulation of its norm [B, R, D] -> [B, L, D] to be added under a gate."""
        form = self.form(stream, self.q, self.k, self.v)
        y = kernels.modulated_norm(x, shift, scale, stream.spans, eps=self.eps, form=form)
        q = self._turned(self.q(y), self.norm_q, stream)
        k = self._turned(self.k(y), self.norm_k, stream)
        v = self.v(y)
        del y  # the attention needs its memory
        attend = _attend(hooks, attention_in_8_bits if hooks.in_eight_bits else attention)
        out = attend(q.flatten(2), k.flatten(2), v, self.heads)
        for hook in hooks.self_attention:
            out = hook(out, q, k)
        del q, k, v  # the projection needs theirs
        out = kernels.formed(out, self.form(stream, self.o))
        return self.o(out)

    def _turned(self, x: Tensor, norm: nn.Module, stream: Stream) -> Tensor:
        """[B, L, D] -> [B, L, H, d]"""
        with self.ops.weights(norm, stream.time) as (weight, _):
            return kernels.rms_norm_rotate(x, weight, stream.rotation, self.heads, eps=self.eps)


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
            place: dict[str, Any] = {"device": device, "dtype": dtype}
            self.k_img = ops.Linear(config.dim, config.dim, **place)
            self.v_img = ops.Linear(config.dim, config.dim, **place)
            self.norm_k_img = ops.RMSNorm(config.dim, eps=config.eps, **place)

    def input_form(self, stream: Stream) -> Form:
        """The form that `queries` takes."""
        return self.form(stream, self.q)

    def queries(self, x: Tensor | Rows8, stream: Stream) -> Tensor:
        """x [B, L, D], normed -> [B, L, D]; apart from the rest, so that nobody holds x any longer by then."""
        return self.normed(self.q(x), self.norm_q, stream)

    def forward(self, q: Tensor, stream: Stream, hooks: Hooks) -> Tensor:
        """`queries` [B, L, D] -> [B, L, D] to be added as it is."""
        attend = _attend(hooks, attention)
        out = attend(q, *self._keys_and_values(stream.context, stream, hooks), self.heads)
        if stream.against is not None:
            k, v = self._keys_and_values(stream.against.text, stream, hooks)
            out = stream.against.steer(out, q, k, v, lambda q, k, v: attend(q, k, v, self.heads))
        for context in stream.extra_contexts:
            k = self.normed(self.k_img(context), self.norm_k_img, stream)
            out = out + attend(q, k, self.v_img(context), self.heads)
        out = kernels.formed(out, self.form(stream, self.o))
        return self.o(out)

    def _keys_and_values(self, text: Tensor, stream: Stream, hooks: Hooks) -> tuple[Tensor, Tensor]:
        """Of an embedded text [B, n, D]; computed once in a run that remembers them."""

        def compute() -> tuple[Tensor, Tensor]:
            return self.normed(self.k(text), self.norm_k, stream), self.v(text)

        return compute() if hooks.texts is None else hooks.texts.pair(text, self.k, compute)


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
        self.ops, self.eps = ops, config.eps
        self.parts = math.ceil(config.ffn_dim / config.dim)  # of the tokens: hidden, one is no larger than all were
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.self_attn = SelfAttention(config, ops=ops, **place)
        self.norm3 = ops.LayerNorm(config.dim, eps=config.eps, **place)
        self.cross_attn = CrossAttention(config, ops=ops, **place)
        self.ffn = nn.Sequential(
            ops.Linear(config.dim, config.ffn_dim, **place),
            nn.GELU(approximate="tanh"),
            ops.Linear(config.ffn_dim, config.dim, **place),
        )
        self.modulation = nn.Parameter(torch.zeros(1, 6, config.dim, **place))

    def forward(self, x: Tensor, stream: Stream, hooks: Hooks) -> Tensor:
        """x [B, L, D] -> [B, L, D]"""
        rows = stream.rows + self.ops.parameter(self, "modulation", stream.rows).unsqueeze(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = rows.unbind(2)
        spans, eps = stream.spans, self.eps
        attended = self.self_attn(x, shift1, scale1, stream, hooks)
        with self.ops.weights(self.norm3, stream.time) as (weight, bias):
            assert bias is not None
            form = self.cross_attn.input_form(stream)
            x, y = kernels.gated_add_norm(x, attended, gate1, spans, weight, bias, eps=eps, form=form)
        del attended  # dead tokens in between leave gaps that nothing fits into
        q = self.cross_attn.queries(y, stream)
        del y
        attended = self.cross_attn(q, stream, hooks)
        del q
        form = _form(self.ops, stream, self.ffn[0])
        if hooks.cross_attention:
            x = x + attended
            for hook in hooks.cross_attention:
                x = hook(x)
            y = kernels.modulated_norm(x, shift2, scale2, spans, eps=eps, form=form)
        else:
            x, y = kernels.add_modulated_norm(x, attended, shift2, scale2, spans, eps=eps, form=form)
        del attended  # the feed-forward's hidden tokens are the most that a block holds
        return kernels.gated_add(x, self._feed_forward(y, stream, hooks), gate2, spans)

    def _feed_forward(self, y: Tensor | Rows8, stream: Stream, hooks: Hooks) -> Tensor:
        first, _, second = self.ffn
        form = _form(self.ops, stream, second)
        if not hooks.sparing:
            return second(kernels.gelu(first(y), form))
        out = kernels.room_of(y)  # not joined in the end: parts that wait for it leave gaps that nothing fits into
        size = math.ceil(out.shape[1] / self.parts)
        for part, place in zip(kernels.split(y, size), out.split(size, 1), strict=True):
            place.copy_(second(kernels.gelu(first(part), form)))
        return out
