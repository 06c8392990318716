"""The clips of Wan Sound to Video: each has its part of the sound and the poses, and the end of the clip before.

A clip is decoded behind the latents that it goes on from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ...wan_core.adapters.s2v import MOTION_FRAMES
from ...wan_core.audio.clips import Clip
from ...wan_core.errors import WrongModelError
from ...wan_core.tasks import S2V_14B
from .clips import ClipPlan, Job, Latent, item_of, with_values
from .decoding import decode_chunks
from .facts import ModelFacts


@dataclass(frozen=True)
class SoundClips(ClipPlan):
    """The clips and what each is made from. Latents are raw, as a VAE makes them."""

    maker = "Wan Sound to Video"

    clips: tuple[Clip, ...]
    frames: int  # of the whole video
    sound: Tensor  # [1, layers, S, frames of all clips]
    poses: tuple[Tensor | None, ...]  # [1, C, T, H, W] for each clip
    vae: Any  # decodes the end of a clip, from which the next one goes on
    before: tuple[Tensor, ...]  # [1 or B, C, n, H, W] in front of each clip that was sampled; the picture first
    recent: tuple[Tensor, ...] = ()  # the last frames [73, H, W, 3] of the video so far, for each item of the batch

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(clip.latents for clip in self.clips)

    def check(self, facts: ModelFacts) -> None:
        if facts.task is not S2V_14B:
            raise WrongModelError(
                "This model takes no sound",
                where=facts.path or "high",
                found=facts.task.title,
                expected=S2V_14B.title,
                remedy="Load wan2.2_s2v_14B_fp8_scaled.safetensors, or take the latent from the node of this "
                "model's task",
            )

    def begun(self) -> SoundClips:
        return replace(self, before=self.before[:1], recent=())

    def ended(self) -> SoundClips:
        return replace(self, recent=())

    def conditions(self, number: int) -> dict[str, Any]:
        """The values of the CONDITIONING that change from clip to clip, by ComfyUI's names."""
        clip = self.clips[number]
        values: dict[str, Any] = {"audio_embed": self.sound[..., clip.start : clip.start + clip.frames]}
        if self.poses[number] is not None:
            values["control_video"] = self.poses[number]
        if number:
            values["reference_motion"] = self.before[number]
        return values

    def job(self, number: int, latent: Latent, positive: Any, negative: Any) -> Job:
        values = self.conditions(number)
        started = {**latent, "samples": self._start(number, latent["samples"])}
        return Job(started, with_values(positive, values), with_values(negative, silent(values)))

    def going_on(self, number: int, samples: Tensor, denoised: Tensor) -> tuple[SoundClips, Tensor, Tensor]:
        if number + 1 == len(self.clips):
            return self, samples, denoised
        recent = tuple(
            self._recent(number, denoised[i : i + 1], item_of(self.before[number], i), frames)
            for i, frames in enumerate(self.recent or _grey(denoised))
        )
        encoded = torch.cat([self.vae.encode(frames[..., :3]) for frames in recent])
        return replace(self, before=(*self.before, encoded), recent=recent), samples, denoised

    def length(self, samples: Tensor) -> int:
        return min(self.frames, sum(clip.kept for clip in self.clips[: len(self.parts(samples))]))

    def seams(self, samples: Tensor) -> list[int]:
        ends = accumulate(clip.kept for clip in self.clips[: len(self.parts(samples))])
        return list(ends)[:-1]

    def decode(self, vae: Any, samples: Tensor, item: int) -> Iterator[Tensor]:
        left = self.length(samples)
        for clip, latents, before in zip(self.clips, self.parts(samples), self.before, strict=False):
            for chunk in decode_clip(vae, clip, latents[item : item + 1], item_of(before, item)):
                if left > 0:
                    yield chunk[:left]
                left -= len(chunk)

    def _start(self, number: int, samples: Tensor) -> Tensor:
        """What a clip is sampled from: its part of a latent that was sampled before, else nothing."""
        parts = self.parts(samples)
        if number < len(parts):
            return parts[number]
        return samples.new_zeros(*samples.shape[:2], self.lengths[number], *samples.shape[3:])

    def _recent(self, number: int, latents: Tensor, before: Tensor, frames: Tensor) -> Tensor:
        """The last frames of the video with this clip."""
        new = [chunk.to(frames) for chunk in decode_clip(self.vae, self.clips[number], latents, before)]
        return torch.cat([frames, *new])[-MOTION_FRAMES:]


def decode_clip(vae: Any, clip: Clip, latents: Tensor, before: Tensor) -> Iterator[Tensor]:
    """The frames of a clip that are kept, decoded behind `before`, chunk by chunk."""
    joined = torch.cat([before.to(latents), latents], dim=2)
    skip = 1 + 4 * (joined.shape[2] - 1) - clip.kept
    for chunk in decode_chunks(vae, joined):
        if skip < len(chunk):
            yield chunk[max(0, skip) :]
        skip -= len(chunk)


def silent(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the unconditional branch: the same without sound."""
    return {**values, "audio_embed": torch.zeros_like(values["audio_embed"])}


def _grey(latents: Tensor) -> tuple[Tensor, ...]:
    """What comes before the first clip, for each item of the batch: [73, H, W, 3]."""
    batch, _, _, rows, columns = latents.shape
    return tuple(torch.full((MOTION_FRAMES, 8 * rows, 8 * columns, 3), 0.5) for _ in range(batch))
