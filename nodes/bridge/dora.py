"""DoRA beside a layer: a low-rank difference, and another length for each row of the weight.

ComfyUI's rows are (weight + delta) * magnitude / |weight|, and strength s goes that far from the weight towards them.
With r = magnitude / |weight| the layer so answers g * weight(x) + h * delta(x), g = 1 + s (r - 1), h = s r: nothing
of the weight's size is computed but its lengths, and those once for a weight and what is added to it before.
Source: comfy/weight_adapter/base.py weight_decompose. Files with a magnitude for each column are patched as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MARK = "wan_core_measured"
KEPT = 4  # lengths of a layer: strengths that change from step to step come back
EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Lengths:
    """|weight| of each row, and what it was measured on."""

    mark: object  # that the weight carries: another tensor in its place has none, wherever it lies in memory
    before: tuple[Any, ...]  # functions of the weight, and (strength, patch) of what is added before the lengths count
    rows: Tensor  # [out], float32

    def fits(self, weight: Tensor, before: Sequence[Any]) -> bool:
        """True for the same weight with the same patches; these are compared as objects."""
        if getattr(weight, MARK, None) is not self.mark or len(self.before) != len(before):
            return False
        return all(_same(mine, theirs) for mine, theirs in zip(self.before, before, strict=True))


def _same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, tuple) and isinstance(theirs, tuple):
        return mine[0] == theirs[0] and mine[1] is theirs[1]
    return mine is theirs


def lengths_of(module: nn.Module, before: Sequence[Any], like: Tensor, decoded: Callable[[], Tensor]) -> Tensor:
    """|weight| [out] of a layer on `like`'s device; `decoded` gives the weight with what is `before`, [out, in]."""
    known: list[Lengths] = module.__dict__.setdefault("dora_lengths", [])
    weight: Any = module.weight
    found = next((each for each in known if each.fits(weight, before)), None)
    if found is None:
        rows = torch.linalg.vector_norm(decoded(), dim=1, dtype=torch.float32)
        if not hasattr(weight, MARK):
            setattr(weight, MARK, object())
        found = Lengths(getattr(weight, MARK), tuple(before), rows)
        known.insert(0, found)
        del known[KEPT:]
    return found.rows.to(like.device)


def with_lengths(out: Tensor, difference: Tensor, magnitude: Tensor, lengths: Tensor, strength: float) -> Tensor:
    """out and difference [..., out] without bias, magnitude [out, 1], lengths [out] -> the layer's answer."""
    ratio = magnitude.float().flatten() / (lengths + EPSILON)
    keep, add = (1 + strength * (ratio - 1)).to(out.dtype), (strength * ratio).to(out.dtype)
    return out * keep + difference * add
