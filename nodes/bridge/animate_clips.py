"""The clips of Wan Animate to Video: each has its part of the driving video, and the end of the clip before.

The first latent frame of a clip is the reference picture's; it is sampled with the others and never decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ...wan_core.animation import BLACK, AnimateClip, known_channels, mirrored
from ...wan_core.control import cover_masks
from ...wan_core.errors import WrongModelError
from ...wan_core.geometry import Size
from ...wan_core.image_conditioning import cover
from ...wan_core.tasks import ANIMATE_14B
from ...wan_core.weights.downloads import with_address
from .clips import ClipPlan, Job, Latent, with_values
from .decoding import decode_chunks
from .facts import ModelFacts
from .images import CONCAT_LATENT, CONCAT_MASK, encode_clip

ANIMATE_FILE = "Wan2_2-Animate-14B_fp8_e4m3fn_scaled_KJ.safetensors"
FACE_SIDE = 512  # pixels; what the motion encoder takes
POSES, FACES = "pose_video_latent", "face_video_pixels"  # in a CONDITIONING


@dataclass(frozen=True)
class Scene:
    """Everything that the clips are made from. Videos are [n, H, W, 3] in 0..1, all of one length."""

    vae: Any
    size: Size
    reference: Tensor  # [1, C, 1, h, w] raw latent
    poses: Tensor
    faces: Tensor | None
    background: Tensor | None
    masks: Tensor | None  # MASK [n, H, W], white where the character is


@dataclass(frozen=True)
class AnimateClips(ClipPlan):
    """The clips and what each is made from."""

    maker = "Wan Animate to Video"

    clips: tuple[AnimateClip, ...]
    frames: int  # of the whole video
    scene: Scene
    recent: tuple[Tensor, ...] = ()  # the last frames [overlap, H, W, 3] of the clip before, for each item of the batch

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(1 + clip.latents for clip in self.clips)

    def check(self, facts: ModelFacts) -> None:
        if facts.task is not ANIMATE_14B:
            raise WrongModelError(
                "This model takes no poses and no face",
                where=facts.path or "high",
                found=facts.task.title,
                expected=ANIMATE_14B.title,
                remedy=f"Load {with_address(ANIMATE_FILE)}, or take the latent from the node of this model's task",
            )

    def begun(self) -> AnimateClips:
        return replace(self, recent=())

    def ended(self) -> AnimateClips:
        return self.begun()

    def conditions(self, number: int) -> dict[str, Any]:
        """The values of the CONDITIONING that change from clip to clip, by ComfyUI's names."""
        clip, scene = self.clips[number], self.scene
        frames = mirrored(self.frames, clip.start, clip.frames)
        known = [self._known(clip, recent, frames) for recent in self.recent or (None,)]
        latents = torch.cat([encode_clip(scene.vae, pixels) for pixels in known])
        rows, columns = latents.shape[-2:]
        masks = None if scene.masks is None else cover_masks(_taken(scene.masks, frames), scene.size)
        channels = known_channels(clip.overlap, clip.frames, rows, columns, masks).to(latents)
        reference = torch.ones_like(channels[:, :1])
        return {
            CONCAT_LATENT: torch.cat(
                [scene.reference.to(latents).expand(len(latents), -1, -1, -1, -1), latents], dim=2
            ),
            CONCAT_MASK: 1 - torch.cat([reference, channels], dim=1)[None],
            POSES: encode_clip(scene.vae, _clip(scene.poses, frames, scene.size)),
            FACES: self._faces(frames),
        }

    def job(self, number: int, latent: Latent, positive: Any, negative: Any) -> Job:
        values = self.conditions(number)
        parts = self.parts(latent["samples"])
        samples = latent["samples"]
        start = samples.new_zeros(*samples.shape[:2], self.lengths[number], *samples.shape[3:])
        started = {**latent, "samples": parts[number] if number < len(parts) else start}
        return Job(started, with_values(positive, values), with_values(negative, faceless(values)))

    def going_on(self, number: int, samples: Tensor, denoised: Tensor) -> tuple[AnimateClips, Tensor, Tensor]:
        if number + 1 == len(self.clips):
            return self, samples, denoised
        overlap = self.clips[number + 1].overlap
        recent = []
        for item in denoised[:, :, 1:].split(1):
            last = torch.empty(0)
            for chunk in decode_chunks(self.scene.vae, item):
                last = torch.cat([last.to(chunk), chunk])[-overlap:] if last.numel() else chunk[-overlap:]
            recent.append(last)
        return replace(self, recent=tuple(recent)), samples, denoised

    def length(self, samples: Tensor) -> int:
        return min(self.frames, sum(clip.kept for clip in self.clips[: len(self.parts(samples))]))

    def seams(self, samples: Tensor) -> list[int]:
        ends = accumulate(clip.kept for clip in self.clips[: len(self.parts(samples))])
        return list(ends)[:-1]

    def decode(self, vae: Any, samples: Tensor, item: int) -> Iterator[Tensor]:
        left = self.length(samples)
        for clip, latents in zip(self.clips, self.parts(samples), strict=False):
            skip = clip.overlap
            for chunk in decode_chunks(vae, latents[item : item + 1, :, 1:]):
                kept = chunk[min(skip, len(chunk)) :][: max(0, left)]
                skip, left = max(0, skip - len(chunk)), left - len(kept)
                if len(kept):
                    yield kept

    def _known(self, clip: AnimateClip, recent: Tensor | None, frames: Tensor) -> Tensor:
        """The clip before it is made [1, 3, F, H, W]: grey, or the background, behind the end of the one before."""
        width, height = self.scene.size
        pixels = torch.zeros(1, 3, clip.frames, height, width)
        if self.scene.background is not None:
            pixels = _clip(self.scene.background, frames, self.scene.size)
        if recent is not None and clip.overlap:
            pixels[0, :, : clip.overlap] = recent[..., :3].movedim(-1, 0).to(pixels) * 2 - 1
        return pixels

    def _faces(self, frames: Tensor) -> Tensor:
        """[1, 3, F, 512, 512] in -1..1; black where there is no face video."""
        if self.scene.faces is None:
            return torch.full((1, 3, len(frames), FACE_SIDE, FACE_SIDE), BLACK)
        return _clip(self.scene.faces, frames, (FACE_SIDE, FACE_SIDE))


def faceless(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the unconditional branch: the same with an empty face."""
    return {**values, FACES: torch.full_like(values[FACES], BLACK)}


def _taken(video: Tensor, frames: Tensor) -> Tensor:
    """These frames; a single picture stands for all."""
    return video[frames] if len(video) > 1 else video.expand(len(frames), *video.shape[1:])


def _clip(video: Tensor, frames: Tensor, size: Size) -> Tensor:
    """Frames of a video [n, H, W, 3] as [1, 3, F, H, W] in -1..1, cut to the size around their centre."""
    pictures = _taken(video, frames).movedim(-1, 1).float() * 2 - 1
    return cover(pictures, size, antialias=True).movedim(0, 1)[None].contiguous()
