"""Scenes and captions in bulk, drawn by all cores, and their clips, drawn on the training device."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...wan_core.text.tokenizer import PAD, Tokenizer
from ..captions import ATTRIBUTES, Caption, caption
from ..world import Scene, Sheet, axes, draw_scene, render, sheet

BLOCK = 500  # scenes to one seed: the pool is the same however many cores draw it
CAPTIONS = 3  # texts to one scene
TOKENS = 64  # longest training text, its end token included


@dataclass(frozen=True)
class Size:
    """Frames and pixels of a clip."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Tokens of the transformer: 4 x 16 x 16 to one."""
        return ((self.frames - 1) // 4 + 1) * (self.height // 16) * (self.width // 16)

    def clips_within(self, pixels: int) -> int:
        """How many clips have so many pixels, at least one."""
        return max(1, pixels // (self.frames * self.height * self.width))

    def axes(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Times, rows and columns as `render` takes them, on a device."""
        times, rows, columns = axes(self.frames, self.height, self.width)
        return (
            torch.from_numpy(times).to(device),
            torch.from_numpy(rows).to(device),
            torch.from_numpy(columns).to(device),
        )


@dataclass(frozen=True)
class Pool:
    """N scenes with CAPTIONS texts each, on one device."""

    scenes: Sheet
    ids: Tensor  # [N, CAPTIONS, TOKENS] int64 token ids
    told: Tensor  # [N, CAPTIONS, attributes] index of the value, or of one more than there are: not told

    def __len__(self) -> int:
        return len(self.ids)


Draw = Callable[[np.random.Generator, bool], Scene]  # a scene, of the held-out combinations where it is asked
Tell = Callable[[Scene, np.random.Generator], Caption]

_tokenizer: Tokenizer | None = None  # of the worker processes; None: no captions


def _start(model: bytes | None) -> None:
    global _tokenizer
    _tokenizer = Tokenizer(model) if model else None


def draw_any(rng: np.random.Generator, held_out: bool) -> Scene:
    """A scene of the whole world."""
    return draw_scene(rng, held_out=held_out)


def _block(seed: tuple[int, int, int, bool, Draw, Tell]) -> tuple[Sheet, np.ndarray, np.ndarray]:
    """One block of the pool: its scenes, token ids and labels."""
    number, block, count, held_out, draw, tell = seed
    rng = np.random.default_rng((number, block))
    scenes = [draw(rng, held_out) for _ in range(count)]
    columns = CAPTIONS if _tokenizer else 0
    ids = np.full((count, columns, TOKENS), PAD, dtype=np.int16)
    told = np.zeros((count, columns, len(ATTRIBUTES)), dtype=np.int8)
    for row, scene in enumerate(scenes):
        for column in range(columns):
            assert _tokenizer is not None
            text = tell(scene, rng)
            tokens = _tokenizer.encode(text.text, tokens=TOKENS)
            ids[row, column, : len(tokens)] = tokens
            told[row, column] = [text.told.get(name, len(values)) for name, values in ATTRIBUTES.items()]
    return sheet(scenes), ids, told


def on_all_cores(
    block: Callable[[Any], Any], seeds: Sequence[Any], start: Callable[[Any], None], given: Any
) -> list[Any]:
    """[block(seed) for seed in seeds], by processes that `start(given)` readies; few seeds by this process alone."""
    if "fork" in multiprocessing.get_all_start_methods() and len(seeds) > 4:
        with multiprocessing.get_context("fork").Pool(os.cpu_count(), start, (given,)) as workers:
            return workers.map(block, seeds)
    start(given)
    return [block(seed) for seed in seeds]


def blocks_of(count: int, block: int) -> list[int]:
    """How many scenes each seed draws: `block`, and the rest."""
    return [min(block, count - first) for first in range(0, count, block)]


def draw_pool(
    count: int,
    seed: int,
    device: torch.device,
    *,
    tokenizer: bytes | None = None,
    held_out: bool = False,
    draw: Draw = draw_any,
    tell: Tell = caption,
) -> Pool:
    """Draws `count` scenes by `draw`; with a sentencepiece model also their captions by `tell`.

    Call it before the process uses the GPU: it forks.
    """
    counts = blocks_of(count, BLOCK)
    seeds = [(seed, block, size, held_out, draw, tell) for block, size in enumerate(counts)]
    blocks = on_all_cores(_block, seeds, _start, tokenizer)
    scenes, ids, told = zip(*blocks, strict=True)
    joined = Sheet(
        *(
            torch.from_numpy(np.concatenate([getattr(part, field.name) for part in scenes])).to(device)
            for field in fields(Sheet)
        )
    )
    return Pool(
        joined,
        torch.from_numpy(np.concatenate(ids)).to(device).long(),
        torch.from_numpy(np.concatenate(told)).to(device).long(),
    )


def in_turn(shares: Sequence[int], step: int) -> int:
    """Which of several kinds a step takes: each as often as its share, mixed; 7 must not divide the sum of shares."""
    turns = [index for index, share in enumerate(shares) for _ in range(share)]
    return turns[step * 7 % len(turns)]


def draw_clips(scenes: Sheet, size: Size, openings: Tensor | None = None, paths: Tensor | None = None) -> Tensor:
    """Scenes on a device -> clips [B, 3, F, H, W] in -1..1, float32; `openings` and `paths` as in `render`."""
    return render(scenes, *size.axes(scenes.pan.device), torch, openings, paths).permute(0, 4, 1, 2, 3) * 2 - 1


def draw_first(scenes: Sheet, size: Size) -> Tensor:
    """The first frames of those clips, [B, 3, 1, H, W] in -1..1, float32."""
    times, rows, columns = size.axes(scenes.pan.device)
    return render(scenes, times[:1], rows, columns, torch).permute(0, 4, 1, 2, 3) * 2 - 1
