"""Trains S2V: clips of things that open and close, from a picture, a sound and, where a clip goes on, what was before.

The inputs are those of inference: `sound_conditioning` fills the slots, the features come from the miniature wav2vec2,
a first clip is encoded behind its picture, a later one behind 73 frames, grey where the video is younger.
B batch, C channels, T latent frames, S features of a frame of sound.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...wan_core.adapters.s2v import (
    ADAPTIVE_EPS,
    MIDDLE,
    MOTION_FRAMES,
    NEWEST,
    OLDEST,
    OLDEST_TIMES,
    SoundInjector,
)
from ...wan_core.audio.clips import LEAD_IN
from ...wan_core.audio.conditioning import SoundInputs, sound_conditioning
from ...wan_core.conditioning import TokenGroup
from ...wan_core.config import TransformerConfig
from ...wan_core.stream import Stream
from ...wan_core.tasks import S2V_14B
from ...wan_core.text.tokenizer import PAD, Tokenizer
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.causal import CausalVAE
from .. import family
from ..models import new_transformer
from ..speakers import draw_speaker, speaker_caption
from ..voice import FRAME, FRAME_RATE, Score, Voice, draw_voice, loudness, opening, score, speak
from ..world import Sheet, sheet
from .blocks import no_modes, patches, training_hooks
from .data import CAPTIONS, TOKENS, Size, draw_clips
from .flow import Recipe, Texts, draw_sigmas
from .hearing import Ears, features, layers_heard, led_in
from .loop import Plan, Stage
from .vae import encode

RECIPE = Recipe("s2v", S2V_14B, "both", (), "", salt=8, steps=30_000, tokens=18_000)
LONGEST = 124  # frames of a training sound
SILENT = 0.05  # share of the clips with their text whose sound is left out
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
    Kind(Size(48, 64, 64), False, 5),
    Kind(Size(48, 64, 64), True, 4),
    Kind(Size(80, 64, 64), False, 3),
    Kind(Size(48, 128, 128), False, 2),
    Kind(Size(48, 128, 128), True, 2),
)
BEFORE = (29, 45, 61, MOTION_FRAMES, MOTION_FRAMES)  # frames of the video that a later clip may have before it


class Packer(nn.Module):
    """What packs the frames before a clip, with a mean in place of most of its weights: see models.completed."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        for name in ("proj", "proj_2x", "proj_4x"):
            self.add_module(name, nn.Conv3d(config.out_dim, config.dim, (1, 2, 2), (1, 2, 2)))
            nn.init.xavier_uniform_(self.get_submodule(name).weight.flatten(1))  # type: ignore[union-attr]

    def forward(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """As adapters.s2v.FramePacker, of clean latents [B, C, 19, H, W]."""
        oldest, middle, newest = motion.float().split([OLDEST, MIDDLE, NEWEST], dim=2)
        rows, columns = motion.shape[3] // 2, motion.shape[4] // 2
        found, places = [], []
        parts = (("proj", newest, 1, (-1,)), ("proj_2x", middle, 2, (-3,)), ("proj_4x", oldest, 4, OLDEST_TIMES))
        for name, latents, side, times in parts:
            layer = self.get_submodule(name)
            assert isinstance(layer, nn.Conv3d)
            packed = patches(layer)(F.avg_pool3d(latents, side) if side > 1 else latents)
            found.append(packed.flatten(2).transpose(1, 2))
            places.append(_places(times, rows, packed.shape[3], columns, packed.shape[4]))
        return torch.cat(found, dim=1), torch.cat(places)


def _places(times: tuple[int, ...], rows: int, packed_rows: int, columns: int, packed_columns: int) -> Tensor:
    with torch.device("cpu"):
        axes = (torch.linspace(0, rows - 1, packed_rows), torch.linspace(0, columns - 1, packed_columns))
        row, column = (axis.double().floor() for axis in axes)
        return torch.cartesian_prod(torch.tensor(times, dtype=torch.float64), row, column)


def new_model() -> WanTransformer:
    """S2V of the family's size, float32, with an initialisation to train from, and of what is kept of it only."""
    model = new_transformer(family.S2V)
    model.frame_packer = Packer(model.config)
    injector = model.get_submodule("audio_injector")
    assert isinstance(injector, SoundInjector)
    used = sum(block < model.num_layers for block in injector.numbers)
    injector.injector, injector.injector_adain_layers = injector.injector[:used], injector.injector_adain_layers[:used]
    for layer in (model.get_submodule("cond_encoder"), *(part.o for part in injector.injector)):
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for part in injector.injector_adain_layers:
        nn.init.normal_(part.linear.weight, std=0.02)  # type: ignore[union-attr]
    nn.init.normal_(model.get_submodule("trainable_cond_mask").weight, std=0.02)  # type: ignore[arg-type]
    nn.init.normal_(model.get_submodule("casual_audio_encoder").encoder.padding_tokens, std=0.02)  # type: ignore[union-attr]
    return model


def injector_step(
    weights: dict[str, Tensor], norm: dict[str, Tensor], x: Tensor, whole: Tensor, local: Tensor, heads: int, eps: float
) -> Tensor:
    """Video tokens x [B, T n, D] with the sound of their frames, whole [B, T, D] and local [B, T, m, D], added."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, weights[f"{name}.weight"].to(y), weights[f"{name}.bias"].to(y))

    def split(name: str, y: Tensor) -> Tensor:
        y = linear(name, y)
        if name != "v":
            wide = y.float()
            scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
            y = (wide * scale * weights[f"norm_{name}.weight"].float()).to(y.dtype)
        return y.unflatten(3, (heads, -1)).transpose(2, 3)

    change = F.linear(F.silu(whole), norm["linear.weight"].to(whole), norm["linear.bias"].to(whole)).float()
    shift, scale = change.unsqueeze(2).chunk(2, dim=3)
    frames = x.unflatten(1, (whole.shape[1], -1))
    y = F.layer_norm(frames.float(), x.shape[-1:], eps=ADAPTIVE_EPS) * (1 + scale) + shift
    y = y.to(whole.dtype)
    share = (split("q", y) @ split("k", local).mT).float() * (x.shape[-1] // heads) ** -0.5
    added = share.softmax(-1).to(y.dtype) @ split("v", local)
    return x + linear("o", added.transpose(2, 3).flatten(3)).flatten(1, 2).to(x.dtype)


@cache
def _compiled() -> Any:
    return torch.compile(injector_step, dynamic=False)


def lighten(model: WanTransformer, device: torch.device) -> None:
    """Makes what S2V has beside its blocks cheap to train: the same arithmetic, in few kernels and without copies."""
    injector, rotation = model.get_submodule("audio_injector"), model._rotation
    assert isinstance(injector, SoundInjector)
    heads, eps = model.num_heads, model.config.eps
    parts = [dict(part.named_parameters()) for part in injector.injector]
    norms = [dict(part.named_parameters()) for part in injector.injector_adain_layers]
    step = _compiled() if device.type == "cuda" else injector_step

    def inject(index: int, tokens: Tensor, stream: Stream, whole: Tensor, local: Tensor) -> Tensor:
        number = injector.numbers.get(index)
        if number is None or number >= len(parts):
            return tokens
        video, rest = tokens[:, : stream.video_tokens], tokens[:, stream.video_tokens :]
        with no_modes():
            video = step(parts[number], norms[number], video, whole, local, heads, eps)
        return torch.cat([video, rest], dim=1)

    turns: dict[Any, Tensor] = {}

    def rotated(grid: Any, groups: tuple[TokenGroup, ...], hooks: Any, *, like: Tensor) -> Tensor:
        key = grid, tuple(group.tokens.shape[1] for group in groups)
        if key not in turns:
            held = tuple(TokenGroup(group.tokens, group.positions.cpu()) for group in groups)
            with torch.device("cpu"):
                turns[key] = rotation(grid, held, hooks, like=torch.zeros(0)).to(like.device)
        return turns[key]

    injector.forward = inject  # type: ignore[method-assign]
    model._rotation = rotated  # type: ignore[method-assign]
    encoder = model.get_submodule("cond_encoder")
    assert isinstance(encoder, nn.Conv3d)
    encoder.forward = patches(encoder)  # type: ignore[method-assign]


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


def _block(seed: tuple[int, int]) -> tuple[Sheet, np.ndarray, Score]:
    rng = np.random.default_rng((*seed, 14))
    assert _tokenizer is not None
    scenes = [draw_speaker(rng) for _ in range(BLOCK)]
    ids = np.full((BLOCK, CAPTIONS, TOKENS), PAD, dtype=np.int16)
    for row, scene in enumerate(scenes):
        for column in range(CAPTIONS):
            tokens = _tokenizer.encode(speaker_caption(scene, rng).text, tokens=TOKENS)
            ids[row, column, : len(tokens)] = tokens
    return sheet(scenes), ids, score([draw_voice(rng, LONGEST / FRAME_RATE) for _ in scenes])


def draw_speakers(count: int, seed: int, device: torch.device, tokenizer: bytes) -> Speakers:
    """Draws at least `count` scenes with captions and voices. Call it before the process uses the GPU: it forks."""
    seeds = [(seed, block) for block in range(-(-count // BLOCK))]
    if "fork" in multiprocessing.get_all_start_methods() and len(seeds) > 4:
        with multiprocessing.get_context("fork").Pool(os.cpu_count(), _start, (tokenizer,)) as workers:
            blocks = workers.map(_block, seeds)
    else:
        _start(tokenizer)
        blocks = [_block(seed) for seed in seeds]
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
        stop = start + len(pool) * kind.share // sum(each.share for each in KINDS)
        whole = kind.size.frames + (MOTION_FRAMES if kind.going_on else -LEAD_IN)
        step = max(1, 12_000_000 // (whole * kind.size.height * kind.size.width))
        if plan.smoke:
            stop, step = start + 2, 2
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


def stage(
    model: WanTransformer, encoder: UMT5Encoder, negative: Tensor, latents: list[SoundLatents], plan: Plan
) -> Stage:
    """Squared error of the velocity; every kind of clip has its share of the steps."""
    hooks = training_hooks(model, plan.device)
    lighten(model, plan.device)
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    texts = Texts(encoder, latents, negative, fast)  # type: ignore[arg-type]
    turns = [index for index, kind in enumerate(KINDS) for _ in range(kind.share)]
    heard = torch.tensor(layers_heard(), device=plan.device)

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + RECIPE.salt * 10_000_000)
        index = turns[step * 7 % len(turns)]
        clips = latents[index]
        count = 2 if plan.smoke else max(4, RECIPE.tokens // KINDS[index].tokens)
        rows = torch.randint(len(clips.ids), (count,), generator=random, device=plan.device)
        text = texts.draw(index, rows, random)
        silent = torch.rand(count, generator=random, device=plan.device) < SILENT
        clean = clips.values[rows].float()
        noise = torch.randn(clean.shape, generator=random, device=plan.device)
        sigmas = draw_sigmas(RECIPE, count, random)
        wordless = (text == texts.nothing).flatten(1).all(1) | (text == texts.negative).flatten(1).all(1)
        sound = clips.sound[rows].float() * ~(wordless | silent)[:, None, None, None]
        given = clean, noise, sigmas, text, sound, clips.reference[rows].float()
        return given if clips.motion is None else (*given, clips.motion[rows].float())

    def loss(clean: Tensor, noise: Tensor, sigmas: Tensor, text: Tensor, sound: Tensor, *pictures: Tensor) -> Tensor:
        share = sigmas.view(-1, 1, 1, 1, 1)
        noisy = ((1 - share) * clean + share * noise).to(fast)
        given = SoundInputs(sound[:, heard], *pictures)
        velocity = model(noisy, sigmas * 1000, sound_conditioning(model, noisy, text, given), hooks)
        return (velocity - noise + clean).square().mean()

    def is_matrix(name: str, p: Tensor) -> bool:
        return (name.startswith("blocks.") or "injector.injector." in name) and p.ndim == 2

    rates = RECIPE.rate, RECIPE.matrix_rate
    return Stage(RECIPE.name, model, batch, loss, RECIPE.steps, *rates, is_matrix, low_precision=True)
