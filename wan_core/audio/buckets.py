"""Features of a sound at the frames of a video, in whole clips.

Source: Wan-Video/Wan2.2 wan/modules/s2v/audio_encoder.py at 42bf4cf.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ENCODER_RATE = 50  # features per second that wav2vec2 makes
FEATURE_RATE = 30  # features per second that frames are looked up in
FRAME_RATE = 16  # frames per second of the S2V model


@dataclass(frozen=True)
class Buckets:
    """The features of every frame, filled up with nothing to whole clips."""

    features: Tensor  # [clips * frames of a clip, layers, S]
    clips: int
    indices: Tensor  # [clips * frames of a clip] which feature of FEATURE_RATE each frame takes


def resampled(features: Tensor) -> Tensor:
    """Encoder layers [layers, n, S] at 50 per second -> [layers, m, S] at 30, first and last kept."""
    count = int(features.shape[1] / float(ENCODER_RATE) * FEATURE_RATE)
    return F.interpolate(features.transpose(1, 2), size=count, mode="linear", align_corners=True).transpose(1, 2)


def buckets(features: Tensor, clip_frames: int, *, frame_rate: int = FRAME_RATE, neighbours: int = 0) -> Buckets:
    """Looks up resampled features [layers, m, S] for every frame of as many clips as the sound needs.

    With neighbours, a frame takes as many features before and after its own along, side by side.
    """
    count = features.shape[1]
    clips = int(count / (clip_frames * (FEATURE_RATE / frame_rate))) + 1
    frames = clips * clip_frames
    times = torch.arange(frames, dtype=torch.float64) * ((frames / frame_rate) / frames)
    indices = (times * FEATURE_RATE).round().long()
    offsets = torch.arange(-neighbours, neighbours + 1) * int(FEATURE_RATE / frame_rate)
    taken = features[:, (indices[:, None] + offsets).clamp(0, count - 1)]  # [layers, frames, 2 n + 1, S]
    taken = taken.masked_fill((indices >= count).to(taken.device)[None, :, None, None], 0)
    return Buckets(taken.flatten(2).transpose(0, 1), clips, indices)
