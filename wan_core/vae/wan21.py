"""VAE 2.1: 16 latent channels, 4 x 8 x 8; used by every Wan 2.1 model, both A14B tasks, S2V and Animate.

Source: Wan-Video/Wan2.2 wan/modules/vae2_1.py at 42bf4cf; parity in tests/core/test_vae.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..ops import Ops, TorchOps
from .causal import CausalVAE, Downsample, Layers, ResidualBlock, SpatialAttention, Upsample, attention
from .latents import WAN21
from .towers import Decoder, Encoder

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
            encoder=Encoder(
                layers,
                downsamples(layers, config.encoder_dim),
                inputs=config.in_channels,
                widths=(config.encoder_dim, config.encoder_dim * MULTIPLES[-1]),
                outputs=channels * 2,
                attention=attention,
            ),
            decoder=Decoder(
                layers,
                upsamples(layers, config.decoder_dim),
                inputs=channels,
                widths=(config.decoder_dim * MULTIPLES[-1], config.decoder_dim),
                outputs=config.out_channels,
                attention=attention,
            ),
            conv1=layers.conv3d(channels * 2, channels * 2, (1, 1, 1)),
            conv2=layers.conv3d(channels, channels, (1, 1, 1)),
        )
        self.config = config


def downsamples(layers: Layers, unit: int) -> Iterator[nn.Module]:
    """The levels of the encoder, one after the other in one list."""
    width = unit
    for level, multiple in enumerate(MULTIPLES):
        for _ in range(RESIDUAL_BLOCKS):
            yield ResidualBlock(layers, width, unit * multiple)
            width = unit * multiple
        if level < len(TEMPORAL):
            yield Downsample(layers, width, TEMPORAL[level])


def upsamples(layers: Layers, unit: int) -> Iterator[nn.Module]:
    """The levels of the decoder, one after the other in one list."""
    width = unit * MULTIPLES[-1]
    for level, multiple in enumerate(reversed(MULTIPLES)):
        for _ in range(RESIDUAL_BLOCKS + 1):
            yield ResidualBlock(layers, width, unit * multiple)
            width = unit * multiple
        if level < len(TEMPORAL):
            yield Upsample(layers, width, width // 2, tuple(reversed(TEMPORAL))[level])
            width //= 2
