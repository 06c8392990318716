"""Trains the 4-step LoRA pair: each student step learns to go where the guided teacher goes in many steps.

The teacher's trajectories are solved once, in fine steps that also stop at the student's sigmas; the student's velocity
at such a sigma is fitted to the straight line to the next one. Guidance is baked in, so the student samples at scale 1.
Sigmas as in Wan2.2-Lightning: 4 steps of shift 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...wan_core.conditioning import Conditioning
from ...wan_core.tasks import T2V_A14B
from ...wan_core.transformer import WanTransformer
from .blocks import training_hooks
from .data import Size
from .flow import embed
from .loop import Plan, Stage
from .low_rank import LowRank
from .sampling import Family, Inputs, Settings, trail
from .vae import latent_shape

STUDENT = Settings(steps=4, shift=5.0, guidance=1.0)
TEACHER = Settings(steps=20)
SIZES = (Size(17, 96, 96),)
BATCHES = 60  # of trajectories, to each entry of SIZES
BATCH_TOKENS = 24_000
STEPS = 8_000
RATE = 1e-3
SALT = {"high": 6, "low": 7}


@dataclass(frozen=True)
class Segments:
    """Points of guided trajectories at the student's sigmas, of clips of one size."""

    points: Tensor  # [N, student sigmas, 16, F, H, W]
    text: Tensor  # [N, L, D]


def steps_of(expert: str) -> list[int]:
    """Which of the student's steps an expert takes."""
    boundary = T2V_A14B.boundary
    assert boundary is not None
    stops = STUDENT.sigmas(T2V_A14B).tolist()
    return [k for k in range(STUDENT.steps) if (stops[k] >= boundary) == (expert == "high")]


@torch.no_grad()
def solve(
    family: Family, asked: Tensor, negative: Tensor, expert: str, plan: Plan, taught: Tensor | None = None
) -> list[Segments]:
    """Guided trajectories of the pair, kept at the sigmas where the student of `expert` starts and ends its steps.

    `asked` [N, L] are the token ids that the student reads, and the teacher where it does not read `taught`.
    """
    taught = asked if taught is None else taught
    stops, own = STUDENT.sigmas(T2V_A14B).tolist(), steps_of(expert)
    kept = [*own, own[-1] + 1]
    fine = sorted({*TEACHER.sigmas(T2V_A14B).tolist(), *stops}, reverse=True)
    fine = fine[: fine.index(stops[kept[-1]]) + 1]
    blank = embed(family.encoder, negative[None])
    found = []
    for number, size in enumerate(SIZES):
        points, texts = [], []
        for batch_number in range(1 if plan.smoke else BATCHES):
            random = plan.generator(50_000_000 + number * 1000 + batch_number)
            batch = 2 if plan.smoke else BATCH_TOKENS // size.tokens * 2
            rows = torch.randint(len(asked), (batch,), generator=random, device=plan.device)
            text = embed(family.encoder, asked[rows])
            inputs = Inputs(embed(family.encoder, taught[rows]), blank.expand(batch, -1, -1))
            shape = (batch, *latent_shape(16, size, 8))
            x = torch.randn(shape, generator=random, device=plan.device)
            passed = dict(trail(family, x, fine, inputs, TEACHER))
            points.append(torch.stack([passed[stops[k]] for k in kept], 1).to(torch.bfloat16))
            texts.append(text.to(torch.bfloat16))
        found.append(Segments(torch.cat(points), torch.cat(texts)))
    return found


def stage(name: str, model: WanTransformer, pairs: LowRank, expert: str, segments: list[Segments], plan: Plan) -> Stage:
    """Squared error of the slope between two of the student's sigmas."""
    stops, own = STUDENT.sigmas(T2V_A14B).tolist(), steps_of(expert)
    sigmas = torch.tensor([stops[k] for k in (*own, own[-1] + 1)], device=plan.device)
    hooks = training_hooks(model, plan.device, pairs.weights)

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + SALT[expert] * 10_000_000)
        clips, size = segments[step % len(SIZES)], SIZES[step % len(SIZES)]
        count = 2 if plan.smoke else max(4, BATCH_TOKENS // size.tokens)
        rows = torch.randint(len(clips.text), (count,), generator=random, device=plan.device)
        start = torch.randint(len(own), (count,), generator=random, device=plan.device)
        here, there = clips.points[rows, start], clips.points[rows, start + 1]
        width = (sigmas[start] - sigmas[start + 1]).view(-1, 1, 1, 1, 1)
        return here, (here.float() - there.float()) / width, sigmas[start], clips.text[rows]

    def loss(here: Tensor, slope: Tensor, start: Tensor, text: Tensor) -> Tensor:
        return F.mse_loss(model(here, start * 1000, Conditioning(text=text), hooks), slope)

    return Stage(name, pairs, batch, loss, STEPS, RATE)
