"""Rotary positions on three axes: time, rows and columns share the pairs of a head.

Source: Wan-Video/Wan2.2 wan/modules/model.py rope_params and rope_apply at 42bf4cf. Angles are float64. A rotation is
kept as complex numbers of size one, [1, L, 1, d / 2]: neighbouring values of a head are real and imaginary part.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .hooks import PositionTransform

THETA = 10000.0


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's values turn with time, rows and columns: 44, 42, 42 of 128."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def frequencies(head_dim: int, theta: float = THETA) -> Tensor:
    """Angle of each pair per unit of its own axis' position, [d / 2] float64; each axis has a ladder of its own."""
    ladders = (torch.arange(0, size, 2, dtype=torch.float64) / size for size in axis_sizes(head_dim))
    return torch.cat([theta**-ladder for ladder in ladders])


def grid_axes(grid: Sequence[int], transform: PositionTransform | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Positions along the three axes of a grid of tokens, float64 each."""
    change = transform or PositionTransform()
    time, row, column = (
        torch.arange(size, dtype=torch.float64) * scale + shift
        for size, scale, shift in zip(grid, change.scale, change.shift, strict=True)
    )
    return time, row, column


def grid_rotation(axes: Sequence[Tensor], head_dim: int, theta: float = THETA, *, like: Tensor) -> Tensor:
    """Rotation of every token of a grid, frame by frame and row by row, as precise as `like` and on its device.

    Sines are taken per axis position and then spread over the grid: a few thousand in place of millions.
    """
    sizes = [len(axis) for axis in axes]
    parts = []
    for number, (axis, ladder) in enumerate(zip(axes, _ladders(head_dim, theta), strict=True)):
        shape = [1, 1, 1]
        shape[number] = len(axis)
        table = _turns(torch.outer(axis, ladder), like)
        parts.append(table.reshape(*shape, -1).expand(*sizes, -1))
    return torch.cat(parts, dim=3).flatten(0, 2)[None, :, None]


def rotation(positions: Tensor, head_dim: int, theta: float = THETA, *, like: Tensor) -> Tensor:
    """Rotation of tokens at any positions, [n, 3] in time, row, column."""
    axes = positions.cpu().double().unbind(1)
    angles = [torch.outer(axis, ladder) for axis, ladder in zip(axes, _ladders(head_dim, theta), strict=True)]
    return _turns(torch.cat(angles, dim=1), like)[None, :, None]


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns neighbouring values (2i, 2i + 1) of x [B, L, H, d], float32 or float64."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)


def _ladders(head_dim: int, theta: float) -> tuple[Tensor, ...]:
    return frequencies(head_dim, theta).split([size // 2 for size in axis_sizes(head_dim)])


def _turns(angles: Tensor, like: Tensor) -> Tensor:
    return torch.complex(angles.cos().to(like), angles.sin().to(like))
