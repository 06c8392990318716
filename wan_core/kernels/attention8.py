"""Attention in 8 bits, in plain PyTorch: what is rounded and how, and the reference of hopper8.py and ampere8.py.

Queries and keys become int8, probabilities and values float8 e4m3 or float16. Keys go in less their mean over the
tokens, which softmax does not see, and values less theirs, which comes back at the end: what all tokens share would use
up the 8 bits. One scale to a query and head, to a block of keys and head, to a channel of the values.
Source: Zhang et al., "SageAttention2", arXiv 2411.10958, sections 3.1 and 3.2.
B batch, L tokens, H heads of d values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .rows8 import FLOAT8, LARGEST, SMALLEST

BLOCK = 128  # keys under one scale, and in one step of the kernel
STEPS = 127.0  # of int8
SAMPLE = 2048  # tokens that means and scales of channels are taken from
HEADROOM = 7.0  # values may be so much larger than the largest of the sample; e4m3 is as fine 7 times below its end
LIFT = LARGEST / HEADROOM  # a probability of one in float16, which is coarse below 6e-5; values are lowered by as much


@dataclass(frozen=True)
class Channels:
    """What the channels of keys and values have in common, [B, H, d] float32 each."""

    k_mean: Tensor
    v_mean: Tensor
    v_scale: Tensor


def channels(k: Tensor, v: Tensor, heads: int) -> Channels:
    """Means and scales of k and v [B, L, H * d] over every n-th token; any mean is exact, a near one rounds better."""
    step = -(-k.shape[1] // SAMPLE)
    split = (heads, k.shape[2] // heads)
    k_mean = k[:, ::step].float().mean(1)
    sample = v[:, ::step].float()
    v_mean = sample.mean(1)
    reach = (sample - v_mean.unsqueeze(1)).abs().amax(1)
    v_scale = (reach * (HEADROOM / LARGEST)).clamp(min=SMALLEST)
    return Channels(*(x.unflatten(1, split) for x in (k_mean, v_mean, v_scale)))


def to_steps(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale rounded to whole numbers, halves away from zero; one division to a scale, as the kernels do it."""
    x = x * (1.0 / scale)
    return torch.where(x < 0, x - 0.5, x + 0.5).trunc()


def reference(q: Tensor, k: Tensor, v: Tensor, heads: int, values: torch.dtype = FLOAT8) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, L, H * d] with everything rounded as in the kernels -> [B, L, H * d].

    Probabilities and `values` are float8 e4m3 or float16; every sum is float32 here.
    """
    about = channels(k, v, heads)
    dtype, length = q.dtype, k.shape[1]
    q, k, v = (x.float().unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, H, L, d]
    q_scale = q.abs().amax(-1, keepdim=True).clamp(min=SMALLEST) / STEPS
    q, factor = to_steps(q, q_scale), q_scale * q.shape[-1] ** -0.5
    k = k - about.k_mean.unsqueeze(2)
    lowered, full, limit = (1.0, LARGEST, LARGEST) if values == FLOAT8 else (LIFT, LIFT, HEADROOM)
    v_scale, v_mean = about.v_scale.unsqueeze(2) * lowered, about.v_mean.unsqueeze(2)
    v = ((v - v_mean) * (1.0 / v_scale)).clamp(-limit, limit).to(values).float()
    top = torch.full_like(factor, -torch.inf)
    total, out = torch.zeros_like(factor), torch.zeros_like(q)
    for start in range(0, length, BLOCK):  # the largest score so far decides what a probability is rounded to
        keys, added = k[:, :, start : start + BLOCK], v[:, :, start : start + BLOCK]
        k_scale = keys.abs().amax((2, 3), keepdim=True).clamp(min=SMALLEST) / STEPS
        scores = q @ to_steps(keys, k_scale).transpose(2, 3) * (factor * k_scale)
        highest = torch.maximum(top, scores.amax(-1, keepdim=True))
        shrink, p = (top - highest).exp(), (scores - highest).exp() * full
        total = total * shrink + p.sum(-1, keepdim=True)
        out = out * shrink + p.to(values).float() @ added
        top = highest
    return (out / total * v_scale + v_mean).transpose(1, 2).flatten(2).to(dtype)


def padded(length: int) -> int:
    """Tokens in whole blocks."""
    return length + -length % BLOCK


def values_in_order(v: Tensor, about: Channels) -> Tensor:
    """v [B, L, H * d] in float8 [B, H, d, whole blocks]: channels first, keys in the order of `KEYS`."""
    heads, size = about.v_mean.shape[1:]
    v = v.float().unflatten(2, (heads, size)).permute(0, 2, 3, 1)
    v = (v - about.v_mean.unsqueeze(3)) * (1.0 / about.v_scale.unsqueeze(3))
    v = F.pad(v.clamp(-LARGEST, LARGEST), (0, padded(v.shape[3]) - v.shape[3]))
    return v.unflatten(3, (-1, len(KEYS)))[..., KEYS].flatten(3).to(FLOAT8)


# Hopper's products leave a row's results in a thread's registers two by two, and take a left operand of 8 bits four by
# four. Values in this order of keys make the one the other: bits 4, 1, 3, 2, 0 of the place are those of the key.
KEYS = [(place & 16) | (place & 2) << 2 | (place & 12) >> 1 | place & 1 for place in range(32)]
