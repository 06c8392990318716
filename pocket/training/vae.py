"""Trains a VAE on clips of the pocket world.

A variational autoencoder in the plain sense: the latents have a learned noise and are held near a unit normal, so that
they tell no more than the picture needs, and a transformer has little to learn. Both VAEs of the family are trained so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...wan_core.vae.causal import CausalVAE, ChannelNorm, FrameCache
from ...wan_core.vae.latents import LatentStatistics
from ..voice import FRAME_RATE
from ..world import Sheet
from .data import Pool, Size, draw_clips
from .loop import Plan, Stage

SIZES = (  # first frames have a way of their own, so they come alone as well; long clips keep their colours only if met
    Size(17, 96, 96),
    Size(1, 128, 128),
    Size(9, 128, 128),
    Size(17, 96, 96),
    Size(81, 64, 64),
)
EARLY = 0.5  # share of the steps on smaller batches, of which more fit into the time
EARLY_SIZES = (Size(17, 96, 96), Size(1, 128, 128), Size(9, 128, 128))
PIXELS, EARLY_PIXELS = 480_000, 160_000  # of a batch, frames counted
STEPS = {16: 18_000, 48: 22_000}  # by the latents' channels
RATE = 2e-3
MATRIX_RATE = 3e-3
PRIOR = {16: 4e-5, 48: 3e-5}  # weight of the latents' divergence from the unit normal, by their channels
ABSOLUTE = 0.05  # weight of the absolute error
OUTLINES = 0.1  # weight of the absolute error of the differences between neighbouring pixels
MOUTHS = 0.35  # share of the clips in which things open and close
PACE = (0.3, 2.6)  # how often they do, in times per second


def latent_shape(channels: int, size: Size, compression: int) -> tuple[int, int, int, int]:
    """[C, F, H, W] of the latents of a clip."""
    return channels, (size.frames - 1) // 4 + 1, size.height // compression, size.width // compression


def encode(vae: CausalVAE, clips: Tensor) -> Tensor:
    """Clips [B, 3, F, H, W] in -1..1 -> normalised latents, float32; frames after the last 4n + 1 are left out.

    In one piece with the first frame, which `CausalVAE.encode` takes alone: half the kernels, and half the shapes for
    which cuDNN prepares every way of every convolution.
    """
    return posterior(vae, clips[:, :, : 1 + (clips.shape[2] - 1) // 4 * 4], FrameCache())[0]


def decode(vae: CausalVAE, latents: Tensor) -> Tensor:
    """Normalised latents -> clips [B, 3, F, H, W] in -1..1; in one piece, as `encode`."""
    raw = vae.conv2(vae.statistics.denormalise(latents))
    return vae.unfold(vae.decoder(raw, FrameCache())).clamp(-1, 1)


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


def posterior(vae: CausalVAE, clips: Tensor, cache: FrameCache) -> tuple[Tensor, Tensor]:
    """Clips -> mean of the normalised latents, and the logarithm of their variance; `cache` is a new one."""
    mean, log_variance = vae.conv1(vae.encoder(vae.fold(clips), cache)).float().chunk(2, dim=1)
    return vae.statistics.normalise(mean), log_variance.clamp(-12, 4)


def outlines(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring columns and rows."""
    return clips[..., 1:] - clips[..., :-1], clips[..., 1:, :] - clips[..., :-1, :]


def silu_of(layer: ChannelNorm) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What stands before every convolution of a block, in one kernel where it has a gradient."""
    from .norm_silu import NormSilu  # needs Triton, which is there where a GPU is

    def silu(x: Tensor, past: Tensor | None) -> Tensor:
        if past is not None or not torch.is_grad_enabled():
            return ChannelNorm.silu(layer, x, past)
        return NormSilu.apply(x, layer.gamma)

    return silu


class OneChunk(FrameCache):
    """Of clips in one piece, with gradients: no layer meets them again, so none keeps copies.

    Without gradients a kernel may cut a clip into pieces, and needs them.
    """

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        """Nothing."""


def draw_openings(count: int, frames: int, random: torch.Generator) -> Tensor:
    """Openings [B, F] of things that open and close like mouths; of most clips 0."""
    pace, phase, level, chance = torch.rand((4, count, 1), generator=random, device=random.device)
    pace = PACE[0] + (PACE[1] - PACE[0]) * pace
    times = torch.arange(frames, device=random.device) / FRAME_RATE
    return torch.sin(math.pi * (pace * times + phase)).square() * level.sqrt() * (chance < MOUTHS)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """True for the convolutions inside the towers."""
    return parameter.ndim >= 4 and parameter.shape[0] > 3 and parameter[0].numel() >= 16 and "residual" in name


def stage(vae: CausalVAE, pool: Pool, plan: Plan) -> Stage:
    """Error of the pixels and of their differences, and divergence of the latents, on clips of several sizes."""
    vae.statistics = Statistics(vae.statistics, plan.device)  # type: ignore[assignment]
    channels = len(vae.statistics.mean)
    name = {16: "vae21", 48: "vae22"}[channels]
    cuda = plan.device.type == "cuda"
    fast = torch.bfloat16 if cuda else torch.float32
    for layer in vae.modules() if cuda else ():
        if isinstance(layer, ChannelNorm):
            layer.silu = silu_of(layer)  # type: ignore[method-assign]

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + channels * 10_000_000)
        early = step < EARLY * STEPS[channels]
        sizes, pixels = (EARLY_SIZES, EARLY_PIXELS) if early else (SIZES, PIXELS)
        size = Size(5, 32, 32) if plan.smoke else sizes[step % len(sizes)]
        count = 2 if plan.smoke else size.clips_within(pixels)
        rows = torch.randint(len(pool), (count,), generator=random, device=plan.device)
        shape = (count, *latent_shape(channels, size, vae.compression))
        openings = draw_openings(count, size.frames, random)
        clips = draw_clips(pool.scenes.rows(rows), size, openings)
        return clips, torch.randn(shape, generator=random, device=plan.device)

    def loss(clips: Tensor, noise: Tensor) -> Tensor:
        mean, log_variance = posterior(vae, clips.to(fast), OneChunk())
        latents = mean + (0.5 * log_variance).exp() * noise
        raw = vae.conv2(vae.statistics.denormalise(latents).to(fast))
        made = vae.unfold(vae.decoder(raw, OneChunk())).float()
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        lines = sum(F.l1_loss(*pair) for pair in zip(outlines(made), outlines(clips), strict=True))
        errors = (made - clips).square().flatten(1).mean(1)
        pixels = (errors.square().mean() + 1e-12).sqrt() + ABSOLUTE * F.l1_loss(made, clips)  # the worst clips most
        return pixels + OUTLINES * lines + PRIOR[channels] * divergence

    return Stage(name, vae, batch, loss, STEPS[channels], RATE, MATRIX_RATE, is_matrix, low_precision=True)


@torch.no_grad()
def psnr(vae: CausalVAE, scenes: Sheet, size: Size) -> tuple[float, float]:
    """Peak signal to noise ratio in dB over clips of these scenes, and of the one that is kept worst."""
    clips = draw_clips(scenes, size)
    kept = torch.cat([decode(vae, encode(vae, part)) for part in clips.split(16)])
    errors = (kept - clips).square().flatten(1).mean(1) / 4  # of -1..1, so 4 is the peak squared
    return float(-10 * errors.mean().log10()), float(-10 * errors.max().log10())


@torch.no_grad()
def spread(vae: CausalVAE, scenes: Sheet, size: Size) -> Tensor:
    """Standard deviation of each normalised latent channel over clips of these scenes."""
    return encode(vae, draw_clips(scenes, size)).movedim(1, 0).flatten(1).std(1)
