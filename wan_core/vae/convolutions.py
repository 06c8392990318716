"""Convolutions of the VAEs over clips: causal in time, and by the fastest way of the device.

B batch, C channels, F frames, H/W rows and columns; every clip is [B, C, F, H, W].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import Ops
from .frames import FrameCache, clip_of, frames_like, has_channels_last, images_of, joined, laid_out
from .norms import ChannelNorm

try:
    from ..kernels import channels, convolution
except ImportError:  # no Triton
    channels = convolution = None

MANY = 2_000_000  # positions of normed frames; so many are made and convolved in halves, which takes less memory
ONEDNN_SIZE = 20480  # batch * channels * frames * rows over which PyTorch's Conv3d uses oneDNN (ATen, Convolution.cpp)


def causal_conv(
    conv: nn.Module,
    x: Tensor,
    cache: FrameCache,
    ops: type[Ops],
    *,
    norm: ChannelNorm | None = None,
    addend: Tensor | None = None,
    spare: bool = False,
) -> Tensor:
    """Convolves so that a frame sees itself and frames before it; before the first frame everything is zero.

    With `norm` x goes through it and SiLU before; `addend`, of the result's shape, is added. `conv` pads in space only.
    The first frame alone meets one tap of the kernel: a 2-D convolution. `spare`: nobody needs x afterwards, which may
    become the result.
    """
    assert isinstance(conv, nn.Conv3d)
    history = conv.kernel_size[0] - 1
    if history == 0:
        return convolve(conv, x, ops)
    past, frames = cache.get(conv), x.shape[2]
    if norm is not None and norm.is_fused(x) and _has_kernel(conv, x):
        return _in_one_kernel(conv, x, cache, ops, norm, addend, spare=spare)
    seen = joined(past, x) if norm is None else norm.silu(x, past)
    cache.keep(conv, seen[:, :, -history:])
    if past is None and frames == 1:
        with ops.weights(conv, x) as (weight, bias):
            y = functional.conv2d(seen[:, :, 0], weight[:, :, -1], bias, padding=conv.padding[1:]).unsqueeze(2)
        y = laid_out(y)
    else:
        missing = history + frames - seen.shape[2]
        y = convolve(conv, functional.pad(seen, (0, 0, 0, 0, missing, 0)) if missing else seen, ops)
    return y if addend is None else y + addend


@dataclass(frozen=True)
class Shortcut:
    """A shortcut without weights: channels of x [B, C, F, H, W], repeated, become new frames, rows and columns.

    `outputs` channels are left; each frame becomes `times`, of which the clip's `first` frame leaves the last alone.
    """

    x: Tensor
    outputs: int
    times: int
    first: bool

    def made(self) -> Tensor:
        """[B, outputs, F * times (less times - 1 where it is first), 2 H, 2 W]."""
        x = self.x.movedim(1, 4).repeat_interleave(self._repeats, dim=4)
        x = x.unflatten(4, (self.outputs, self.times, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)  # [B, F, t, H, 2, W, 2, C]
        x = x.flatten(5, 6).flatten(3, 4).flatten(1, 2).movedim(4, 1)
        return x[:, :, self.times - 1 :] if self.first else x

    def for_kernel(self) -> Any:
        """The same as kernels/convolution.py takes it: nothing is made."""
        skip = self.times - 1 if self.first else 0
        return convolution.Spread(self.x, self.times, self._repeats, skip)  # pyright: ignore[reportOptionalMemberAccess]

    @property
    def _repeats(self) -> int:
        return self.outputs * self.times * 4 // self.x.shape[1]


def enlarging_conv(conv: nn.Module, x: Tensor, ops: type[Ops], shortcut: Shortcut | None = None) -> Tensor:
    """Makes each pixel of x [B, C, F, H, W] a square, convolves every frame, and adds the shortcut."""
    if x.shape[2] and has_channels_last(x) and _has_kernel(conv, x) and (not shortcut or has_channels_last(shortcut.x)):
        spread = shortcut.for_kernel() if shortcut else None
        with ops.weights(conv, x) as (weight, bias):
            return convolution.enlarge(channels.bordered(x), weight, bias, spread)  # pyright: ignore[reportOptionalMemberAccess]
    images = functional.interpolate(images_of(x), scale_factor=2, mode="nearest-exact")
    y = laid_out(clip_of(conv(images), x.shape[0]))
    return y + shortcut.made() if shortcut else y


def convolve(conv: nn.Conv3d, x: Tensor, ops: type[Ops]) -> Tensor:
    """conv(x) by the faster of PyTorch's ways, which it does not choose by itself.

    A 1x1x1 kernel is a product of matrices. For small clips on the CPU PyTorch takes a 3-D convolution without oneDNN,
    which is six times slower than a sum of 2-D ones: over all frames at once, one for each tap in time.
    """
    on_cpu = x.device.type == "cpu"
    if conv.kernel_size == (1, 1, 1) and (on_cpu or has_channels_last(x)):
        with ops.weights(conv, x) as (weight, bias):
            return functional.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    if not on_cpu or len(x) > 1 or x.shape[:4].numel() > ONEDNN_SIZE:
        return laid_out(conv(x))
    step, padding = conv.stride[0], conv.padding[1:]
    span = (x.shape[2] - conv.kernel_size[0]) // step * step + 1  # frames from the first to the last that a tap meets
    with ops.weights(conv, x) as (weight, bias):
        taps = (images_of(x[:, :, k : k + span : step]) for k in range(conv.kernel_size[0]))
        y = functional.conv2d(next(taps), weight[:, :, 0], bias, padding=padding)
        for k, frames in enumerate(taps, 1):
            y += functional.conv2d(frames, weight[:, :, k], padding=padding)
    return laid_out(clip_of(y, len(x)))


def _has_kernel(conv: nn.Module, x: Tensor) -> bool:
    return convolution is not None and convolution.fits(conv) and convolution.accepts(x, conv.weight)  # pyright: ignore[reportArgumentType]


def _in_one_kernel(
    conv: nn.Conv3d,
    x: Tensor,
    cache: FrameCache,
    ops: type[Ops],
    norm: ChannelNorm,
    addend: Tensor | None,
    *,
    spare: bool,
) -> Tensor:
    """`causal_conv` with a norm, bias and addend inside the product. The largest moment of a decode is in here."""
    history, frames = conv.kernel_size[0] - 1, x.shape[2]
    alone = cache.get(conv) is None and frames == 1
    out = x if spare and conv.out_channels == x.shape[1] else frames_like(x, frames, conv.out_channels)
    positions = len(x) * (history + frames) * x.shape[3] * x.shape[4]
    size = -(-frames // 2) if positions > MANY else frames
    with ops.weights(conv, x) as (weight, bias):
        taps = weight[:, :, -1:] if alone else weight
        for start in range(0, frames, size):
            past, part = cache.get(conv), slice(start, start + size)
            seen = norm.bordered_silu(x[:, :, part])
            more = None if addend is None else addend[:, :, part]
            convolution.convolve(seen, taps, bias, more, past=past, out=out[:, :, part])  # pyright: ignore[reportOptionalMemberAccess]
            lacking = history - seen.shape[1]
            if past is not None and lacking > 0:
                seen = torch.cat((past[:, -lacking:], seen), dim=1)
            cache.keep(conv, seen[:, -history:])
            del past, seen  # before the next half makes its own
    return out
