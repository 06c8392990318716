"""Everything that the transformer gets besides noise and time. Each field is a slot that any task may fill.

Built once before sampling; B batch, C channels, F/H/W latent frames/rows/columns, D the transformer's width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .adapters import Adapter
from .guidance import Against


@dataclass(frozen=True)
class TokenGroup:
    """Tokens that every video token may attend to and that leave before the head: references, motion frames."""

    tokens: Tensor  # [B, n, D]
    positions: Tensor  # [n, 3] float64: time, row, column in tokens
    timestep: Tensor | None = None  # [B] in 0..1000; None: that of the video's last latent frame


@dataclass(frozen=True)
class ContextGroup:
    """Further keys and values of the cross-attention, with projections of their own: CLIP features of a picture."""

    tokens: Tensor  # [B, n, image_dim]


@dataclass(frozen=True)
class Conditioning:
    """The inputs of one prompt."""

    text: Tensor  # [B, n, text_dim]; filled up with zeros to the transformer's text_len
    concat: Tensor | None = None  # [B, C, F, H, W] channels that follow the noisy latent's
    token_bias: Tensor | None = None  # [B, video tokens, D] added after the patch embedding
    groups: tuple[TokenGroup, ...] = ()
    contexts: tuple[ContextGroup, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    against: Against | None = None  # normalised attention guidance
