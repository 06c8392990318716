"""Trains the 4-step LoRA pair: each student step learns to go where the guided teacher goes in many steps.

The teacher's trajectories are solved once, in fine steps that also stop at the student's sigmas; the student's velocity
at such a sigma is fitted to the straight line to the next one. Guidance is baked in, so the student samples at scale 1.
Sigmas as in Wan2.2-Lightning: 4 steps of shift 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...wan_core.conditioning import Conditioning
from ...wan_core.tasks import T2V_A14B
from ...wan_core.transformer import WanTransformer
from .data import Pool, Size
from .flow import embed
from .loop import Plan, Stage
from .sampling import Family, Settings, velocity

STUDENT = Settings(steps=4, shift=5.0, guidance_high=1.0, guidance_low=1.0)
SIZES = (Size(17, 96, 96), Size(17, 96, 96), Size(17, 96, 96), Size(17, 64, 64), Size(17, 80, 128), Size(33, 96, 96))
BATCHES = 24  # of trajectories, to each entry of SIZES
BATCH_TOKENS = 24_000
STEPS = 6000
RATE = 1e-3


@dataclass(frozen=True)
class Segments:
    """Points of guided trajectories at the student's sigmas, of clips of one size."""

    points: Tensor  # [N, student sigmas, 16, F, H, W]
    text: Tensor  # [N, L, D]


class LowRank(nn.Module):
    """The low-rank pairs of every linear layer in a transformer's blocks, added to its output."""

    def __init__(self, model: WanTransformer, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.pairs = nn.ModuleDict()
        for name, layer in model.blocks.named_modules():
            if isinstance(layer, nn.Linear):
                down = nn.Linear(layer.in_features, rank, bias=False)
                up = nn.Linear(rank, layer.out_features, bias=False)
                nn.init.zeros_(up.weight)
                self.pairs[name.replace(".", "/")] = nn.ModuleDict({"down": down, "up": up})
                layer.register_forward_hook(self._branch(down, up))

    @staticmethod
    def _branch(down: nn.Linear, up: nn.Linear) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def add(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            low = F.linear(inputs[0], down.weight.to(output))
            return output + F.linear(low, up.weight.to(output))

        return add

    def save(self, path: Path) -> None:
        """Writes the pairs in the layout of the published 4-step LoRAs."""
        weights = {}
        for name, pair in self.pairs.items():
            key = "diffusion_model.blocks." + name.replace("/", ".")
            weights[f"{key}.lora_down.weight"] = pair["down"].weight
            weights[f"{key}.lora_up.weight"] = pair["up"].weight
        stored = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in weights.items()}
        alphas = {
            name.replace("lora_down.weight", "alpha"): torch.tensor(float(self.rank))
            for name in stored
            if "lora_down" in name
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({**stored, **alphas}, path, metadata={"format": "pt"})


@torch.no_grad()
def solve(family: Family, pool: Pool, negative: Tensor, expert: str, plan: Plan) -> list[Segments]:
    """Guided trajectories of the pair, kept at the sigmas where the student of `expert` starts and ends its steps."""
    boundary = T2V_A14B.boundary
    assert boundary is not None
    stops = STUDENT.sigmas().tolist()
    own = [k for k in range(4) if (stops[k] >= boundary) == (expert == "high")]
    kept = [*own, own[-1] + 1]
    fine = sorted({*Settings(steps=20).sigmas().tolist(), *stops}, reverse=True)
    fine = fine[: fine.index(stops[kept[-1]]) + 1]
    blank = embed(family.encoder, negative[None])
    found = []
    for number, size in enumerate(SIZES):
        points, texts = [], []
        for batch_number in range(1 if plan.smoke else BATCHES):
            random = plan.generator(50_000_000 + number * 1000 + batch_number)
            batch = 2 if plan.smoke else BATCH_TOKENS // size.tokens * 2
            rows = torch.randint(len(pool), (batch,), generator=random, device=plan.device)
            text = embed(family.encoder, pool.ids[rows, 0])
            shape = (batch, 16, (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8)
            x = torch.randn(shape, generator=random, device=plan.device)
            trail = {1.0: x}
            for sigma, following in pairwise(fine):
                guided = velocity(family, x.to(torch.bfloat16), sigma, text, blank.expand(batch, -1, -1), Settings())
                x = trail[following] = x + (following - sigma) * guided
            points.append(torch.stack([trail[stops[k]] for k in kept], 1).to(torch.bfloat16))
            texts.append(text.to(torch.bfloat16))
        found.append(Segments(torch.cat(points), torch.cat(texts)))
    return found


def stage(model: WanTransformer, pairs: LowRank, expert: str, segments: list[Segments], plan: Plan) -> Stage:
    """Squared error of the slope between two of the student's sigmas."""
    boundary = T2V_A14B.boundary
    assert boundary is not None
    stops = STUDENT.sigmas().tolist()
    own = [k for k in range(4) if (stops[k] >= boundary) == (expert == "high")]
    sigmas = torch.tensor([stops[k] for k in (*own, own[-1] + 1)], device=plan.device)

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + (6 if expert == "high" else 7) * 10_000_000)
        clips, size = segments[step % len(SIZES)], SIZES[step % len(SIZES)]
        count = 2 if plan.smoke else max(4, BATCH_TOKENS // size.tokens)
        rows = torch.randint(len(clips.text), (count,), generator=random, device=plan.device)
        start = torch.randint(len(own), (count,), generator=random, device=plan.device)
        here, there = clips.points[rows, start], clips.points[rows, start + 1]
        width = (sigmas[start] - sigmas[start + 1]).view(-1, 1, 1, 1, 1)
        return here, (here.float() - there.float()) / width, sigmas[start], clips.text[rows]

    def loss(here: Tensor, slope: Tensor, start: Tensor, text: Tensor) -> Tensor:
        return F.mse_loss(model(here, start * 1000, Conditioning(text=text)), slope)

    return Stage(f"lora_{expert}", pairs, batch, loss, STEPS, RATE, weight_decay=0.0)


@torch.no_grad()
def merge(model: WanTransformer, path: Path) -> None:
    """Adds a stored LoRA to the weights of a transformer, at strength 1."""
    weights = load_file(path)
    layers = dict(model.named_modules())
    for name, down in weights.items():
        if name.endswith(".lora_down.weight"):
            key = name.removesuffix(".lora_down.weight")
            scale = float(weights[f"{key}.alpha"]) / len(down)
            delta = scale * weights[f"{key}.lora_up.weight"].float() @ down.float()
            layer = layers[key.removeprefix("diffusion_model.")]
            layer.weight += delta.to(layer.weight)
