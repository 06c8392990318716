"""The encoder and the decoder that both VAEs share: a stem, layers that resample, the lowest level, a head.

Source: Wan-Video/Wan2.2 wan/modules/vae2_1.py and vae2_2.py at 42bf4cf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from .causal import (
    AttentionBlock,
    Layers,
    Repetition,
    ResidualBlock,
    SpatialAttention,
)
from .convolutions import causal_conv
from .frames import FrameCache, laid_out

CONV_LOOKBACK = 2  # frames before its own that a convolution over three frames sees


@dataclass(frozen=True)
class Step:
    """One layer as a call, the input frames before a frame that it looks at, and its input frames per output frame."""

    call: Callable[[Tensor, FrameCache], Tensor]
    lookback: int
    stride: int = 1


class Encoder(nn.Module):
    """Pixels to the two halves of a latent distribution, chunk by chunk."""

    def __init__(
        self,
        layers: Layers,
        downsamples: Iterable[nn.Module],
        *,
        inputs: int,
        widths: tuple[int, int],
        outputs: int,
        attention: SpatialAttention,
    ) -> None:
        """`widths` of the stem and of the lowest level; each of `downsamples` has `lookback` and `stride`."""
        super().__init__()
        self.ops = layers.ops
        self.conv1 = layers.conv3d(inputs, widths[0], (3, 3, 3))
        self.downsamples = nn.ModuleList(downsamples)
        self.middle = middle(layers, widths[1], attention)
        self.head = head(layers, widths[1], outputs)

    def forward(self, x: Tensor, cache: FrameCache, repetition: Repetition | None = None) -> Tensor | None:
        """x [B, C, F, H, W] -> [B, outputs, F', H', W']; None when no latent frame is whole yet.

        Where x is the chunk of the call before, `repetition` holds what has settled; F makes whole latent frames.
        """
        frames, delay = x.shape[2], 0
        if repetition and repetition.settled is not None:
            x = repetition.settled
        for step in self._steps():
            if repetition:
                delay += math.ceil(step.lookback / frames)  # calls until the caches up to here hold this chunk only
                frames //= step.stride
                if delay < repetition.turn:
                    continue
            x = step.call(x, cache)
            if not x.shape[2]:
                return None
            if repetition and delay == repetition.turn:
                repetition.settled = x
        return x

    def _steps(self) -> Iterator[Step]:
        yield Step(self._stem, CONV_LOOKBACK)
        for layer in (*self.downsamples, *self.middle):
            yield Step(layer, layer.lookback, layer.stride)  # pyright: ignore[reportArgumentType]
        yield Step(self._finish, CONV_LOOKBACK)

    def _stem(self, x: Tensor, cache: FrameCache) -> Tensor:
        return causal_conv(self.conv1, laid_out(x), cache, self.ops)

    def _finish(self, x: Tensor, cache: FrameCache) -> Tensor:
        return causal_conv(self.head["2"], x, cache, self.ops, norm=self.head["0"])  # pyright: ignore[reportArgumentType]


class Decoder(nn.Module):
    """Latents to pixels, chunk by chunk."""

    def __init__(
        self,
        layers: Layers,
        upsamples: Iterable[nn.Module],
        *,
        inputs: int,
        widths: tuple[int, int],
        outputs: int,
        attention: SpatialAttention,
    ) -> None:
        """`widths` of the lowest level and of the head."""
        super().__init__()
        self.ops = layers.ops
        self.conv1 = layers.conv3d(inputs, widths[0], (3, 3, 3))
        self.middle = middle(layers, widths[0], attention)
        self.upsamples = nn.ModuleList(upsamples)
        self.head = head(layers, widths[1], outputs)

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """x [B, latent channels, F, H, W] -> [B, outputs, 4F (less 3 for the first chunk), H * 8, W * 8]."""
        x = causal_conv(self.conv1, laid_out(x), cache, self.ops)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, cache)
        return causal_conv(self.head["2"], x, cache, self.ops, norm=self.head["0"])  # pyright: ignore[reportArgumentType]


def middle(layers: Layers, width: int, attention: SpatialAttention) -> nn.ModuleList:
    """The lowest level of encoder and decoder."""
    block = ResidualBlock(layers, width, width)
    return nn.ModuleList((block, AttentionBlock(layers, width, attention), ResidualBlock(layers, width, width)))


def head(layers: Layers, width: int, outputs: int) -> nn.ModuleDict:
    """The last norm and convolution; 1 of the official sequence is the SiLU."""
    return nn.ModuleDict({"0": layers.norm(width), "2": layers.conv3d(width, outputs, (3, 3, 3))})
