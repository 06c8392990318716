"""Clips that a drawing leads, encoded for VACE and Animate, and the way to film them.

A set of clips is kept as named tensors, one group for each size, so that each task adds what its model reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...wan_core.conditioning import Conditioning
from ...wan_core.tasks import Task
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.causal import CausalVAE
from ..drawings import Paths, draw_paths
from ..world import Sheet
from .data import Pool, Size, in_turn
from .flow import Latents, Recipe, Sizes, Texts, draw_sigmas
from .loop import Plan
from .sampling import Settings
from .vae import decode, encode

SIZES: Sizes = ((Size(17, 96, 96), 12), (Size(17, 80, 128), 2), (Size(33, 96, 96), 2))
PIXELS = 6_000_000  # that are encoded at once, frames counted
Encoded = list[dict[str, Tensor]]  # to each size: values, ids, and what the task reads


@dataclass(frozen=True)
class Batch:
    """Some scenes and their paths, about to be drawn."""

    scenes: Sheet
    places: Tensor  # [B, F, 2] of the first things
    size: Size
    rows: Tensor  # pixel centres
    columns: Tensor
    chance: Tensor  # [B] 0..1, to share out kinds of drawings
    others: Paths  # other paths for the same things


Encode = Callable[[CausalVAE, Batch], dict[str, Tensor]]


def paths_for(scenes: Sheet, seed: int) -> Paths:
    """Paths for the first things of scenes, on their device."""
    drawn = draw_paths(np.random.default_rng((seed, 7)), scenes.radius[:, 0].cpu().numpy())
    device = scenes.radius.device
    return Paths(*(torch.from_numpy(value).to(device) for value in vars(drawn).values()))


def batches(scenes: Sheet, size: Size, seed: int, *, pixels: int = PIXELS) -> Iterator[Batch]:
    """Cuts scenes into batches of clips of one size."""
    count, device = len(scenes.pan), scenes.pan.device
    paths, others = paths_for(scenes, seed), paths_for(scenes, seed + 1)
    chance = torch.from_numpy(np.random.default_rng((seed, 8)).uniform(size=count).astype(np.float32)).to(device)
    times, rows, columns = size.axes(device)
    step = size.clips_within(pixels)
    for start in range(0, count, step):
        some = slice(start, start + step)
        places = paths.rows(some).at(times, torch)
        yield Batch(scenes.rows(some), places, size, rows, columns, chance[some], others.rows(some))


@torch.no_grad()
def encode_pool(vae: CausalVAE, pool: Pool, sizes: Sizes, plan: Plan, seed: int, encode_batch: Encode) -> Encoded:
    """Draws and encodes every scene of the pool in one of the sizes."""
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    vae = vae.to(fast)
    found, start = [], 0
    for number, (size, share) in enumerate(sizes):
        whole = len(pool) * share // sum(share for _, share in sizes)
        whole -= whole % size.clips_within(PIXELS)  # full batches: cuDNN prepares each shape
        stop = start + (2 if plan.smoke else whole)
        some = slice(start, stop)
        parts = [encode_batch(vae, batch) for batch in batches(pool.scenes.rows(some), size, seed * 10 + number)]
        joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        found.append({**joined, "ids": pool.ids[some]})
        start = stop
    return found


def encoded(vae: CausalVAE, clips: Tensor) -> Tensor:
    """Clips [B, 3, F, H, W] in -1..1 -> normalised latents, in bfloat16."""
    return encode(vae, clips.to(next(vae.parameters()).dtype)).to(torch.bfloat16)


def signed(drawing: Tensor) -> Tensor:
    """[B, F, H, W, 3] in 0..1 -> [B, 3, F, H, W] in -1..1"""
    return drawing.permute(0, 4, 1, 2, 3) * 2 - 1


def pictures(clips: Tensor) -> np.ndarray:
    """[B, 3, F, H, W] in -1..1 -> [B, F, H, W, 3] in 0..1"""
    return (clips.float().cpu().permute(0, 2, 3, 4, 1) / 2 + 0.5).numpy()


def save(found: Encoded, path: Path) -> None:
    """Keeps encoded clips."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{name}.{k}": value.contiguous() for k, part in enumerate(found) for name, value in part.items()}, path)


def load(path: Path, device: torch.device) -> Encoded:
    """Reads what `save` wrote."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path, device=str(device)).items():
        name, _, number = key.rpartition(".")
        found.setdefault(int(number), {})[name] = value
    return [found[number] for number in sorted(found)]


def captions_of(found: Encoded) -> list[Latents]:
    """As flow.Texts takes them."""
    return [Latents(part["values"], part["ids"]) for part in found]


Conditions = Callable[[WanTransformer, Tensor], Conditioning]  # for one expert and the noisy latent


@dataclass(frozen=True)
class Drawn:
    """One batch of encoded clips, noised: what every stage that a drawing leads starts a step with."""

    clips: dict[str, Tensor]  # those of one size, all of them
    rows: Tensor  # [B], which of them
    clean: Tensor  # [B, C, T, H, W], float32
    noise: Tensor
    sigmas: Tensor  # [B]
    text: Tensor


def drawer(found: Encoded, recipe: Recipe, plan: Plan, texts: Texts) -> Callable[[int], Drawn]:
    """Draws the batch of a step: sizes by their shares in turn, as many clips as make the recipe's tokens."""
    shares = [share for _, share in recipe.sizes]
    tokens_of = [part["values"].shape[2] * part["values"].shape[3] * part["values"].shape[4] // 4 for part in found]

    def draw(step: int) -> Drawn:
        random = plan.generator(step + recipe.salt * 10_000_000)
        index = in_turn(shares, step)
        clips = found[index]
        count = 2 if plan.smoke else max(4, recipe.tokens // tokens_of[index])
        rows = torch.randint(len(clips["ids"]), (count,), generator=random, device=plan.device)
        clean = clips["values"][rows].float()
        noise = torch.randn(clean.shape, generator=random, device=plan.device)
        sigmas = draw_sigmas(recipe, count, random)
        return Drawn(clips, rows, clean, noise, sigmas, texts.draw(index, rows, random))

    return draw


def film(
    task: Task,
    experts: tuple[WanTransformer, WanTransformer],
    noise: Tensor,
    told: Conditions,
    untold: Conditions,
    settings: Settings,
) -> Tensor:
    """Euler steps from noise [B, C, F, H, W] to a latent, each by the expert in whose range it is."""
    dtype = torch.bfloat16 if noise.device.type == "cuda" else torch.float32
    x = noise
    for sigma, following in pairwise(settings.sigmas(task).tolist()):
        high = sigma >= (task.boundary or 0)
        model, scale = (experts[0], task.guidance_high) if high else (experts[1], task.guidance_low)
        scale = scale if settings.guidance is None else settings.guidance
        now, timestep = x.to(dtype), torch.full((len(x),), sigma * 1000, device=x.device)
        velocity = model(now, timestep, told(model, now))
        if scale != 1:
            other = model(now, timestep, untold(model, now))
            velocity = other + scale * (velocity - other)
        x = x + (following - sigma) * velocity
    return x


@torch.no_grad()
def developed(vae: CausalVAE, latents: Tensor) -> np.ndarray:
    """Latents -> clips [B, F, H, W, 3] in 0..1."""
    dtype = next(vae.parameters()).dtype
    return pictures(torch.cat([decode(vae, part.to(dtype)) for part in latents.split(16)]))


def share_of(answers: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Shares of right answers, by attribute."""
    return {name: float(np.mean([answer[name] for answer in answers])) for name in answers[0]}
