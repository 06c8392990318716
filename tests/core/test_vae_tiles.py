"""Tiles cover the frame, and their seams are soft."""

from __future__ import annotations

import pytest
import torch
from wancore.wan_core.vae.tiles import Canvas, Tile, cut


@pytest.mark.parametrize(
    ("rows", "columns", "size", "overlap"), [(44, 80, (44, 42), 4), (90, 160, (49, 84), 8), (7, 9, (3, 4), 1)]
)
def test_tiles_cover_the_frame(rows: int, columns: int, size: tuple[int, int], overlap: int) -> None:
    seen = torch.zeros(rows, columns, dtype=torch.int)
    for tile in cut(rows, columns, size, overlap):
        shared = seen[tile.rows, tile.columns] > 0
        assert shared[tile.above :, tile.left :].sum() == 0  # what it shares are its first rows and columns
        assert bool(shared[: tile.above].all()) and bool(shared[:, : tile.left].all())
        assert tile.above in (0, *range(overlap, size[0])) and tile.left in (0, *range(overlap, size[1]))
        seen[tile.rows, tile.columns] += 1
    assert bool((seen > 0).all())


def test_a_frame_that_fits_is_one_tile() -> None:
    assert cut(30, 52, (30, 60), 8) == [Tile(slice(0, 30), slice(0, 52), 0, 0)]


def test_tiles_of_one_clip_make_it_again() -> None:
    clip, scale = torch.rand(5, 24, 32, 3), 2
    canvas = Canvas(5, 24, 32, scale, torch.float32)
    for tile in cut(12, 16, (7, 6), 2):
        part = clip[:, 2 * tile.rows.start : 2 * tile.rows.stop, 2 * tile.columns.start : 2 * tile.columns.stop]
        for start in (0, 1, 4):
            canvas.paste(tile, start, part[start : start + 3])
    assert torch.allclose(canvas.frames, clip, atol=1e-6)


def test_one_tile_fades_into_the_next() -> None:
    canvas = Canvas(1, 1, 10, 1, torch.float32)
    canvas.paste(Tile(slice(0, 1), slice(0, 6), 0, 0), 0, torch.zeros(1, 1, 6, 3))
    canvas.paste(Tile(slice(0, 1), slice(2, 10), 0, 4), 0, torch.ones(1, 1, 8, 3))
    expected = [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0, 1.0, 1.0]
    assert canvas.frames[0, 0, :, 0].tolist() == pytest.approx(expected)
