"""VAE 2.1: 16 latent channels, 4 x 8 x 8; used by every Wan 2.1 model, both A14B tasks, S2V and Animate.

Source: Wan-Video/Wan2.2 wan/modules/vae2_1.py at 42bf4cf; parity in tests/core/test_vae21.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import Ops, TorchOps
from .causal import (
    AttentionBlock,
    CausalVAE,
    Downsample,
    FrameCache,
    Layers,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    attention,
    causal_conv,
)
from .latents import WAN21

MULTIPLES = (1, 2, 4, 4)  # width of each level, in units of the stem's
TEMPORAL = (False, True, True)  # which of the encoder's downsamplers halve the frames; the decoder's mirror them
RESIDUAL_BLOCKS = 2  # to a level of the encoder; the decoder has one more


@dataclass(frozen=True)
class VAE21Config:
    """Sizes of one VAE 2.1; the published one has width 96."""

    encoder_dim: int
    decoder_dim: int
    latent_channels: int = 16
    in_channels: int = 3
    out_channels: int = 3

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> VAE21Config:
        """Reads the sizes from {official parameter name: shape}.

        Raises:
            KeyError: the tensors are not a Wan VAE's.
        """
        return cls(
            encoder_dim=shapes["encoder.conv1.weight"][0],
            decoder_dim=shapes["decoder.head.0.gamma"][0],
            latent_channels=shapes["conv2.weight"][0],
            in_channels=shapes["encoder.conv1.weight"][1],
            out_channels=shapes["decoder.head.2.weight"][0],
        )


class Encoder(nn.Module):
    """Pixels to the two halves of a latent distribution, chunk by chunk."""

    def __init__(self, layers: Layers, config: VAE21Config, attention: SpatialAttention) -> None:
        super().__init__()
        self.ops = layers.ops
        width = config.encoder_dim
        self.conv1 = layers.conv3d(config.in_channels, width, (3, 3, 3))
        self.downsamples = nn.ModuleList()
        for level, multiple in enumerate(MULTIPLES):
            for _ in range(RESIDUAL_BLOCKS):
                self.downsamples.append(ResidualBlock(layers, width, config.encoder_dim * multiple))
                width = config.encoder_dim * multiple
            if level < len(TEMPORAL):
                self.downsamples.append(Downsample(layers, width, TEMPORAL[level]))
        self.middle = middle(layers, width, attention)
        self.head = head(layers, width, config.latent_channels * 2)

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor | None:
        """x [B, 3, F, H, W] -> [B, 2 * latent channels, F', H / 8, W / 8]; None when no latent frame is whole yet."""
        x = causal_conv(self.conv1, x, cache, self.ops)
        for layer in self.downsamples:
            x = layer(x, cache)
            if not x.shape[2]:
                return None
        for layer in self.middle:
            x = layer(x, cache)
        return causal_conv(self.head["2"], functional.silu(self.head["0"](x)), cache, self.ops)


class Decoder(nn.Module):
    """Latents to pixels, chunk by chunk."""

    def __init__(self, layers: Layers, config: VAE21Config, attention: SpatialAttention) -> None:
        super().__init__()
        self.ops = layers.ops
        width = config.decoder_dim * MULTIPLES[-1]
        self.conv1 = layers.conv3d(config.latent_channels, width, (3, 3, 3))
        self.middle = middle(layers, width, attention)
        self.upsamples = nn.ModuleList()
        for level, multiple in enumerate(reversed(MULTIPLES)):
            for _ in range(RESIDUAL_BLOCKS + 1):
                self.upsamples.append(ResidualBlock(layers, width, config.decoder_dim * multiple))
                width = config.decoder_dim * multiple
            if level < len(TEMPORAL):
                self.upsamples.append(Upsample(layers, width, width // 2, tuple(reversed(TEMPORAL))[level]))
                width //= 2
        self.head = head(layers, width, config.out_channels)

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """x [B, latent channels, F, H, W] -> [B, 3, 4F (less 3 for the first chunk), H * 8, W * 8]."""
        x = causal_conv(self.conv1, x, cache, self.ops)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, cache)
        return causal_conv(self.head["2"], functional.silu(self.head["0"](x)), cache, self.ops)


class WanVAE21(CausalVAE):
    """The causal VAE of Wan 2.1. Its latents are raw; `statistics` normalises them."""

    def __init__(
        self,
        config: VAE21Config,
        *,
        ops: type[Ops] = TorchOps,
        attention: SpatialAttention = attention,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        layers, channels = Layers(ops, device, dtype), config.latent_channels
        super().__init__(
            WAN21,
            encoder=Encoder(layers, config, attention),
            decoder=Decoder(layers, config, attention),
            conv1=layers.conv3d(channels * 2, channels * 2, (1, 1, 1)),
            conv2=layers.conv3d(channels, channels, (1, 1, 1)),
        )
        self.config = config


def middle(layers: Layers, width: int, attention: SpatialAttention) -> nn.ModuleList:
    """The lowest level of encoder and decoder."""
    block = ResidualBlock(layers, width, width)
    return nn.ModuleList((block, AttentionBlock(layers, width, attention), ResidualBlock(layers, width, width)))


def head(layers: Layers, width: int, outputs: int) -> nn.ModuleDict:
    """The last norm and convolution; 1 of the official sequence is the SiLU."""
    return nn.ModuleDict({"0": layers.norm(width), "2": layers.conv3d(width, outputs, (3, 3, 3))})
