"""VAE 2.2: 48 latent channels, 4 x 16 x 16; used by TI2V-5B and the 5B models made of it.

Squares of 2 x 2 pixels are folded into channels first; beside every level runs a shortcut without weights.
Source: Wan-Video/Wan2.2 wan/modules/vae2_2.py at 42bf4cf; parity in tests/core/test_vae.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import Ops, TorchOps
from .causal import (
    CausalVAE,
    Downsample,
    Layers,
    ResidualBlock,
    SpatialAttention,
    Upsample,
    attention,
)
from .convolutions import Shortcut
from .frames import FrameCache, joined
from .latents import WAN22
from .towers import Decoder, Encoder

FOLD = 2  # pixels to a side of the squares that become channels
MULTIPLES = (1, 2, 4, 4)  # width of each level, in units of the stem's
TEMPORAL = (False, True, True)  # which of the encoder's levels halve the frames; the decoder's mirror them
RESIDUAL_BLOCKS = 2  # to a level of the encoder; the decoder has one more


@dataclass(frozen=True)
class VAE22Config:
    """Sizes of one VAE 2.2; the published one's are the defaults."""

    encoder_dim: int = 160
    decoder_dim: int = 256
    latent_channels: int = 48
    in_channels: int = 3
    out_channels: int = 3

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> VAE22Config:
        """Reads the sizes from {official parameter name: shape}.

        Raises:
            KeyError: the tensors are not a VAE 2.2's.
        """
        return cls(
            encoder_dim=shapes["encoder.conv1.weight"][0],
            decoder_dim=shapes["decoder.head.0.gamma"][0],
            latent_channels=shapes["conv2.weight"][0],
            in_channels=shapes["encoder.conv1.weight"][1] // FOLD**2,
            out_channels=shapes["decoder.head.2.weight"][0] // FOLD**2,
        )


class DownLevel(nn.Module):
    """Residual blocks and a resampler, beside a shortcut that averages what they merge."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, *, last: bool, temporal: bool) -> None:
        super().__init__()
        self.outputs, self.space, self.stride = outputs, 1 if last else 2, 2 if temporal else 1
        widths = (inputs, *(outputs,) * RESIDUAL_BLOCKS)
        blocks = [ResidualBlock(layers, *pair) for pair in pairwise(widths)]
        resampler = [] if last else [Downsample(layers, outputs, temporal)]
        self.downsamples = nn.ModuleList((*blocks, *resampler))
        self.lookback = sum(layer.lookback for layer in self.downsamples)  # pyright: ignore[reportArgumentType, reportCallIssue]

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """x [B, C, F, H, W] -> [B, C', F', H / 2, W / 2]; F' can be 0 where a chunk is short."""
        shortcut = self._average(self._whole_groups(x, cache))
        for layer in self.downsamples:
            x = layer(x, cache)
        return x + shortcut

    def _whole_groups(self, x: Tensor, cache: FrameCache) -> Tensor:
        """The frames that make whole groups, with what waited for them; before the clip comes a frame of zeros."""
        if self.stride == 1:
            return x
        past = cache.get(self)
        seen = functional.pad(x, (0, 0, 0, 0, 1, 0)) if past is None else joined(past, x)
        end = seen.shape[2] // self.stride * self.stride
        cache.keep(self, seen[:, :, end:])
        return seen[:, :, :end]

    def _average(self, x: Tensor) -> Tensor:
        """Frames, rows and columns that merge become channels, and neighbouring channels their mean."""
        batch, channels, frames, height, width = x.shape
        time, space = self.stride, self.space
        x = x.reshape(batch, channels, frames // time, time, height // space, space, width // space, space)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4)  # [B, F', H', W', C * merged]
        return x.unflatten(4, (self.outputs, -1)).mean(dim=5).movedim(4, 1)


class UpLevel(nn.Module):
    """Residual blocks and a resampler, beside a shortcut that spreads channels over what they make."""

    def __init__(self, layers: Layers, inputs: int, outputs: int, *, last: bool, temporal: bool) -> None:
        super().__init__()
        self.outputs, self.last, self.time = outputs, last, 2 if temporal else 1
        widths = (inputs, *(outputs,) * (RESIDUAL_BLOCKS + 1))
        blocks = [ResidualBlock(layers, *pair) for pair in pairwise(widths)]
        resampler = [] if last else [Upsample(layers, outputs, outputs, temporal)]
        self.upsamples = nn.ModuleList((*blocks, *resampler))

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """x [B, C, F, H, W] -> [B, C', F', H * 2, W * 2]; the last level, without resampler, has no shortcut."""
        shortcut = None if self.last else Shortcut(x, self.outputs, self.time, first=cache.first_chunk(self))
        for layer in self.upsamples:
            x = layer(x, cache, shortcut) if isinstance(layer, Upsample) else layer(x, cache)
        return x


class WanVAE22(CausalVAE):
    """The causal VAE of Wan 2.2. Its latents are raw; `statistics` normalises them."""

    compression = 16

    def __init__(
        self,
        config: VAE22Config,
        *,
        ops: type[Ops] = TorchOps,
        attention: SpatialAttention = attention,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        layers, channels = Layers(ops, device, dtype), config.latent_channels
        super().__init__(
            WAN22,
            encoder=Encoder(
                layers,
                down_levels(layers, config.encoder_dim),
                inputs=config.in_channels * FOLD**2,
                widths=(config.encoder_dim, config.encoder_dim * MULTIPLES[-1]),
                outputs=channels * 2,
                attention=attention,
            ),
            decoder=Decoder(
                layers,
                up_levels(layers, config.decoder_dim),
                inputs=channels,
                widths=(config.decoder_dim * MULTIPLES[-1], config.decoder_dim),
                outputs=config.out_channels * FOLD**2,
                attention=attention,
            ),
            conv1=layers.conv3d(channels * 2, channels * 2, (1, 1, 1)),
            conv2=layers.conv3d(channels, channels, (1, 1, 1)),
        )
        self.config = config

    def fold(self, video: Tensor) -> Tensor:
        """[B, C, F, H, W] -> [B, C * 4, F, H / 2, W / 2]; a channel, then the column and the row inside its square."""
        batch, channels, frames, height, width = video.shape
        squares = video.reshape(batch, channels, frames, height // FOLD, FOLD, width // FOLD, FOLD)
        return squares.permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)

    def unfold(self, pixels: Tensor) -> Tensor:
        """The inverse of `fold`."""
        squares = pixels.unflatten(1, (-1, FOLD, FOLD))  # [B, C, column, row, F, H, W]
        return squares.permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


def down_levels(layers: Layers, unit: int) -> Iterator[DownLevel]:
    """The levels of the encoder."""
    widths = [unit, *(unit * multiple for multiple in MULTIPLES)]
    for level, temporal in enumerate((*TEMPORAL, False)):
        last = level == len(TEMPORAL)
        yield DownLevel(layers, widths[level], widths[level + 1], last=last, temporal=temporal)


def up_levels(layers: Layers, unit: int) -> Iterator[UpLevel]:
    """The levels of the decoder."""
    widths = [unit * multiple for multiple in (MULTIPLES[-1], *reversed(MULTIPLES))]
    for level, temporal in enumerate((*reversed(TEMPORAL), False)):
        last = level == len(TEMPORAL)
        yield UpLevel(layers, widths[level], widths[level + 1], last=last, temporal=temporal)
