"""What the model needs of its host: layer classes, weights for fused kernels, and the order of the blocks.

`TorchOps` is plain PyTorch. A host passes its own class with the same members, to keep weights quantised, to move
them while they are used, or to fetch the next block's ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, dtype, nn

from .kernels.rows8 import Form


class Ops(Protocol):
    """Layer classes take the arguments of torch's plus `device=` and `dtype=`.

    Every layer computes in the dtype of its input, whatever its weights are stored in: the model asks for float32
    arithmetic by passing float32.
    """

    Linear: Any
    Conv1d: Any
    Conv2d: Any
    Conv3d: Any
    LayerNorm: Any
    RMSNorm: Any
    Embedding: Any

    @staticmethod
    def weights(module: nn.Module, like: Tensor) -> AbstractContextManager[tuple[Tensor, Tensor | None]]:
        """Yields weight and bias of a layer on `like`'s device and in its dtype, for the time of the context."""
        ...

    @staticmethod
    def parameter(module: nn.Module, name: str, like: Tensor) -> Tensor:
        """A parameter of a module that is no layer, on `like`'s device and in its dtype."""
        ...

    @staticmethod
    def form(device: torch.device, dtype: torch.dtype, *layers: nn.Module, int8: bool = False) -> Form:
        """The form of the tokens, otherwise of `dtype`, that all of these Linear layers take.

        int8: they are to multiply in int8 where the host can.
        """
        ...

    @staticmethod
    def stream(blocks: Iterable[nn.Module], device: torch.device, options: Any) -> Iterator[tuple[int, nn.Module]]:
        """Yields (index, block) in order; `options` is what the host put into its hooks."""
        ...


def _cast(layer: Any, like: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = getattr(layer, "bias", None)  # RMSNorm has none
    return layer.weight.to(like), None if bias is None else bias.to(like)


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *_cast(self, input))


class _Conv1d(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *_cast(self, input))


class _Conv2d(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *_cast(self, input))


class _Conv3d(nn.Conv3d):
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, *_cast(self, input))


class _LayerNorm(nn.LayerNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight, bias = _cast(self, input) if self.elementwise_affine else (None, None)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class _RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, tuple(self.normalized_shape), self.weight.to(x), self.eps)


class _Embedding(nn.Embedding):
    def forward(self, input: Tensor, out_dtype: dtype | None = None) -> Tensor:
        """Rows of the table for the indices, in `out_dtype` where it is given."""
        rows = super().forward(input)
        return rows if out_dtype is None else rows.to(out_dtype)


class TorchOps:
    """Layers of plain PyTorch; weights stay where they are."""

    Linear = _Linear
    Conv1d = _Conv1d
    Conv2d = _Conv2d
    Conv3d = _Conv3d
    LayerNorm = _LayerNorm
    RMSNorm = _RMSNorm
    Embedding = _Embedding

    @staticmethod
    @contextmanager
    def weights(module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yields weight and bias on `like`'s device and in its dtype."""
        yield _cast(module, like)

    @staticmethod
    def parameter(module: nn.Module, name: str, like: Tensor) -> Tensor:
        """The parameter on `like`'s device and in its dtype."""
        return getattr(module, name).to(like)

    @staticmethod
    def form(device: torch.device, dtype: torch.dtype, *layers: nn.Module, int8: bool = False) -> Form:
        """Tensors."""
        return Form(dtype)

    @staticmethod
    def stream(blocks: Iterable[nn.Module], device: torch.device, options: Any) -> Iterator[tuple[int, nn.Module]]:
        """Yields (index, block) in order."""
        yield from enumerate(blocks)
