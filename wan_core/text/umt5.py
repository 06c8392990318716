"""UMT5 encoder: token ids to the context of the transformer. Every layer has its own table of relative positions.

B batch, L tokens, D width, H heads. Parameters carry the Hugging Face names (`keys.py` maps the official ones).
Source: Wan-Video/Wan2.2 wan/modules/t5.py at 42bf4cf; parity in tests/core/test_umt5.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import Ops, TorchOps

MAX_DISTANCE = 128  # tokens; further apart all distances share one bucket. Not stored in any file
FLOAT16_MARGIN = 1000.0  # below the largest float16, where the official code stops the residual stream


@dataclass(frozen=True)
class UMT5Config:
    """Sizes of one encoder; UMT5-XXL is 256384, 4096, 4096, 10240, 64, 24."""

    vocabulary: int
    dim: int
    attention_dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    num_buckets: int = 32
    eps: float = 1e-6

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> UMT5Config:
        """Reads the sizes from {parameter name: shape}.

        Raises:
            KeyError: the tensors are not a UMT5 encoder's (a plain T5 has one position table for all layers).
        """
        layers = {name.split(".")[2] for name in shapes if name.startswith("encoder.block.")}
        first, last = (f"encoder.block.{index}.layer" for index in (0, len(layers) - 1))
        buckets, heads = shapes[f"{last}.0.SelfAttention.relative_attention_bias.weight"]
        return cls(
            vocabulary=shapes["shared.weight"][0],
            dim=shapes["encoder.final_layer_norm.weight"][0],
            attention_dim=shapes[f"{first}.0.SelfAttention.q.weight"][0],
            ffn_dim=shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
            num_heads=heads,
            num_layers=len(layers),
            num_buckets=buckets,
        )


class Layers:
    """Makes the layers of one encoder: the host's classes, on one device, in one dtype."""

    def __init__(self, ops: type[Ops], device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.ops, self._device, self._dtype = ops, device, dtype

    def linear(self, inputs: int, outputs: int) -> nn.Linear:
        """UMT5 has no biases."""
        return self.ops.Linear(inputs, outputs, bias=False, device=self._device, dtype=self._dtype)

    def embedding(self, rows: int, width: int) -> nn.Embedding:
        """A table, looked up by row."""
        return self.ops.Embedding(rows, width, device=self._device, dtype=self._dtype)

    def norm(self, width: int, eps: float) -> nn.RMSNorm:
        """No mean is taken off, no bias added."""
        return self.ops.RMSNorm(width, eps=eps, device=self._device, dtype=self._dtype)


class SelfAttention(nn.Module):
    """Attention between all tokens, unscaled, biased by relative position."""

    def __init__(self, layers: Layers, config: UMT5Config) -> None:
        super().__init__()
        self.ops, self.num_heads = layers.ops, config.num_heads
        self.q = layers.linear(config.dim, config.attention_dim)
        self.k = layers.linear(config.dim, config.attention_dim)
        self.v = layers.linear(config.dim, config.attention_dim)
        self.o = layers.linear(config.attention_dim, config.dim)
        self.relative_attention_bias = layers.embedding(config.num_buckets, config.num_heads)

    def bias(self, buckets: Tensor, like: Tensor) -> Tensor:
        """buckets [L, L] -> what is added to the attention scores [1, H, L, L], in the dtype and place of `like`."""
        with self.ops.weights(self.relative_attention_bias, like) as (table, _):
            return functional.embedding(buckets, table).permute(2, 0, 1).unsqueeze(0)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor | None) -> Tensor:
        """x [B, L, D], buckets [L, L], padding [B, 1, 1, L] (True where no token is) -> [B, L, D]."""
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, L, d]
            for layer in (self.q, self.k, self.v)
        )
        bias = self.bias(buckets, query)
        if padding is not None:
            bias = bias.masked_fill(padding, torch.finfo(bias.dtype).min)
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.contiguous(), scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two layers, the first one gated."""

    def __init__(self, layers: Layers, config: UMT5Config) -> None:
        super().__init__()
        self.wi_0 = layers.linear(config.dim, config.ffn_dim)
        self.wi_1 = layers.linear(config.dim, config.ffn_dim)
        self.wo = layers.linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> [B, L, D]."""
        return self.wo(functional.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class AttentionLayer(nn.Module):
    """Norm and attention, added to the input."""

    def __init__(self, layers: Layers, config: UMT5Config) -> None:
        super().__init__()
        self.SelfAttention = SelfAttention(layers, config)
        self.layer_norm = layers.norm(config.dim, config.eps)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor | None) -> Tensor:
        """x [B, L, D], buckets [L, L], padding [B, 1, 1, L] -> [B, L, D]."""
        return bounded(x + self.SelfAttention(self.layer_norm(x), buckets, padding))


class FeedForwardLayer(nn.Module):
    """Norm and feed-forward, added to the input."""

    def __init__(self, layers: Layers, config: UMT5Config) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(layers, config)
        self.layer_norm = layers.norm(config.dim, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, D] -> the same shape."""
        return bounded(x + self.DenseReluDense(self.layer_norm(x)))


class Block(nn.Module):
    """One of the equal steps of the encoder."""

    def __init__(self, layers: Layers, config: UMT5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList((AttentionLayer(layers, config), FeedForwardLayer(layers, config)))

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor | None) -> Tensor:
        """x [B, L, D], buckets [L, L], padding [B, 1, 1, L] -> [B, L, D]."""
        attention, feed_forward = self.layer
        return feed_forward(attention(x, buckets, padding))


class Stack(nn.Module):
    """The layers and the last norm."""

    def __init__(self, layers: Layers, config: UMT5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(layers, config) for _ in range(config.num_layers))
        self.final_layer_norm = layers.norm(config.dim, config.eps)


class UMT5Encoder(nn.Module):
    """Text encoder of every Wan model."""

    def __init__(
        self,
        config: UMT5Config,
        *,
        ops: type[Ops] = TorchOps,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        layers = Layers(ops, device, dtype)
        self.shared = layers.embedding(config.vocabulary, config.dim)
        self.encoder = Stack(layers, config)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids [B, L], mask [B, L] (1 token, 0 padding; None: all tokens) -> context [B, L, D].

        Rows of padding hold numbers without meaning; `contexts` cuts them off.
        """
        return self.encode(self.shared(ids), mask)[0]

    def encode(
        self, x: Tensor, mask: Tensor | None = None, *, layer: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embedded tokens x [B, L, D] -> context [B, L, D], and what layer `layer` made before the last norm."""
        buckets = position_buckets(x.shape[1], self.config.num_buckets, device=x.device)
        padding = None if mask is None else (mask == 0)[:, None, None, :]
        kept = None
        for index, block in enumerate(self.encoder.block):
            x = block(x, buckets, padding)
            if index == layer:
                kept = x
        return self.encoder.final_layer_norm(x), kept


def contexts(hidden: Tensor, mask: Tensor) -> list[Tensor]:
    """hidden [B, L, D], mask [B, L] -> one context [tokens, D] per text, the padding cut off."""
    return [row[:length] for row, length in zip(hidden, mask.sum(dim=1).tolist(), strict=True)]


def position_buckets(tokens: int, buckets: int, *, device: torch.device | None = None) -> Tensor:
    """Row of the position table for each query (rows) and key (columns): int64 [tokens, tokens].

    Half of the table is for keys before the query, half for keys after it. In each half the first half of the rows are
    single distances, the rest grow with the logarithm of the distance up to MAX_DISTANCE.
    """
    positions = torch.arange(tokens, device=device)
    distance = positions[None, :] - positions[:, None]
    side, exact = buckets // 2, buckets // 4
    far = torch.log(distance.abs().clamp(min=1).float() / exact) / math.log(MAX_DISTANCE / exact) * (side - exact)
    row = torch.where(distance.abs() < exact, distance.abs(), (exact + far.long()).clamp(max=side - 1))
    return row + (distance > 0) * side


def bounded(x: Tensor) -> Tensor:
    """Keeps a float16 residual stream finite; every other dtype passes untouched."""
    if x.dtype != torch.float16:
        return x
    limit = torch.finfo(x.dtype).max - FLOAT16_MARGIN
    return x.clamp(-limit, limit)
