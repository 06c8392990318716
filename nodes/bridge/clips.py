"""A plan of clips: what Wan Sound to Video puts into the LATENT, and how its clips become one video.

The LATENT carries the plan under `wan_clips`. Wan KSampler runs every clip and leaves their latents one after the
other; a native sampler runs the first one. A clip is decoded behind the latents that it goes on from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...wan_core.audio.clips import Clip
from ...wan_core.errors import InputError
from .vae import decode_chunks

CLIPS = "wan_clips"  # in a LATENT


@dataclass(frozen=True)
class ClipPlan:
    """The clips of one video and what each is made from. Latents are raw, as a VAE makes them."""

    clips: tuple[Clip, ...]
    frames: int  # of the whole video
    sound: Tensor  # [1, layers, S, frames of all clips]
    poses: tuple[Tensor | None, ...]  # [1, C, T, H, W] for each clip
    vae: Any  # decodes the end of a clip, from which the next one goes on
    before: tuple[Tensor, ...]  # [1 or B, C, n, H, W] in front of each clip that was sampled; the picture first

    def conditions(self, number: int) -> dict[str, Any]:
        """The values of the CONDITIONING that change from clip to clip, by ComfyUI's names."""
        clip = self.clips[number]
        values: dict[str, Any] = {"audio_embed": self.sound[..., clip.start : clip.start + clip.frames]}
        if self.poses[number] is not None:
            values["control_video"] = self.poses[number]
        if number:
            values["reference_motion"] = self.before[number]
        return values

    def going_on_from(self, latents: Tensor) -> ClipPlan:
        """The plan with what the next clip goes on from."""
        return replace(self, before=(*self.before, latents))

    def parts(self, samples: Tensor) -> list[Tensor]:
        """The clips' latents out of those one after the other; only the first where that is all there is.

        Raises:
            InputError: the latent is as long as neither.
        """
        lengths = [clip.latents for clip in self.clips]
        if samples.shape[2] == sum(lengths[: len(self.before)]):
            return list(samples.split(lengths[: len(self.before)], dim=2))
        if samples.shape[2] == lengths[0]:
            return [samples]
        raise InputError(
            "This latent is not as long as the clips that it was planned for",
            where="latent",
            found=f"{samples.shape[2]} latent frames",
            expected=f"{sum(lengths)}",
            remedy="Connect Wan Sound to Video, Wan KSampler and Wan VAE Decode without nodes that change the length",
        )

    def length(self, samples: Tensor) -> int:
        """Frames of the video that these latents make."""
        return min(self.frames, sum(clip.kept for clip in self.clips[: len(self.parts(samples))]))

    def warn_of_missing(self, samples: Tensor) -> None:
        """Says in the log that these latents are only the beginning of what was planned, where it is so."""
        if len(self.parts(samples)) < len(self.clips):
            logging.warning(
                "Wan: only the first of %d clips was sampled; use Wan KSampler for the whole sound.", len(self.clips)
            )

    def decode(self, vae: Any, samples: Tensor, item: int) -> Iterator[Tensor]:
        """Frames [f, H, W, 3] in 0..1 of one item of the batch, chunk by chunk."""
        left = self.length(samples)
        for clip, latents, before in zip(self.clips, self.parts(samples), self.before, strict=False):
            for chunk in decode_clip(vae, clip, latents[item : item + 1], item_of(before, item)):
                if left > 0:
                    yield chunk[:left]
                left -= len(chunk)


def decode_clip(vae: Any, clip: Clip, latents: Tensor, before: Tensor) -> Iterator[Tensor]:
    """The frames of a clip that are kept, decoded behind `before`, chunk by chunk."""
    joined = torch.cat([before.to(latents), latents], dim=2)
    skip = 1 + 4 * (joined.shape[2] - 1) - clip.kept
    for chunk in decode_chunks(vae, joined):
        if skip < len(chunk):
            yield chunk[max(0, skip) :]
        skip -= len(chunk)


def item_of(latents: Tensor, item: int) -> Tensor:
    return latents[item : item + 1] if len(latents) > 1 else latents
