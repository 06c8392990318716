"""Clips with sound to train S2V on: scenes, captions and voices, drawn by all cores, then drawn, played and encoded.

A first clip is encoded behind its picture, a later one behind 73 frames, grey where the video is younger: as inference
has them. B batch, C channels, T latent frames, S features of a frame of sound.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...wan_core.adapters.s2v import MOTION_FRAMES
from ...wan_core.audio.clips import LEAD_IN
from ...wan_core.text.tokenizer import PAD, Tokenizer
from ...wan_core.vae.causal import CausalVAE
from ..speakers import draw_speaker, speaker_caption
from ..voice import FRAME, FRAME_RATE, Score, Voice, draw_voice, loudness, opening, score, speak
from ..world import Sheet, sheet
from .data import CAPTIONS, TOKENS, Size, blocks_of, draw_clips, on_all_cores
from .hearing import Ears, features, led_in
from .loop import Plan
from .vae import encode

LONGEST = 124  # frames of a training sound
BLOCK = 250  # scenes to one seed


@dataclass(frozen=True)
class Kind:
    """A kind of clip to train on, and how many of 16 are of it."""

    size: Size  # as sampled: 4 T frames
    going_on: bool  # has a clip before it
    share: int

    @property
    def latents(self) -> int:
        return self.size.frames // 4

    @property
    def tokens(self) -> int:
        return self.latents * (self.size.height // 16) * (self.size.width // 16)


KINDS = (
    Kind(Size(48, 64, 64), False, 6),
    Kind(Size(48, 64, 64), True, 4),
    Kind(Size(80, 64, 64), False, 4),
    Kind(Size(48, 128, 128), False, 1),
    Kind(Size(48, 128, 128), True, 1),
)
BEFORE = (29, 45, 61, MOTION_FRAMES, MOTION_FRAMES)  # frames of the video that a later clip may have before it


@dataclass(frozen=True)
class Speakers:
    """N scenes with their captions and voices, on one device."""

    scenes: Sheet
    ids: Tensor  # [N, CAPTIONS, TOKENS]
    voices: Score

    def __len__(self) -> int:
        return len(self.ids)


_tokenizer: Tokenizer | None = None  # of the worker processes


def _start(model: bytes) -> None:
    global _tokenizer
    _tokenizer = Tokenizer(model)


def _block(seed: tuple[int, int, int]) -> tuple[Sheet, np.ndarray, Score]:
    number, block, count = seed
    rng = np.random.default_rng((number, block, 14))
    assert _tokenizer is not None
    scenes = [draw_speaker(rng) for _ in range(count)]
    ids = np.full((count, CAPTIONS, TOKENS), PAD, dtype=np.int16)
    for row, scene in enumerate(scenes):
        for column in range(CAPTIONS):
            tokens = _tokenizer.encode(speaker_caption(scene, rng).text, tokens=TOKENS)
            ids[row, column, : len(tokens)] = tokens
    return sheet(scenes), ids, score([draw_voice(rng, LONGEST / FRAME_RATE) for _ in scenes])


def draw_speakers(count: int, seed: int, device: torch.device, tokenizer: bytes) -> Speakers:
    """Draws `count` scenes with captions and voices. Call it before the process uses the GPU: it forks."""
    seeds = [(seed, block, size) for block, size in enumerate(blocks_of(count, BLOCK))]
    blocks = on_all_cores(_block, seeds, _start, tokenizer)
    scenes, ids, voices = zip(*blocks, strict=True)
    return Speakers(
        _joined(scenes, device), torch.from_numpy(np.concatenate(ids)).to(device).long(), _joined(voices, device)
    )


def draw_voices(count: int, seed: int, device: torch.device, *, held_out: bool = False) -> Score:
    """Draws voices as long as the longest training sound."""
    rng = np.random.default_rng((seed, 15))
    voices: list[Voice] = [draw_voice(rng, LONGEST / FRAME_RATE, held_out=held_out) for _ in range(count)]
    return _joined([score(voices)], device)


def _joined(parts: Any, device: torch.device) -> Any:
    """Sheets or scores as one, on the device."""
    kind = type(parts[0])
    columns = ([getattr(part, field.name) for part in parts] for field in fields(kind))
    return kind(*(torch.from_numpy(np.concatenate(column)).to(device) for column in columns))


@dataclass(frozen=True)
class SoundLatents:
    """Clips of one kind, encoded."""

    values: Tensor  # [N, C, T, H, W]
    ids: Tensor  # [N, CAPTIONS, TOKENS]
    reference: Tensor  # [N, C, 1, H, W]
    sound: Tensor  # [N, outputs of Ears, S, 4 T]
    motion: Tensor | None = None  # [N, C, 19, H, W]


def drawn(scenes: Sheet, voices: Score, kind: Kind, before: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Clips [B, 3, F, H, W] of these scenes, their pictures [B, 3, 1, H, W], and their sounds [B, N].

    A first clip has its picture as frame 0, and then, as its sound, a lead-in of silence. A later one has 73 frames
    before it, of which only the last `before` [B] are seen; its sound begins with the first of the 73.
    """
    sound = speak(voices, noise, torch)
    wide = opening(loudness(sound, noise.shape[1] // FRAME, torch), torch)
    if not kind.going_on:
        sound, wide = led_in(sound), F.pad(wide, (LEAD_IN + 1, 0))
    clips = draw_clips(scenes, Size(wide.shape[1], kind.size.height, kind.size.width), wide)
    still = draw_clips(scenes, Size(1, kind.size.height, kind.size.width), wide[:, :1] * 0)
    if kind.going_on:
        number = torch.arange(clips.shape[2], device=clips.device)
        clips = clips * (number[None] >= MOTION_FRAMES - before[:, None])[:, None, :, None, None]  # grey is 0
    return clips, still, sound


@torch.no_grad()
def encode_speakers(vae: CausalVAE, ears: Ears, pool: Speakers, plan: Plan) -> list[SoundLatents]:
    """Draws, plays and encodes every scene of the pool as one of the kinds."""
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    vae, found, start = vae.to(fast), [], 0
    for number, kind in enumerate(KINDS):
        count = len(pool) * kind.share // sum(each.share for each in KINDS)
        whole = kind.size.frames + (MOTION_FRAMES if kind.going_on else -LEAD_IN)
        step = max(1, 12_000_000 // (whole * kind.size.height * kind.size.width))
        stop = start + count - count % step  # full batches: cuDNN prepares each shape
        if plan.smoke:
            stop, step = start + 1, 1
        parts: list[tuple[Tensor, ...]] = []
        for first in range(start, stop, step):
            random = plan.generator(30_000_000 + number * 100_000 + first)
            rows = torch.arange(first, min(first + step, stop), device=plan.device)
            noise = torch.randn((len(rows), whole * FRAME), generator=random, device=plan.device)
            chosen = torch.randint(len(BEFORE), rows.shape, generator=random, device=plan.device)
            before = torch.tensor(BEFORE, device=plan.device)[chosen]
            clips, still, sound = drawn(pool.scenes.rows(rows), pool.voices.rows(rows), kind, before, noise)
            latents = encode(vae, clips.to(fast)).to(torch.bfloat16)
            heard = features(ears, sound, whole + (0 if kind.going_on else LEAD_IN))[..., -kind.size.frames :]
            parts.append(
                (
                    latents[:, :, -kind.latents :],
                    encode(vae, still.to(fast)).to(torch.bfloat16),
                    heard.to(torch.bfloat16),
                    latents[:, :, : -kind.latents],
                )
            )
        values, reference, sound, motion = (torch.cat(column) for column in zip(*parts, strict=True))
        kept = motion if kind.going_on else None
        found.append(SoundLatents(values, pool.ids[start:stop], reference, sound, kept))
        start = stop
    return found


def save_latents(latents: list[SoundLatents], path: Path) -> None:
    """Keeps encoded clips."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {
        f"{field.name}.{index}": value.contiguous()
        for index, part in enumerate(latents)
        for field in fields(part)
        if (value := getattr(part, field.name)) is not None
    }
    save_file(named, path)


def load_latents(path: Path, device: torch.device) -> list[SoundLatents]:
    """Reads what `save_latents` wrote."""
    file, found = load_file(path, device=str(device)), []
    names = [field.name for field in fields(SoundLatents)]
    while f"values.{len(found)}" in file:
        found.append(SoundLatents(*(file.get(f"{name}.{len(found)}") for name in names)))  # type: ignore[arg-type]
    return found
