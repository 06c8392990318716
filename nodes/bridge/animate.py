"""Animate: from a reference picture and a driving video to CONDITIONING, and a LATENT with its plan of clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...wan_core.animation import on_black, plan_clips
from ...wan_core.errors import InputError
from ...wan_core.geometry import FRAME_STRIDE, Size
from ...wan_core.tasks import ANIMATE_14B
from .animate_clips import AnimateClips, Scene, faceless
from .clip_vision import with_features
from .clips import CLIPS, with_values
from .images import encode_clip
from .latents import FRAME_RATE, LatentGrid, empty_latent

MODES = ("background_video", "character_mask")  # inputs that make a replacement, both or none


@dataclass(frozen=True)
class Driving:
    """The videos that came into the node; pictures [n, H, W, 3], masks [n, H, W]."""

    pose_video: Tensor
    face_video: Tensor | None
    background_video: Tensor | None
    character_mask: Tensor | None

    def check(self) -> None:
        """Raises:
        InputError: videos of different lengths; a mask without a background, or the other way round.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        missing = [name for name in MODES if name not in given]
        if len(missing) == 1:
            (there,) = (name for name in MODES if name in given)
            raise InputError(
                f"There is a {there.replace('_', ' ')} without a {missing[0].replace('_', ' ')}",
                where=missing[0],
                found=f"only {there}",
                expected="both, to put the person into another video; or none, to animate the picture",
                remedy=f"Connect {missing[0]}, or disconnect {there}",
            )
        frames = len(self.pose_video)
        for name, video in given.items():
            if len(video) == frames or (name in MODES and len(video) == 1):
                continue
            raise InputError(
                f"The {name.replace('_', ' ')} is not as long as the pose video",
                where=name,
                found=f"{len(video)} frames",
                expected=f"{frames}, as pose_video",
                remedy="Make both from the same frames of the driving video",
            )


def frames_of_driving(driving: Driving, seconds: float) -> int:
    """Frames of the video: those of the driving video, at most `seconds` of it where that is not 0."""
    frames = len(driving.pose_video)
    return min(frames, max(1, round(seconds * ANIMATE_14B.frame_rate))) if seconds else frames


def animate_to_video(
    prompts: tuple[Any, Any],
    vae: Any,
    grid: LatentGrid,
    picture: Tensor,
    driving: Driving,
    clip_output: Any | None,
    *,
    size: Size,
    frames: int,
    clip_frames: int,
    overlap: int,
) -> tuple[Any, Any, dict[str, Any]]:
    """Returns both CONDITIONINGs with the first clip's values and the LATENT of the first clip with the plan.

    `picture` [1, 3, H, W] is the reference in -1..1, of the clip's size.

    Raises:
        InputError: see plan_clips.
    """
    clips = plan_clips(frames, clip_frames, overlap)
    scene = Scene(
        vae,
        size,
        encode_clip(vae, picture.unsqueeze(2)),
        driving.pose_video[:frames],
        _cut(driving.face_video, frames),
        _cut(driving.background_video, frames),
        _cut(driving.character_mask, frames),
    )
    plan = AnimateClips(clips, frames, scene)
    values = plan.conditions(0)
    positive, negative = with_values(prompts[0], values), with_values(prompts[1], faceless(values))
    if clip_output is not None:
        positive, negative = with_features((positive, negative), [clip_output])
    latent = empty_latent(grid, size, clips[0].frames + FRAME_STRIDE, 1)  # the reference's latent frame
    return positive, negative, {**latent, FRAME_RATE: ANIMATE_14B.frame_rate, CLIPS: plan}


def _cut(video: Tensor | None, frames: int) -> Tensor | None:
    return None if video is None else video[:frames]


def reference_picture(image: Tensor, size: Size) -> Tensor:
    """The first picture of an IMAGE as the model sees it: whole, between black bars; [1, 3, H, W] in -1..1."""
    return on_black(image[:1].movedim(-1, 1).float() * 2 - 1, size)
