"""The plainest sampler, to look at what was trained: Euler steps, guidance, the experts switched at the boundary.

Clips for users are made by the pack's nodes, not by this.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...wan_core.conditioning import Conditioning
from ...wan_core.tasks import T2V_A14B
from ...wan_core.text.tokenizer import PAD, Tokenizer
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.wan21 import WanVAE21
from .data import Size
from .flow import embed, shifted
from .vae import decode


@dataclass(frozen=True)
class Family:
    """The models of the text-to-video task, on one device."""

    tokenizer: Tokenizer
    encoder: UMT5Encoder
    vae: WanVAE21
    high: WanTransformer
    low: WanTransformer

    def context(self, texts: list[str], device: torch.device) -> Tensor:
        """Texts -> context [B, L, D], zero on padding."""
        rows = [self.tokenizer.encode(text) for text in texts]
        longest = max(map(len, rows))
        return embed(self.encoder, torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=device))


@dataclass(frozen=True)
class Settings:
    """How to sample; the defaults are the official ones but for the number of steps."""

    steps: int = 20
    shift: float = T2V_A14B.shift
    guidance_high: float = T2V_A14B.guidance_high
    guidance_low: float = T2V_A14B.guidance_low

    def sigmas(self) -> Tensor:
        """Sigmas [steps + 1] from 1 to 0."""
        return shifted(torch.linspace(1, 0, self.steps + 1), self.shift)


def velocity(family: Family, x: Tensor, sigma: float, text: Tensor, negative: Tensor, settings: Settings) -> Tensor:
    """Guided velocity of the expert in whose range sigma lies."""
    assert T2V_A14B.boundary is not None
    high = sigma >= T2V_A14B.boundary
    model, scale = (family.high, settings.guidance_high) if high else (family.low, settings.guidance_low)
    timestep = torch.full((len(x),), sigma * 1000, device=x.device)
    told = model(x, timestep, Conditioning(text=text))
    if scale == 1:
        return told
    untold = model(x, timestep, Conditioning(text=negative))
    return untold + scale * (told - untold)


def noise_of(size: Size, seeds: list[int], device: torch.device) -> Tensor:
    """Noise [B, 16, F, H, W], one seed to a clip, the same on every device."""
    shape = (16, (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]).to(device)


@torch.no_grad()
def sample(family: Family, texts: list[str], negative: str, noise: Tensor, settings: Settings) -> Tensor:
    """Texts and noise -> clips [B, F, H, W, 3] in 0..1, on the CPU."""
    x, dtype = noise, torch.bfloat16 if noise.device.type == "cuda" else torch.float32
    text, blank = (family.context(words, noise.device) for words in (texts, [negative] * len(texts)))
    sigmas = settings.sigmas().tolist()
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * velocity(family, x.to(dtype), sigma, text, blank, settings)
    return (decode(family.vae, x).permute(0, 2, 3, 4, 1) / 2 + 0.5).float().cpu()
