"""How the VAEs halve and double time, frame by frame."""

from __future__ import annotations

import torch
from wancore.wan_core.ops import TorchOps
from wancore.wan_core.vae.causal import Downsample, Layers, Upsample, chunk_bounds
from wancore.wan_core.vae.frames import FrameCache

from .test_vae import close, noise


def test_downsampling_in_time():
    """Output 0 is frame 0; output k is the convolution of frames 2k-2, 2k-1, 2k: the rule, frame by frame."""
    layer, clip = resampler(Downsample, 4, True), noise(1, 4, 9, 6, 6)
    frames = resampler(Downsample, 4, False)(clip, FrameCache())
    weight, bias = layer.time_conv.weight, layer.time_conv.bias
    expected = [frames[:, :, 0]]
    for k in range(1, 5):
        taps = torch.stack([frames[:, :, 2 * k - 2 + tap] for tap in range(3)])
        expected.append(torch.einsum("tbchw,oct->bohw", taps, weight[..., 0, 0]) + bias[:, None, None])
    close(layer(clip, FrameCache()), torch.stack(expected, dim=2))


def test_upsampling_in_time():
    """Frame 0 stays one frame; frame k becomes two, made of k-2, k-1, k with frame 0 taken for zeros."""
    layer, clip = resampler(Upsample, 4, 2, True), noise(1, 4, 5, 3, 3)
    weight, bias = layer.time_conv.weight, layer.time_conv.bias
    known = torch.cat((torch.zeros(1, 4, 2, 3, 3), clip[:, :, 1:]), dim=2)
    frames = [clip[:, :, 0]]
    for k in range(4):
        pair = torch.einsum("bcthw,oct->bohw", known[:, :, k : k + 3], weight[..., 0, 0]) + bias[:, None, None]
        frames += [pair[:, :4], pair[:, 4:]]
    expected = resampler(Upsample, 4, 2, False)(torch.stack(frames, dim=2), FrameCache())
    close(layer(clip, FrameCache()), expected)


def resampler(kind: type, *arguments: int | bool) -> torch.nn.Module:
    """The same spatial weights every time, so that a temporal one can be compared with a plain one."""
    torch.manual_seed(3)
    return kind(Layers(TorchOps, None, None), *arguments).requires_grad_(False)


def test_chunk_bounds():
    assert list(chunk_bounds(9, 4)) == [(0, 1), (1, 5), (5, 9)]
    assert list(chunk_bounds(7, 4)) == [(0, 1), (1, 5), (5, 7)]
    assert list(chunk_bounds(1, 4)) == [(0, 1)]
