"""A patch of ComfyUI's on one weight, taken apart: low-rank ones go beside the layer, the others onto its weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.lora
import comfy.model_management
import torch
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor, nn

Patch = tuple[float, Any, float, Any, Any]  # strength, value, strength of the weight, slice, function: comfy.lora


@dataclass(frozen=True)
class Branch:
    """scale * up @ down, for an input [..., in] and an output [..., out]."""

    down: Tensor  # [rank, in]
    up: Tensor  # [out, rank]
    scale: float

    def add_to(self, out: Tensor, x: Tensor) -> Tensor:
        """Returns out + branch(x), in the place of `out` where it can be written to."""
        down, up = (comfy.model_management.cast_to_device(part, x.device, x.dtype) for part in (self.down, self.up))
        return add_up(out, narrowed(x, down), up, self.scale)


class GivenPatch:
    """A patch that a native patcher has put on a weight, as the layer takes it."""

    def __init__(self, patch: Patch, source: Any) -> None:
        """`source` is the patch's value as the patcher keeps it, while `patch` may hold copies on the GPU."""
        self.given, self.source = patch, source
        self.branch = branch_of((1.0, *patch[1:]))
        dora = dora_of((1.0, *patch[1:])) if self.branch is None else None
        self.is_dora = dora is not None
        self.is_sum = self.branch is not None or is_sum(patch)
        self.low_rank, self.lengths = dora or (self.branch, None)

    def add_to(self, out: Tensor, x: Tensor, strength: float) -> Tensor:
        """Returns out + strength * branch(x), in the place of `out` where it can be written to."""
        assert self.branch is not None
        return replace(self.branch, scale=strength * self.branch.scale).add_to(out, x)

    def difference(self, x: Tensor) -> Tensor:
        """branch(x) of a DoRA."""
        assert self.low_rank is not None
        return self.low_rank.add_to(x.new_zeros(*x.shape[:-1], self.low_rank.up.shape[0]), x)

    def magnitude(self, like: Tensor) -> Tensor:
        """[out, 1] of a DoRA."""
        assert self.lengths is not None
        return self.lengths.to(like.device)

    def patch(self, like: Tensor, strength: float) -> Patch:
        """ComfyUI's form."""
        return self.given


def narrowed(x: Tensor, down: Tensor) -> Tensor:
    """x [..., in] through the first half of a branch, [rank, in]: [..., rank]."""
    return nn.functional.linear(x, down.flatten(1))


def add_up(out: Tensor, hidden: Tensor, up: Tensor, scale: float) -> Tensor:
    """Returns out + scale * up @ hidden, in the place of `out` where it can be written to."""
    if out.requires_grad or out.dtype != hidden.dtype or not out.is_contiguous():
        return out + scale * nn.functional.linear(hidden, up.flatten(1))
    out.view(-1, out.shape[-1]).addmm_(hidden.reshape(-1, hidden.shape[-1]), up.flatten(1).t(), alpha=scale)
    return out


@dataclass(frozen=True)
class FloatPatches:
    """The patches that are no branches, as a function of the decoded weight."""

    key: str
    patches: Sequence[Patch]

    def __call__(self, weight: Tensor) -> Tensor:
        # A copy: the decoded weight of plain float8 may be the stored one. ComfyUI's rotations fail in half precision.
        dtype = torch.float32 if any(is_rotation(patch[1]) for patch in self.patches) else weight.dtype
        exact = weight.to(dtype, copy=True)
        return comfy.lora.calculate_weight(self.patches, exact, self.key, intermediate_dtype=dtype).to(weight.dtype)


def branch_of(patch: Patch) -> Branch | None:
    """The patch as a branch; None if it is no low-rank pair, or one that changes more than a sum."""
    low_rank, lengths = _low_rank(patch)
    return low_rank if lengths is None else None


def dora_of(patch: Patch) -> tuple[Branch, Tensor] | None:
    """The low-rank pair and the magnitudes [out, 1] of a DoRA with one for each row; None: it is none.

    Those of a square layer may be for its columns, [1, in]: the first axis decides, as in ComfyUI's weight_decompose.
    """
    low_rank, lengths = _low_rank(patch)
    if low_rank is None or lengths is None:
        return None
    rows = low_rank.up.shape[0]
    return (low_rank, lengths) if lengths.numel() == rows and lengths.shape[:1] == (rows,) else None


def _low_rank(patch: Patch) -> tuple[Branch | None, Tensor | None]:
    strength, value, _, _, function = patch
    if not isinstance(value, LoRAAdapter) or function is not None or not _is_plain(patch):
        return None, None
    up, down, alpha, mid, dora, reshape = value.weights
    if mid is not None or reshape is not None:
        return None, None
    return Branch(down, up, strength * (1.0 if alpha is None else float(alpha) / down.shape[0])), dora


def _is_plain(patch: Patch) -> bool:
    """True if the weight itself is neither scaled nor cut."""
    return patch[2] == 1.0 and patch[3] is None


def is_sum(patch: Patch) -> bool:
    """True for a whole difference, which may be added before or after others."""
    value = patch[1]
    difference = isinstance(value, tuple) and (len(value) == 1 or value[0] == "diff")
    return difference and _is_plain(patch)


def is_rotation(value: Any) -> bool:
    """True for OFT and BOFT, which multiply the weight by orthogonal matrices."""
    return getattr(value, "name", None) in ("oft", "boft")


def mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """A patch's value with everything of one kind in it replaced: its tensors, or what stands in their place."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, WeightAdapterBase):
        return type(value)(value.loaded_keys, mapped(value.weights, kind, function))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(part, kind, function) for part in value)
    return value
