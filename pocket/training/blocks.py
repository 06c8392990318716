"""The transformer's block as training computes it: the same arithmetic as wan_core's, in a form that compiles well.

Rotations are real, the text's rows of padding are one row with a raised score, and the two together are what
torch.compile turns into few kernels. tests/pocket holds it against the block itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _pop_mode_temporarily

from ...wan_core.hooks import Hooks
from ...wan_core.stream import Stream
from ...wan_core.text.tokenizer import TEXT_TOKENS
from ...wan_core.transformer import WanTransformer

TEXT_ROWS = 72  # rows of text that training computes; the rest of the 512 are copies of the last one


def block_step(
    weights: dict[str, Tensor],
    x: Tensor,
    rows: Tensor,
    context: Tensor,
    scores: Tensor,
    cos: Tensor,
    sin: Tensor,
    spans: tuple[tuple[int, int], ...],
    heads: int,
    eps: float,
) -> Tensor:
    """Tokens x [B, L, D] through one block; rows [B, R, 6, D], scores [n] are added for each row of the context."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, weights[f"{name}.weight"].to(y), weights[f"{name}.bias"].to(y))

    def at_once(layer: str, names: str, y: Tensor) -> tuple[Tensor, ...]:
        """Several products of y as one: of small matrices one costs as much as three, and so do its gradients."""
        weight, bias = (torch.cat([weights[f"{layer}.{name}.{part}"] for name in names]) for part in ("weight", "bias"))
        return F.linear(y, weight.to(y), bias.to(y)).chunk(len(names), dim=-1)

    def normed(name: str, y: Tensor) -> Tensor:
        wide = y.float()
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weights[f"{name}.weight"].float()

    def turned(y: Tensor) -> Tensor:
        even, odd = y.unflatten(2, (heads, -1, 2)).unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def spread(values: Tensor) -> Tensor:
        """[B, R, D] -> one for each token, or for all."""
        if values.shape[1] == 1:
            return values
        parts = values.split([count for _, count in spans], dim=1)
        each = [part.repeat_interleave(n // k, dim=1) for part, (n, k) in zip(parts, spans, strict=True)]
        return torch.cat(each, dim=1)

    def modulated(y: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return (F.layer_norm(y.float(), y.shape[-1:], eps=eps) * (1 + spread(scale)) + spread(shift)).to(y.dtype)

    def split(y: Tensor) -> Tensor:
        return y.to(x.dtype).transpose(1, 2)

    modulation = rows + weights["modulation"].float().unsqueeze(1)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(2)
    y = modulated(x, shift1, scale1)
    q, k, v = at_once("self_attn", "qkv", y)
    q, k = turned(normed("self_attn.norm_q", q)), turned(normed("self_attn.norm_k", k))
    v = v.unflatten(2, (heads, -1))
    y = F.scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2)
    x = (x + linear("self_attn.o", y) * spread(gate1)).to(x.dtype)
    y = F.layer_norm(x.float(), x.shape[-1:], weights["norm3.weight"].float(), weights["norm3.bias"].float(), eps)
    q = normed("cross_attn.norm_q", linear("cross_attn.q", y.to(x.dtype)))
    k, v = at_once("cross_attn", "kv", context)
    k = normed("cross_attn.norm_k", k)
    q, k, v = (split(t.unflatten(2, (heads, -1))) for t in (q, k, v))
    share = ((q @ k.mT).float() * q.shape[-1] ** -0.5 + scores).softmax(-1).to(x.dtype)
    x = x + linear("cross_attn.o", (share @ v).transpose(1, 2).flatten(2))
    y = modulated(x, shift2, scale2)
    y = linear("ffn.2", F.gelu(linear("ffn.0", y), approximate="tanh"))
    return (x + y * spread(gate2)).to(x.dtype)


def patches(layer: nn.Conv3d) -> Callable[[Tensor], Tensor]:
    """The patch embedding as a matrix product, which the small convolution is slow at."""

    bias = layer.bias
    assert bias is not None

    def forward(video: Tensor) -> Tensor:
        parts = video.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 2, 3, 5, 1, 4, 6).flatten(4)
        return F.linear(parts, layer.weight.flatten(1).to(parts), bias.to(parts)).movedim(-1, 1)

    return forward


def no_modes() -> AbstractContextManager[Any]:
    """Leaves `with torch.device(...)` for what is compiled: the compiler cannot trace through it."""
    return _pop_mode_temporarily() if torch._C._len_torch_function_stack() else nullcontext()


@cache
def _compiled() -> Any:
    torch._dynamo.config.cache_size_limit = 64
    return torch.compile(block_step, dynamic=False)


def training_hooks(
    model: WanTransformer, device: torch.device, weights_of: Callable[[int], dict[str, Tensor]] | None = None
) -> Hooks:
    """Makes a training forward compute TEXT_ROWS rows of text, through blocks that are compiled on a GPU.

    The rows of padding are equal, so 512 of them weigh in the cross-attention as one does whose score is raised by the
    logarithm of their number. `weights_of` gives the weights of a block where they are not its own.
    """
    model.config = replace(model.config, text_len=TEXT_ROWS)
    model.patch_embedding.forward = patches(model.patch_embedding)
    own = [dict(block.named_parameters()) for block in model.blocks]
    run = runner(model, device)

    def hook(index: int) -> Any:
        return lambda x, stream, _block: run(own[index] if weights_of is None else weights_of(index), x, stream)

    return Hooks(replace_block={index: hook(index) for index in range(model.num_layers)})


def runner(model: WanTransformer, device: torch.device) -> Callable[[dict[str, Tensor], Tensor, Stream], Tensor]:
    """Computes one block of such a training forward from its weights: compiled on a GPU."""
    copies = TEXT_TOKENS - TEXT_ROWS + 1
    scores = torch.zeros(TEXT_ROWS, device=device)
    scores[-1] = math.log(copies)
    step = _compiled() if device.type == "cuda" else block_step

    def run(weights: dict[str, Tensor], x: Tensor, stream: Stream) -> Tensor:
        turns = stream.rotation
        spans = tuple((span.tokens, span.rows) for span in stream.spans)
        cos, sin = turns.real.contiguous(), turns.imag.contiguous()
        sizes = spans, model.num_heads, model.config.eps
        with no_modes():
            return step(weights, x, stream.rows, stream.context, scores, cos, sin, *sizes)

    return run
