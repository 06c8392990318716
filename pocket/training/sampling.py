"""The plainest sampler, to look at what was trained: Euler steps, guidance, the experts switched at the boundary.

Clips for users are made by the pack's nodes, not by this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...wan_core.conditioning import Conditioning
from ...wan_core.prompts import NEGATIVE
from ...wan_core.tasks import Task
from ...wan_core.text.tokenizer import PAD, Tokenizer
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.causal import CausalVAE
from .data import Size
from .flow import embed, encode_first, picture_channels, shifted
from .vae import decode, encode, latent_shape


@dataclass(frozen=True)
class Family:
    """The models of one task, on one device; `low` is `high` where there is one expert."""

    task: Task
    tokenizer: Tokenizer
    encoder: UMT5Encoder
    vae: CausalVAE
    high: WanTransformer
    low: WanTransformer

    def context(self, texts: list[str], device: torch.device) -> Tensor:
        """Texts -> context [B, L, D], zero on padding."""
        rows = [self.tokenizer.encode(text) for text in texts]
        longest = max(map(len, rows))
        return embed(self.encoder, torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=device))


@dataclass(frozen=True)
class Settings:
    """How to sample; None: as the task does officially."""

    steps: int = 20
    shift: float | None = None
    guidance: float | None = None  # of both experts

    def sigmas(self, task: Task) -> Tensor:
        """Sigmas [steps + 1] from 1 to 0."""
        return shifted(torch.linspace(1, 0, self.steps + 1), self.shift or task.shift)


@dataclass(frozen=True)
class Inputs:
    """What one batch of clips is made from."""

    text: Tensor
    blank: Tensor
    concat: Tensor | None = None  # [B, 20, F, H, W]
    first: Tensor | None = None  # [B, C, 1, H, W] latent of the first frame


def velocity(family: Family, x: Tensor, sigma: float, inputs: Inputs, settings: Settings) -> Tensor:
    """Guided velocity of the expert in whose range sigma lies."""
    task = family.task
    high = sigma >= (task.boundary or 0)
    model, scale = (family.high, task.guidance_high) if high else (family.low, task.guidance_low)
    scale = scale if settings.guidance is None else settings.guidance
    timestep = torch.full((len(x),), sigma * 1000, device=x.device)
    if family.task.latent_channels == 48:
        timestep = timestep[:, None].repeat(1, x.shape[2])
        if inputs.first is not None:
            timestep[:, 0] = 0
    told = model(x, timestep, Conditioning(text=inputs.text, concat=inputs.concat))
    if scale == 1:
        return told
    untold = model(x, timestep, Conditioning(text=inputs.blank, concat=inputs.concat))
    return untold + scale * (told - untold)


def noise_of(family: Family, size: Size, seeds: list[int], device: torch.device) -> Tensor:
    """Noise [B, C, F, H, W], one seed to a clip, the same on every device."""
    shape = latent_shape(family.task.latent_channels, size, family.vae.compression)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(device)


def trail(
    family: Family, x: Tensor, sigmas: Sequence[float], inputs: Inputs, settings: Settings
) -> Iterator[tuple[float, Tensor]]:
    """Yields (sigma, clips) on the way of noise [B, C, F, H, W] by Euler steps; a first frame that is given stays."""
    dtype = torch.bfloat16 if x.device.type == "cuda" else torch.float32
    for sigma, following in zip(sigmas, (*sigmas[1:], None), strict=True):
        if inputs.first is not None:
            x = torch.cat([inputs.first, x[:, :, 1:]], dim=2)
        yield sigma, x
        if following is not None:
            x = x + (following - sigma) * velocity(family, x.to(dtype), sigma, inputs, settings)


@torch.no_grad()
def sample(
    family: Family,
    texts: list[str],
    noise: Tensor,
    settings: Settings,
    *,
    negative: str = NEGATIVE,
    clips: Tensor | None = None,
) -> Tensor:
    """Texts and noise -> clips [B, F, H, W, 3] in 0..1, on the CPU; `clips` [B, 3, F, H, W] give the first frames."""
    dtype = torch.bfloat16 if noise.device.type == "cuda" else torch.float32
    text, blank = (family.context(words, noise.device) for words in (texts, [negative] * len(texts)))
    concat = first = None
    if clips is not None and family.task.latent_channels == 48:
        first = encode(family.vae, clips[:, :, :1])
    elif clips is not None:
        concat = picture_channels(encode_first(family.vae, clips)).to(dtype)
    inputs, latents = Inputs(text, blank, concat, first), noise
    for _, passed in trail(family, noise, settings.sigmas(family.task).tolist(), inputs, settings):
        latents = passed
    return (decode(family.vae, latents).permute(0, 2, 3, 4, 1) / 2 + 0.5).float().cpu()
