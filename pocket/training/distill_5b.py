"""Trains TI2V-5B's 4-step LoRA, one for text and for pictures: as distill.py does, over all of the student's steps.

Half of the trajectories begin with a picture: its latent frame has no noise, is told so by its timestep, and is not
predicted. Schedule as in quanhaol/Wan2.2-TI2V-5B-Turbo, whose steps are 1000, 750, 500 and 250 before a shift of 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...wan_core.conditioning import Conditioning
from ...wan_core.tasks import TI2V_5B
from ...wan_core.transformer import WanTransformer
from .blocks import training_hooks
from .data import CAPTIONS, Pool, Size, draw_first, in_turn
from .distill import STUDENT, TEACHER
from .flow import SIZES_5B, embed
from .loop import Plan, Stage
from .low_rank import LowRank
from .sampling import Family, Inputs, trail
from .vae import encode, latent_shape

SIZES = SIZES_5B  # the teacher obeys at no others
BATCHES = 2  # of trajectories, to each share of a size: one from text, one from pictures
BATCH_TOKENS = 24_000
STEPS = 8_000
RATE = 1e-3
SALT = 9


@dataclass(frozen=True)
class Segments:
    """Points of guided trajectories at the student's sigmas, of clips of one size."""

    points: Tensor  # [N, student sigmas, 48, F, H, W]
    text: Tensor  # [N, L, D]
    given: Tensor  # [N] whether the first latent frame is a picture's


def clips_of(size: Size, tokens: int) -> int:
    """How many clips have so many tokens: 4 x 32 x 32 to one."""
    return tokens * 4 // size.tokens


@torch.no_grad()
def solve(family: Family, pool: Pool, negative: Tensor, plan: Plan) -> list[Segments]:
    """Guided trajectories from text and from pictures in turn, kept at the student's sigmas."""
    stops = STUDENT.sigmas(TI2V_5B).tolist()
    fine = sorted({*TEACHER.sigmas(TI2V_5B).tolist(), *stops}, reverse=True)
    blank, found = embed(family.encoder, negative[None]), []
    for number, (size, share) in enumerate(SIZES):
        points, texts, given = [], [], []
        for batch in range(BATCHES * (1 if plan.smoke else share)):
            random = plan.generator(60_000_000 + number * 1000 + batch)
            count = 1 if plan.smoke else clips_of(size, 2 * BATCH_TOKENS)
            rows, column = torch.randint(len(pool), (2, count), generator=random, device=plan.device)
            text = embed(family.encoder, pool.ids[rows, column % CAPTIONS])
            first = None
            if batch % 2:
                first = encode(family.vae, draw_first(pool.scenes.rows(rows), size))
            shape = (count, *latent_shape(TI2V_5B.latent_channels, size, family.vae.compression))
            noise = torch.randn(shape, generator=random, device=plan.device)
            inputs = Inputs(text, blank.expand(count, -1, -1), first=first)
            passed = {sigma: x for sigma, x in trail(family, noise, fine, inputs, TEACHER) if sigma in stops}
            points.append(torch.stack([passed[stop] for stop in stops], 1))
            texts.append(text)
            given.append(torch.full((count,), first is not None, device=plan.device))
        found.append(Segments(torch.cat(points), torch.cat(texts), torch.cat(given)))
    return found


def stage(name: str, model: WanTransformer, pairs: LowRank, segments: list[Segments], plan: Plan) -> Stage:
    """Squared error of the slope between two of the student's sigmas, of the frames that are not given."""
    sigmas = STUDENT.sigmas(TI2V_5B).to(plan.device)
    hooks = training_hooks(model, plan.device, pairs.weights)
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    shares = [share for _, share in SIZES]

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + SALT * 10_000_000)
        index = in_turn(shares, step)
        clips = segments[index]
        count = 2 if plan.smoke else clips_of(SIZES[index][0], BATCH_TOKENS)
        rows = torch.randint(len(clips.text), (count,), generator=random, device=plan.device)
        start = torch.randint(STUDENT.steps, (count,), generator=random, device=plan.device)
        here, there = clips.points[rows, start], clips.points[rows, start + 1]
        width = (sigmas[start] - sigmas[start + 1]).view(-1, 1, 1, 1, 1)
        share = sigmas[start][:, None].repeat(1, here.shape[2])
        share[:, 0] *= ~clips.given[rows]
        return here.to(fast), (here - there) / width, share, clips.text[rows].to(fast)

    def loss(here: Tensor, slope: Tensor, share: Tensor, text: Tensor) -> Tensor:
        told = share.view(len(share), 1, -1, 1, 1) > 0
        return F.mse_loss(model(here, share * 1000, Conditioning(text=text), hooks) * told, slope * told)

    return Stage(name, pairs, batch, loss, STEPS, RATE)
