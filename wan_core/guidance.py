"""Normalised attention guidance (NAG): the negative prompt steers inside the cross-attention.

It works without a second run of the model, so at guidance scale 1 too, for one more cross-attention per block.
Source: Chen et al., "Normalized Attention Guidance", arXiv 2505.21179, section 3; the scale counts as in its public
implementation (ChenDarYen/Normalized-Attention-Guidance), where 1 is off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NormalizedGuidance:
    """How far an attention's result moves away from the negative one's."""

    scale: float = 11.0  # extrapolation from negative to positive; 1: none
    tau: float = 2.5  # a token's L1 norm grows at most this much
    alpha: float = 0.25  # share of the moved result in what comes out

    def __call__(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Both [B, L, D], as they come from the attention -> [B, L, D] in their dtype."""
        near, away = positive.float(), negative.float()
        moved = away + self.scale * (near - away)
        limit = self.tau * near.norm(p=1, dim=-1, keepdim=True)
        moved = moved * (limit / moved.norm(p=1, dim=-1, keepdim=True).clamp(min=1e-7)).clamp(max=1.0)
        return torch.lerp(near, moved, self.alpha).to(positive.dtype)


@dataclass(frozen=True)
class Against:
    """The text to move away from, and which rows of the batch do."""

    text: Tensor  # [1, n, text_dim]; inside the transformer embedded, [1, n, D]
    guidance: NormalizedGuidance
    rows: tuple[int, ...] | None = None  # None: all

    def steer(
        self, out: Tensor, q: Tensor, k: Tensor, v: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        """`out` [B, L, D] of the attention of q [B, L, D] to the prompt; k and v [1, n, D] are the negative text's."""
        if self.rows is not None and len(self.rows) < len(out):
            if not self.rows:
                return out
            rows = list(self.rows)
            steered = out.clone()
            steered[rows] = Against(self.text, self.guidance).steer(out[rows], q[rows], k, v, attend)
            return steered
        k, v = (x.expand(len(q), -1, -1) for x in (k, v))
        return self.guidance(out, attend(q, k, v))
