"""Frames that are larger than memory: parts of them, each decoded for the whole clip, joined with soft seams.

A tile's clip is decoded to its end before the next tile begins, because what a VAE remembers of the frames before is
the most that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """Rows and columns of a latent, and how many of them the tiles above and to the left have, too."""

    rows: slice
    columns: slice
    above: int
    left: int


def cut(rows: int, columns: int, size: tuple[int, int], overlap: int) -> list[Tile]:
    """Tiles of `size` (rows, columns), line by line; neighbours share `overlap` or more."""
    return [
        Tile(slice(top, bottom), slice(start, stop), above, left)
        for top, bottom, above in _parts(rows, size[0], overlap)
        for start, stop, left in _parts(columns, size[1], overlap)
    ]


def _parts(length: int, size: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, shared with the part before) of parts at equal distances."""
    if size >= length:
        yield 0, length, 0
        return
    size = max(size, overlap + 1)
    count = math.ceil((length - overlap) / (size - overlap))
    before = 0
    for index in range(count):
        start = round(index * (length - size) / (count - 1))
        yield start, start + size, max(0, before - start)
        before = start + size


class Canvas:
    """The frames [F, H, W, 3] of a clip, in RAM, while tiles are put on it in their order."""

    def __init__(self, frames: int, height: int, width: int, scale: int, dtype: torch.dtype) -> None:
        """`scale` is pixels to a latent row."""
        self.frames, self.scale = torch.empty(frames, height, width, 3, dtype=dtype), scale

    def paste(self, tile: Tile, start: int, images: Tensor) -> None:
        """Puts `images` [f, h, w, 3] of a tile at frame `start`; what lies there fades out where both have pixels."""
        top, left = tile.rows.start * self.scale, tile.columns.start * self.scale
        height, width = images.shape[1:3]
        place = self.frames[start : start + len(images), top : top + height, left : left + width]
        above, aside = tile.above * self.scale, tile.left * self.scale
        images = images.to(place)
        down, right = _ramp(above, height), _ramp(aside, width)
        if above:
            place[:, :above].lerp_(images[:, :above], (down[:above, None] * right).unsqueeze(-1).to(place))
        if aside:
            place[:, above:, :aside].lerp_(images[:, above:, :aside], right[:aside, None].to(place))
        place[:, above:, aside:] = images[:, above:, aside:]


def _ramp(shared: int, length: int) -> Tensor:
    """Weight of a tile's pixels along one side: rising where it shares them, 1 behind."""
    return ((torch.arange(length) + 0.5) / shared).clamp(max=1.0) if shared else torch.ones(length)
