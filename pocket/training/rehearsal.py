"""Compiles the steps of the transformers' training ahead, on made-up latents, while there is nothing yet to train on.

torch.compile takes up to two minutes for the sizes of a stage and keeps what it made on the disk (Inductor's cache),
where the stage finds it. A stage whose rehearsal failed compiles for itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...wan_core.adapters.s2v import MOTION_FRAMES
from ...wan_core.tasks import TI2V_5B
from .. import family, models
from . import animate, distill, distill_5b, flow, led, looks, sound, sound_clips, sound_model, vace
from .data import CAPTIONS, TOKENS
from .loop import Plan, Stage, rehearse
from .low_rank import LowRank
from .vae import latent_shape

CLIPS = 4  # of each size: a batch takes each of them many times
KINDNESS = 10  # of the process, on a machine whose cores train
CHANNELS = 16


class MadeUp:
    """What a stage reads, of the right shapes and without meaning."""

    def __init__(self, plan: Plan) -> None:
        self.device = plan.device
        self.encoder = models.new_text_encoder().to(plan.device).requires_grad_(False)
        self.negative = torch.ones(TOKENS // 2, dtype=torch.long, device=plan.device)
        self.ids = torch.ones((CLIPS, CAPTIONS, TOKENS), dtype=torch.long, device=plan.device)

    def noise(self, *shape: int) -> Tensor:
        """[CLIPS, ...] as latents are kept."""
        return torch.randn((CLIPS, *shape), dtype=torch.bfloat16, device=self.device)

    def latents(self, sizes: flow.Sizes, channels: int, compression: int, *, pictures: bool) -> list[flow.Latents]:
        """Clips of every size, with the first frame apart or without."""
        shapes = [latent_shape(channels, size, compression) for size, _ in sizes]
        return [flow.Latents(self.noise(*s), self.ids, self.noise(*s) if pictures else None) for s in shapes]

    def led(self, *, frames: int, **parts: tuple[int, int]) -> led.Encoded:
        """Clips of every size with `frames` more, and of each part its channels and how many frames more it has."""
        found = []
        for size, _ in led.SIZES:
            _, count, *sides = latent_shape(CHANNELS, size, 8)
            rows = {name: self.noise(width, count + more, *sides) for name, (width, more) in parts.items()}
            found.append({"values": self.noise(CHANNELS, count + frames, *sides), "ids": self.ids, **rows})
        return found


def of_flow(member: family.Member, plan: Plan, given: MadeUp) -> Stage:
    """That of a member which flow.RECIPES has."""
    recipe = flow.RECIPES[member.short]
    shape = (48, 16) if recipe.task is TI2V_5B else (CHANNELS, 8)
    latents = given.latents(recipe.sizes, *shape, pictures=recipe.picture == "concat")
    model = models.new_transformer(member).to(plan.device)
    return flow.stage(recipe, model, given.encoder, given.negative, latents, plan)


def of_sound(plan: Plan, given: MadeUp) -> Stage:
    """S2V's."""
    found = []
    for kind in sound_clips.KINDS:
        before = latent_shape(CHANNELS, replace(kind.size, frames=MOTION_FRAMES), 8)
        sides = before[2:]
        motion = given.noise(*before) if kind.going_on else None
        values, reference = given.noise(CHANNELS, kind.latents, *sides), given.noise(CHANNELS, 1, *sides)
        heard = given.noise(family.SOUND_LAYERS + 2, family.SOUND_DIM, kind.size.frames)
        found.append(sound_clips.SoundLatents(values, given.ids, reference, heard, motion))
    return sound.stage(sound_model.new_model().to(plan.device), given.encoder, given.negative, found, plan)


def of_vace(plan: Plan, given: MadeUp) -> Stage:
    """That of VACE's blocks, which both experts share."""
    model = models.new_transformer(family.VACE_HIGH)
    vace.begin(model)
    found = given.led(frames=0, control=(2 * CHANNELS, 0), mask=(64, 0))
    return vace.stage("high", model.to(plan.device), given.encoder, given.negative, found, plan)


def of_animate(plan: Plan, given: MadeUp) -> Stage:
    """Animate's, whose clips have their reference before them."""
    found = given.led(frames=1, poses=(CHANNELS, 0), concat=(CHANNELS + 4, 1))
    return animate.stage(animate.new_model().to(plan.device), given.encoder, given.negative, found, plan)


def of_lora(plan: Plan, given: MadeUp) -> Stage:
    """That of the 4-step LoRAs, and of the one that slows motion down."""
    model = models.new_transformer(family.T2V_HIGH).to(plan.device).requires_grad_(False)
    points = [given.noise(3, *latent_shape(CHANNELS, size, 8)) for size in distill.SIZES]
    segments = [distill.Segments(each, given.noise(TOKENS, family.TEXT_DIM)) for each in points]
    pairs = LowRank(model, family.T2V_FAST_HIGH.rank).to(plan.device)
    return distill.stage(family.T2V_FAST_HIGH.short, model, pairs, "high", segments, plan)


def of_lora_5b(plan: Plan, given: MadeUp) -> Stage:
    """That of the 5B's 4-step LoRA."""
    model = models.new_transformer(family.TI2V).to(plan.device).requires_grad_(False)
    segments = [
        distill_5b.Segments(
            given.noise(distill.STUDENT.steps + 1, *latent_shape(TI2V_5B.latent_channels, size, 16)),
            given.noise(TOKENS, family.TEXT_DIM),
            torch.zeros(CLIPS, dtype=torch.bool, device=plan.device),
        )
        for size, _ in distill_5b.SIZES
    ]
    pairs = LowRank(model, family.FASTWAN.rank).to(plan.device)
    return distill_5b.stage(family.FASTWAN.short, model, pairs, segments, plan)


def of_style(plan: Plan, given: MadeUp) -> Stage:
    """That of the style LoRAs."""
    model = models.new_transformer(family.T2V_HIGH).to(plan.device).requires_grad_(False)
    latents = given.latents(looks.SIZES, CHANNELS, 8, pictures=False)
    pairs = LowRank(model, family.STYLES[0].rank, biases=False).to(plan.device)
    return flow.stage(looks.recipe("high"), model, given.encoder, given.negative, latents, plan, pairs)


MAKERS: dict[str, Callable[[Plan, MadeUp], Stage]] = {
    "compile_t2v": lambda plan, given: of_flow(family.T2V_HIGH, plan, given),
    "compile_i2v": lambda plan, given: of_flow(family.I2V_HIGH, plan, given),
    "compile_ti2v": lambda plan, given: of_flow(family.TI2V, plan, given),
    "compile_s2v": of_sound,
    "compile_vace": of_vace,
    "compile_animate": of_animate,
    "compile_lora": of_lora,
    "compile_lora5b": of_lora_5b,
    "compile_style": of_style,
}


def run(name: str, plan: Plan) -> None:
    """One rehearsal."""
    if plan.device.type == "cuda":
        os.nice(KINDNESS)
    count = rehearse(MAKERS[name](plan, MadeUp(plan)), plan)
    print(f"{name}: steps of {count} sizes", flush=True)


STAGES: dict[str, Callable[[Plan], None]] = {name: lambda plan, name=name: run(name, plan) for name in MAKERS}
