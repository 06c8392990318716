"""Fun Control's reference picture: tokens that stand one position before the clip in time.

B batch, C channels, H/W latent rows/columns, D width. Parameter names are the official ones.
Source: aigc-apps/VideoX-Fun videox_fun/models/wan_transformer3d.py.
There the picture is frame 0 and the clip begins at 1; attention knows distances only, so here the clip stays at 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..conditioning import TokenGroup
from ..config import TransformerConfig
from ..hooks import PositionTransform
from ..ops import Ops
from ..rope import grid_axes


def reference_parts(config: TransformerConfig, *, ops: type[Ops], **place: Any) -> dict[str, nn.Module]:
    """The module that a checkpoint with a reference picture has beside the plain transformer's."""
    patch = config.patch_size[1:]
    return {"ref_conv": ops.Conv2d(config.reference_dim, config.dim, kernel_size=patch, stride=patch, **place)}


def reference_group(convolution: nn.Module, latent: Tensor, positions: PositionTransform | None = None) -> TokenGroup:
    """The picture's latent [B, C, H, W] as tokens; `positions` are the hooks' of the same call."""
    change = positions or PositionTransform()
    embedded = convolution(latent)
    time, rows, columns = grid_axes((1, embedded.shape[2], embedded.shape[3]), change)
    places = torch.cartesian_prod(time - change.scale[0], rows, columns)
    return TokenGroup(embedded.flatten(2).transpose(1, 2), places)
