"""A long sound in clips: each is sampled by itself and goes on where the one before ended.

Source of the numbers: Wan-Video/Wan2.2 wan/speech2video.py at 42bf4cf.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from .buckets import FRAME_RATE

CLIP_FRAMES = 80  # as trained; 48 was trained as well
SHORTEST = 48  # a last clip is not made shorter than this, where the others are not
LEAD_IN = 3  # frames at the beginning of the first clip that are thrown away: they come out of the picture, not of it
STRIDE = 4  # frames of one latent frame


@dataclass(frozen=True)
class Clip:
    """One part of the plan, in frames at FRAME_RATE."""

    start: int  # its first frame in the sound, whose first LEAD_IN frames are silence
    frames: int  # 4n, as sampled

    @property
    def latents(self) -> int:
        return self.frames // STRIDE

    @property
    def kept(self) -> int:
        """Frames that go into the video."""
        return self.frames - (LEAD_IN if self.start == 0 else 0)


def frames_of_sound(seconds: float) -> int:
    """Frames of a video as long as the sound, to half a frame; at least one."""
    return max(1, round(seconds * FRAME_RATE))


def plan_clips(frames: int, clip_frames: int = CLIP_FRAMES) -> tuple[Clip, ...]:
    """Clips whose kept frames are at least `frames`; the last one is only as long as it needs to be.

    The official code throws the first three frames away and plays the sound from its beginning all the same, so that
    lips lead by 0.19 s and five seconds lose their end. Here the sound is led in by three frames of silence, and frame
    and sound agree. Where these frames alone would ask for one more clip, the first one is a latent frame longer:
    five seconds are one clip of 84 frames, as long in latents as the 81 that the model's text to video was trained on.

    Raises:
        InputError: a clip cannot have this length.
    """
    if clip_frames < 2 * STRIDE or clip_frames % STRIDE:
        raise InputError(
            "A clip cannot have this length",
            where="clip_frames",
            found=f"{clip_frames} frames",
            expected=f"a multiple of {STRIDE} from {2 * STRIDE} on",
            remedy=f"Set clip_frames to {CLIP_FRAMES}",
        )
    wanted = frames + LEAD_IN
    is_led_over = wanted > clip_frames and 0 < wanted % clip_frames <= STRIDE
    first = clip_frames + (STRIDE if is_led_over else 0)
    clips = [Clip(0, first), *(Clip(start, clip_frames) for start in range(first, wanted, clip_frames))]
    last = -(-(wanted - clips[-1].start) // STRIDE) * STRIDE
    clips[-1] = Clip(clips[-1].start, min(clips[-1].frames, max(last, SHORTEST)))
    return tuple(clips)


def fitting_size(width: int, height: int, area: int, multiple: int = 64) -> tuple[int, int]:
    """The size (width, height) in multiples of 64 for a picture: never above `area` pixels, never enlarged.

    The official rule: the largest of a hundred scales whose size, filled up to multiples, fits.
    """
    largest, smallest = 1.0, 0.1
    if width * height > area:
        slack, pixels = multiple - 1, width * height
        fill = slack * (width + height)
        largest = (area / pixels) ** 0.5
        smallest = ((fill**2 - 2 * pixels * (slack**2 - area)) ** 0.5 - fill) / (2 * pixels)
    for step in range(100):
        scale = largest - (largest - smallest) * step / 100
        size = tuple(-(-int(side * scale) // multiple) * multiple for side in (width, height))
        if min(size) and size[0] * size[1] <= area:
            return size[0], size[1]
    aspect = width / height
    sides = [int((area * ratio) ** 0.5 // multiple * multiple) for ratio in (aspect, 1 / aspect)]
    if sides[0] >= width or sides[1] >= height:
        sides = [side // multiple * multiple for side in (width, height)]
    return max(multiple, sides[0]), max(multiple, sides[1])
