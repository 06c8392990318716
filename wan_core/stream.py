"""What one forward call hands to every block beside the tokens.

B batch, D width, L tokens, R rows of modulation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .guidance import Against


@dataclass(frozen=True)
class Span:
    """`tokens` successive tokens under `rows` successive rows of modulation, each row for an equal share of them."""

    tokens: int
    rows: int


@dataclass(frozen=True)
class Stream:
    """Read by blocks, adapters and hooks; never written.

    Tokens of the video come first, latent frame by latent frame; token groups follow. Their modulation is kept once
    per timestep, not per token: at 81 frames of 720p the latter would be 9 GB.
    """

    video: Tensor  # [B, C, F, H, W] noisy latent with the concat channels, padded to whole patches
    grid: tuple[int, int, int]  # video tokens along latent frames, rows, columns
    spans: tuple[Span, ...]  # the video's, then one for each token group
    time: Tensor  # [B, R, D] float32
    rows: Tensor  # [B, R, 6, D] float32: shift, scale, gate of the attention, then of the feed-forward
    rotation: Tensor  # [1, L, 1, d / 2] complex64, see rope.py
    context: Tensor  # [B, text_len, D] embedded text
    extra_contexts: tuple[Tensor, ...]  # [B, n, D] each, embedded
    dtype: torch.dtype  # of the linear layers and the attention
    against: Against | None = None  # with its text embedded
    int8: bool = False  # the linear layers multiply in int8 where the host has it

    @property
    def video_tokens(self) -> int:
        return self.spans[0].tokens

    def of_video(self) -> Stream:
        """What a block needs that sees the video's tokens only."""
        span = self.spans[0]
        return replace(
            self,
            spans=(span,),
            time=self.time[:, : span.rows],
            rows=self.rows[:, : span.rows],
            rotation=self.rotation[:, : span.tokens],
        )
