"""Trains VAE 2.1 on clips of the pocket world, then fits its latents to the published statistics.

The decoder is trained on noisy latents of unit variance, so that it forgives what the transformer leaves uncertain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...wan_core.vae.latents import LatentStatistics
from ...wan_core.vae.wan21 import WanVAE21
from ..world import Sheet
from .data import Pool, Size, draw_clips
from .loop import Plan, Stage

SIZES = (Size(17, 64, 64), Size(9, 96, 96), Size(17, 96, 96), Size(33, 64, 64), Size(9, 128, 128), Size(17, 64, 96))
PIXELS = 420_000  # of a batch, frames counted
STEPS = 13_000
RATE = 2e-3
LATENT_NOISE = 0.12  # standard deviation, latents having 1
WHITENING = 0.02  # weight of the penalty on the latents' mean and variance
WHOLE = 1024  # frames to a chunk: clips are trained on in one piece


def encode(vae: WanVAE21, clips: Tensor) -> Tensor:
    """Clips [B, 3, F, H, W] in -1..1 -> normalised latents."""
    return vae.statistics.normalise(vae.encode(clips, frames=WHOLE))


def decode(vae: WanVAE21, latents: Tensor) -> Tensor:
    """Normalised latents -> clips [B, 3, F, H, W] in -1..1."""
    return vae.decode(vae.statistics.denormalise(latents), frames=WHOLE).clamp(-1, 1)


class Statistics:
    """The published statistics as tensors on one device, for a recorded training step."""

    def __init__(self, published: LatentStatistics, device: torch.device) -> None:
        self.mean, self.std = published.mean, published.std
        self._mean, self._std = (
            torch.tensor(values, device=device).view(-1, 1, 1, 1) for values in (published.mean, published.std)
        )

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw latent -> normalised latent."""
        return (latent - self._mean) / self._std

    def denormalise(self, latent: Tensor) -> Tensor:
        """Normalised latent -> raw latent."""
        return latent * self._std + self._mean


def stage(vae: WanVAE21, pool: Pool, plan: Plan) -> Stage:
    """Squared error with a little absolute error, on clips of several sizes in turn."""
    vae.statistics = Statistics(vae.statistics, plan.device)  # type: ignore[assignment]
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step)
        size = SIZES[step % len(SIZES)]
        count = 2 if plan.smoke else max(2, PIXELS // (size.frames * size.height * size.width))
        rows = torch.randint(len(pool), (count,), generator=random, device=plan.device)
        shape = (count, 16, (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8)
        return draw_clips(pool.scenes.rows(rows), size), torch.randn(shape, generator=random, device=plan.device)

    def loss(clips: Tensor, noise: Tensor) -> Tensor:
        latents = vae.statistics.normalise(vae.encode(clips.to(fast), frames=WHOLE).float())
        noisy = vae.statistics.denormalise(latents + LATENT_NOISE * noise)
        made = vae.decode(noisy.to(fast), frames=WHOLE).float()
        variance, mean = torch.var_mean(latents, dim=(0, 2, 3, 4))
        spread = (mean.square() + variance.clamp(min=1e-6).log().square()).mean()
        return F.mse_loss(made, clips) + 0.1 * F.l1_loss(made, clips) + WHITENING * spread

    return Stage("vae21", vae, batch, loss, STEPS, RATE, weight_decay=0.0)


@torch.no_grad()
def fit_statistics(vae: WanVAE21, pool: Pool, plan: Plan) -> None:
    """Moves what is left of mean and variance into conv1 and conv2, so that normalised latents have 0 and 1."""
    latents = []
    for step, size in enumerate(SIZES):
        rows = torch.arange(2 if plan.smoke else 64, device=plan.device) + step * 64
        latents.append(encode(vae, draw_clips(pool.scenes.rows(rows % len(pool)), size)).movedim(1, 0).flatten(1))
    deviation, mean = torch.std_mean(torch.cat(latents, 1), dim=1)
    published_mean, published_std = (
        torch.tensor(values, device=plan.device) for values in (vae.statistics.mean, vae.statistics.std)
    )
    # raw' = raw * gain + offset gives (raw' - published mean) / published std mean 0 and deviation 1
    gain = 1 / deviation
    offset = published_mean - gain * (published_mean + mean * published_std)
    half = len(gain)
    vae.conv1.weight[:half] *= gain.view(-1, 1, 1, 1, 1)
    vae.conv1.bias[:half] = vae.conv1.bias[:half] * gain + offset
    vae.conv2.bias -= vae.conv2.weight[..., 0, 0, 0] @ (offset / gain)
    vae.conv2.weight /= gain.view(1, -1, 1, 1, 1)


@torch.no_grad()
def psnr(vae: WanVAE21, scenes: Sheet, size: Size) -> float:
    """Peak signal to noise ratio in dB over clips of these scenes."""
    clips = draw_clips(scenes, size)
    error = F.mse_loss(decode(vae, encode(vae, clips)), clips) / 4  # of -1..1, so 4 is the peak squared
    return float(-10 * torch.log10(error))
