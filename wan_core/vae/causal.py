"""Parts of the causal video VAEs: layers that see a clip in chunks of any size and give what the whole clip would.

B batch, C channels, F frames, H/W rows and columns; every tensor is [B, C, F, H, W].
A layer that looks back keeps its last input frames in the FrameCache of the call; the modules hold weights only.
The convolutions are the host's plain Conv3d, so that parameters carry the official names; `causal_conv` makes them
causal. Source: Wan-Video/Wan2.2 wan/modules/vae2_1.py at 42bf4cf; the chunk rules of the resamplers are its cached
code, solved for any chunk size. Parity in tests/core/test_vae.py and test_vae_time.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import Ops
from .convolutions import Shortcut, causal_conv, convolve, enlarging_conv
from .frames import FrameCache, clip_of, frames_like, images_of, joined, laid_out
from .latents import LatentStatistics
from .norms import ChannelNorm

SpatialAttention = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v and result [N, C, H, W]

ENCODE_FRAMES = 4  # frames to a chunk while encoding, after the first one: one latent frame
DECODE_FRAMES = 1  # latent frames to a chunk while decoding: four frames


@dataclass
class Repetition:
    """A chunk that comes several times in a row: grey frames, a still.

    A layer that has seen the same chunk for so long that its cache holds nothing else gives the same output from then
    on. So the layers settle one after the other, the full-size ones, which cost most, first; a settled layer is not
    computed again. Kept is the output of the last settled one.
    """

    turn: int = 0  # how many times the chunk came before
    settled: Tensor | None = None


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One head over the positions of each image: [N, C, H, W] three times -> [N, C, H, W]."""
    shape = query.shape
    query, key, value = (x.flatten(2).transpose(1, 2).unsqueeze(1) for x in (query, key, value))  # [N, 1, HW, C]
    return functional.scaled_dot_product_attention(query, key, value).squeeze(1).transpose(1, 2).reshape(shape)


class Layers:
    """Makes the layers of one VAE: the host's classes, on one device, in one dtype."""

    def __init__(self, ops: type[Ops], device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.ops, self._device, self._dtype = ops, device, dtype

    def conv3d(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: int = 1) -> nn.Conv3d:
        """A Conv3d for `causal_conv`: padded in space, strided in time."""
        padding = (0, kernel[1] // 2, kernel[2] // 2)
        place = {"device": self._device, "dtype": self._dtype}
        return self.ops.Conv3d(inputs, outputs, kernel, stride=(stride, 1, 1), padding=padding, **place)

    def conv2d(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Conv2d:
        """A Conv2d for the images of a clip."""
        place = {"device": self._device, "dtype": self._dtype}
        return self.ops.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, **place)

    def norm(self, channels: int, axes: int = 3) -> ChannelNorm:
        """A ChannelNorm for clips (3 axes after the channels) or images (2)."""
        return ChannelNorm(channels, axes, self._device, self._dtype)


class ResidualBlock(nn.Module):
    """Norm, SiLU and causal convolution twice, beside a shortcut."""

    lookback, stride = 4, 1  # input frames before a frame that its output depends on; input frames per output

    def __init__(self, layers: Layers, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ops = layers.ops
        self.residual = nn.ModuleDict(  # the official sequence; 1, 4 and 5 are SiLU, SiLU and dropout
            {
                "0": layers.norm(inputs),
                "2": layers.conv3d(inputs, outputs, (3, 3, 3)),
                "3": layers.norm(outputs),
                "6": layers.conv3d(outputs, outputs, (3, 3, 3)),
            }
        )
        self.shortcut = layers.conv3d(inputs, outputs, (1, 1, 1)) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """x [B, C, F, H, W] -> [B, C', F, H, W]."""
        first, second = self.residual["2"], self.residual["6"]
        y = causal_conv(first, x, cache, self.ops, norm=self.residual["0"])  # pyright: ignore[reportArgumentType]
        # not before it, which takes the most memory
        beside = x if isinstance(self.shortcut, nn.Identity) else convolve(self.shortcut, x, self.ops)
        return causal_conv(
            second,
            y,
            cache,
            self.ops,
            norm=self.residual["3"],  # pyright: ignore[reportArgumentType]
            addend=beside,
            spare=True,
        )


class AttentionBlock(nn.Module):
    """Self-attention inside each frame, added to its input."""

    lookback, stride = 0, 1

    def __init__(self, layers: Layers, channels: int, attention: SpatialAttention) -> None:
        super().__init__()
        self.attention = attention
        self.norm = layers.norm(channels, axes=2)
        self.to_qkv = layers.conv2d(channels, channels * 3, 1)
        self.proj = layers.conv2d(channels, channels, 1)

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """x [B, C, F, H, W] -> the same shape; looks at no other frame."""
        images = images_of(x)
        query, key, value = self.to_qkv(self.norm(images)).chunk(3, dim=1)
        return x + clip_of(self.proj(self.attention(query, key, value)), x.shape[0])


class Downsample(nn.Module):
    """Halves rows and columns, and with `temporal` the frames after the first.

    In time, output 0 is frame 0 untouched and output k is the time convolution of frames 2k-2, 2k-1 and 2k. Frames that
    make no whole output wait in the cache.
    """

    def __init__(self, layers: Layers, channels: int, temporal: bool) -> None:
        super().__init__()
        self.ops = layers.ops
        self.resample = nn.ModuleDict({"1": layers.conv2d(channels, channels, 3, stride=2)})  # 0 is the padding
        self.time_conv = layers.conv3d(channels, channels, (3, 1, 1), stride=2) if temporal else None
        self.lookback, self.stride = (2, 2) if temporal else (0, 1)

    def forward(self, x: Tensor, cache: FrameCache) -> Tensor:
        """x [B, C, F, H, W] -> [B, C, F', H / 2, W / 2]; F' can be 0 where a chunk is short."""
        x = laid_out(clip_of(self.resample["1"](functional.pad(images_of(x), (0, 1, 0, 1))), x.shape[0]))
        if self.time_conv is None:
            return x
        past = cache.get(self.time_conv)
        seen = joined(past, x)
        outputs = (seen.shape[2] - 1) // 2
        cache.keep(self.time_conv, seen[:, :, 2 * outputs :])
        ready = [x[:, :, :1]] if past is None else []
        if outputs:
            ready.append(convolve(self.time_conv, seen[:, :, : 2 * outputs + 1], self.ops))
        return joined(*ready) if ready else x[:, :, :0]


class Upsample(nn.Module):
    """Doubles rows and columns, halves the channels, and with `temporal` doubles the frames after the first.

    In time, frame 0 stays one frame and never meets the time convolution, which takes it for zeros; every later frame
    becomes two.
    """

    def __init__(self, layers: Layers, channels: int, outputs: int, temporal: bool) -> None:
        super().__init__()
        self.ops = layers.ops
        self.resample = nn.ModuleDict({"1": layers.conv2d(channels, outputs, 3, padding=1)})  # 0 is the enlarging
        self.time_conv = layers.conv3d(channels, channels * 2, (3, 1, 1)) if temporal else None

    def forward(self, x: Tensor, cache: FrameCache, shortcut: Shortcut | None = None) -> Tensor:
        """x [B, C, F, H, W] -> [B, C', F', H * 2, W * 2], with the shortcut added."""
        if self.time_conv is not None:
            x = self._double(x, cache)
        return enlarging_conv(self.resample["1"], x, self.ops, shortcut)

    def _double(self, x: Tensor, cache: FrameCache) -> Tensor:
        """x [B, C, F, H, W] -> twice the frames, but for frame 0 of the clip."""
        first = x[:, :, :0]
        if cache.first_chunk(self):  # frame 0 passes; nothing of it is remembered
            first, x = x[:, :, :1], x[:, :, 1:]
        if not x.shape[2]:
            return first
        assert self.time_conv is not None
        pairs = causal_conv(self.time_conv, x, cache, self.ops).unflatten(1, (2, -1))  # [B, 2, C, F, H, W]
        doubled = frames_like(x, 2 * x.shape[2])
        doubled.unflatten(2, (-1, 2)).copy_(pairs.movedim(1, 3))
        return joined(first, doubled)


class CausalVAE(nn.Module):
    """Encoder and decoder around a causal latent; `conv1` and `conv2` mix the latent's channels on either side."""

    compression = 8  # pixels to a latent row or column

    def __init__(
        self,
        statistics: LatentStatistics,
        *,
        encoder: nn.Module,
        decoder: nn.Module,
        conv1: nn.Module,
        conv2: nn.Module,
    ) -> None:
        super().__init__()
        self.statistics = statistics
        self.encoder = encoder
        self.conv1 = conv1
        self.conv2 = conv2
        self.decoder = decoder

    def fold(self, video: Tensor) -> Tensor:
        """Pixels as the encoder takes them; VAE 2.2 moves 2x2 squares into channels here."""
        return video

    def unfold(self, pixels: Tensor) -> Tensor:
        """The inverse of `fold`, for what the decoder makes."""
        return pixels

    def encode(self, video: Tensor, *, frames: int = ENCODE_FRAMES, device: torch.device | None = None) -> Tensor:
        """video [B, 3, F, H, W] in -1..1 -> raw latent [B, C, (F - 1) // 4 + 1, H / 8, W / 8]; VAE 2.2: / 16.

        Frames after the last whole 4n+1 are left out. `frames` is the size of a chunk and never changes the result;
        `device` is where chunks are computed (None: where the video is), so that a long clip can stay in RAM.
        """
        end = 1 + (video.shape[2] - 1) // 4 * 4
        return self.encode_parts(
            ((video[:, :, start:stop], 1) for start, stop in chunk_bounds(end, frames)), device=device
        )

    def encode_parts(self, parts: Iterable[tuple[Tensor, int]], *, device: torch.device | None = None) -> Tensor:
        """Encodes a clip given as (frames [B, 3, F, H, W] in -1..1, how many times they come) -> raw latent.

        The first part is one frame, once; the others any number, and 4 or 8 or ... where they come more than once.
        What repeats is computed until it has settled: the same result as the whole clip's, in less time.
        """
        cache, latents = FrameCache(), []
        for part, times in parts:
            frames = self.fold(part.to(device or part.device))
            repetition = Repetition() if times > 1 else None
            for turn in range(times):
                if repetition:
                    repetition.turn = turn
                chunk = self.encoder(frames, cache, repetition)
                if chunk is not None:
                    latents.append(chunk)
        mean, _log_variance = self.conv1(torch.cat(latents, dim=2)).chunk(2, dim=1)
        return mean.contiguous()

    def decode_chunks(
        self,
        latent: Tensor,
        *,
        frames: int = DECODE_FRAMES,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[Tensor]:
        """raw latent [B, C, F, H, W] -> parts of the video [B, 3, 1 or 4 * frames, H * 8, W * 8], unclamped.

        `frames` counts latent frames to a chunk and never changes the result. Each chunk is brought to `device` and
        `dtype` when its turn comes, so that a long latent can stay in a file. Abandoning the iteration frees the cache.
        """
        cache = FrameCache()
        for start, stop in chunk_bounds(latent.shape[2], frames):
            part = latent[:, :, start:stop].to(device=device or latent.device, dtype=dtype or latent.dtype)
            yield self.unfold(self.decoder(self.conv2(part), cache))

    def decode(self, latent: Tensor, *, frames: int = DECODE_FRAMES) -> Tensor:
        """raw latent [B, C, F, H, W] -> video [B, 3, 4F - 3, H * 8, W * 8], about -1..1, unclamped."""
        return torch.cat(list(self.decode_chunks(latent, frames=frames)), dim=2)


def chunk_bounds(end: int, size: int) -> Iterator[tuple[int, int]]:
    """Start and stop of the chunks of 0..end: one frame, then `size` each."""
    start, stop = 0, 1
    while start < end:
        yield start, min(stop, end)
        start, stop = stop, stop + size
