"""Fun Camera: the rays of a moving camera, added to the tokens as they enter the first block.

B batch, F latent frames, H/W pixels, D width. Parameter names are the official ones.
Source: aigc-apps/VideoX-Fun videox_fun/models/wan_camera_adapter.py.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..config import TransformerConfig
from ..errors import InputError
from ..ops import Ops


class Residual(nn.Module):
    """Two convolutions beside the way through."""

    def __init__(self, dim: int, *, ops: type[Ops], **place: Any) -> None:
        super().__init__()
        self.conv1 = ops.Conv2d(dim, dim, kernel_size=3, padding=1, **place)
        self.conv2 = ops.Conv2d(dim, dim, kernel_size=3, padding=1, **place)

    def forward(self, x: Tensor) -> Tensor:
        """[n, D, rows, columns] -> the same shape"""
        return x + self.conv2(F.relu(self.conv1(x)))


class CameraEmbedding(nn.Module):
    """Rays of each pixel to one token for each of the video's."""

    def __init__(self, config: TransformerConfig, *, ops: type[Ops], **place: Any) -> None:
        super().__init__()
        self.fold, patch = config.camera_fold, config.patch_size[1:]
        self.conv = ops.Conv2d(config.camera_dim * self.fold**2, config.dim, kernel_size=patch, stride=patch, **place)
        self.residual_blocks = nn.Sequential(Residual(config.dim, ops=ops, **place))

    def forward(self, rays: Tensor) -> Tensor:
        """Rays [B, C, F, H, W], C those of four frames one after the other -> [B, D, F, H / 2 fold, W / 2 fold]."""
        frames = F.pixel_unshuffle(rays.transpose(1, 2).flatten(0, 1), self.fold)
        return self.residual_blocks(self.conv(frames)).unflatten(0, (rays.shape[0], -1)).transpose(1, 2)


def camera_parts(config: TransformerConfig, *, ops: type[Ops], **place: Any) -> dict[str, nn.Module]:
    """The module that a checkpoint with a camera has beside the plain transformer's."""
    return {"control_adapter": CameraEmbedding(config, ops=ops, **place)}


def camera_bias(embedding: CameraEmbedding, rays: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Rays [B, C, F, H, W] of the pixels -> what is added to the tokens of a grid, [B, L, D].

    Raises:
        InputError: the camera's clip has another size than the video.
    """
    fold = embedding.fold
    found = (rays.shape[2], rays.shape[3] // (2 * fold), rays.shape[4] // (2 * fold))
    if found != grid or rays.shape[3] % fold or rays.shape[4] % fold:
        raise InputError(
            "The camera path and the latent differ in size",
            where="camera_conditions of the conditioning",
            found=f"{rays.shape[2]} latent frames of {rays.shape[4]}x{rays.shape[3]} pixels",
            expected=f"{grid[0]} of {2 * fold * grid[2]}x{2 * fold * grid[1]}",
            remedy="Give the camera node the width, height and length of the clip",
        )
    return embedding(rays).flatten(2).transpose(1, 2)
