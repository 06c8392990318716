"""Trains S2V: clips of things that open and close, from a picture, a sound and, where a clip goes on, what was before.

The inputs are those of inference: `sound_conditioning` fills the slots, the features come from the miniature wav2vec2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...wan_core.audio.conditioning import SoundInputs, sound_conditioning
from ...wan_core.tasks import S2V_14B
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from .blocks import training_hooks
from .data import in_turn
from .flow import Recipe, Texts, draw_sigmas
from .hearing import layers_heard
from .loop import Plan, Stage
from .sound_clips import KINDS, SoundLatents
from .sound_model import lighten

RECIPE = Recipe("s2v", S2V_14B, "both", (), "", salt=8, steps=14_000, tokens=18_000)
SILENT = 0.05  # share of the clips with their text whose sound is left out


def stage(
    model: WanTransformer, encoder: UMT5Encoder, negative: Tensor, latents: list[SoundLatents], plan: Plan
) -> Stage:
    """Squared error of the velocity; every kind of clip has its share of the steps."""
    hooks = training_hooks(model, plan.device)
    lighten(model, plan.device)
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    texts = Texts(encoder, latents, negative, fast)  # type: ignore[arg-type]
    shares = [kind.share for kind in KINDS]
    heard = torch.tensor(layers_heard(), device=plan.device)

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + RECIPE.salt * 10_000_000)
        index = in_turn(shares, step)
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
