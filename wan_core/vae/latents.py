"""Latent statistics: what turns the VAE's raw latents into the normalised ones that the transformers are trained on.

Source: Wan-Video/Wan2.2 wan/modules/vae2_1.py and vae2_2.py at 42bf4cf (the constants of the two wrapper classes).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentStatistics:
    """Mean and standard deviation of each latent channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def normalise(self, latent: Tensor) -> Tensor:
        """Raw latent [B, C, F, H, W] -> normalised latent of the same shape and dtype."""
        mean, inverse = self._constants(latent)
        return (latent - mean) * inverse

    def denormalise(self, latent: Tensor) -> Tensor:
        """Normalised latent [B, C, F, H, W] -> raw latent of the same shape and dtype."""
        mean, inverse = self._constants(latent)
        return latent / inverse + mean

    def _constants(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation, each [C, 1, 1, 1]; the inverse is taken in float32, as officially."""
        mean = torch.tensor(self.mean, dtype=torch.float32)
        inverse = 1.0 / torch.tensor(self.std, dtype=torch.float32)
        return mean.to(latent).view(-1, 1, 1, 1), inverse.to(latent).view(-1, 1, 1, 1)


# fmt: off
WAN21 = LatentStatistics(
    mean=(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
          0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    std=(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
         3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
# fmt: on
