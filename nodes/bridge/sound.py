"""Sound to video: from a sound, a picture and poses to CONDITIONING, and a LATENT with its plan of clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
import torch.nn.functional as F
from torch import Tensor

from ...wan_core.audio.buckets import FRAME_RATE, buckets
from ...wan_core.audio.clips import LEAD_IN, Clip, fitting_size, frames_of_sound, plan_clips
from ...wan_core.errors import InputError
from ...wan_core.geometry import CUSTOM, Size, require_side
from ...wan_core.tasks import S2V_14B
from .audio_encoder import sound_features
from .clips import CLIPS, with_values
from .latents import FRAME_RATE as RATE_KEY
from .latents import grid_for
from .sound_clips import SoundClips, silent
from .soundness import check_vae

# Areas of the official sizes. Source: Wan-Video/Wan2.2 wan/configs/__init__.py (MAX_AREA_CONFIGS) at 42bf4cf.
AREAS = {
    "480p at the picture's aspect": 832 * 480,
    "704p at the picture's aspect": 1024 * 704,
    "720p at the picture's aspect": 1280 * 720,
}
BLACK = 0.0


@dataclass(frozen=True)
class SoundScene:
    """Everything that the clips are made from, as it came into the node."""

    audio_encoder: Any
    audio: dict[str, Any]
    picture: Tensor  # [1, H, W, 3] 0..1
    poses: Tensor | None  # [n, H, W, 3] at 16 frames per second


def check_audio(audio: dict[str, Any]) -> None:
    """Raises:
    InputError: there is no sound in it.
    """
    if not audio or audio["waveform"].numel() == 0:
        raise InputError(
            "There is no sound to make a video from", where="audio", found="no samples", remedy="Load a sound"
        )


def choose_sound_size(choice: str, picture: Tensor, custom: Size) -> Size:
    """The size (width, height) of the clip: the official rule for the picture, or the custom one as it is.

    Raises:
        InputError: a side of the custom size is no multiple of 64.
    """
    multiple = S2V_14B.size_multiple
    if choice == CUSTOM:
        return require_side(custom[0], multiple, "width"), require_side(custom[1], multiple, "height")
    return fitting_size(picture.shape[2], picture.shape[1], AREAS[choice])


def trimmed(audio: dict[str, Any], seconds: float) -> tuple[dict[str, Any], int]:
    """The sound cut to `seconds` (0: whole) and to the video that it makes, and the frames of that video."""
    rate, waveform = int(audio["sample_rate"]), audio["waveform"]
    whole = waveform.shape[-1] / rate
    frames = frames_of_sound(min(seconds, whole) if seconds else whole)
    return {**audio, "waveform": waveform[..., : round(frames / FRAME_RATE * rate)]}, frames


def sound_to_video(
    positive: Any, negative: Any, vae: Any, scene: SoundScene, size: Size, frames: int, clip_frames: int
) -> tuple[Any, Any, dict[str, Any]]:
    """Returns both CONDITIONINGs with the first clip's values and the LATENT of the first clip with the plan.

    Raises:
        InputError: see plan_clips; the encoder gives no features.
        WrongModelError: the VAE makes other latents than S2V's.
    """
    grid = grid_for(vae, S2V_14B, "sound to video")
    clips = plan_clips(frames, clip_frames)
    features = sound_features(scene.audio_encoder, scene.audio, LEAD_IN / FRAME_RATE)
    sound = buckets(features, clip_frames).features.permute(1, 2, 0)[None]  # [1, layers, S, frames]
    sound = F.pad(sound, (0, max(0, clips[-1].start + clips[-1].frames - sound.shape[3])))
    picture = vae.encode(covered(scene.picture[:1], size))
    check_vae(picture, vae)
    plan = SoundClips(clips, frames, sound, _poses(vae, scene.poses, size, clips), vae, (picture,))
    values = plan.conditions(0)
    positive, negative = (
        with_values(cond, {"reference_latents": [picture], **given})
        for cond, given in ((positive, values), (negative, silent(values)))
    )
    width, height = size
    shape = [1, grid.channels, clips[0].latents, height // grid.compression, width // grid.compression]
    samples = torch.zeros(shape, device=comfy.model_management.intermediate_device())
    return positive, negative, {"samples": samples, RATE_KEY: grid.frame_rate, CLIPS: plan}


def covered(images: Tensor, size: Size) -> Tensor:
    """Images [n, H, W, 3] scaled until they cover the size, the middle cut out."""
    width, height = size
    scale = max(width / images.shape[2], height / images.shape[1])
    rows, columns = max(height, round(images.shape[1] * scale)), max(width, round(images.shape[2] * scale))
    pixels = images.movedim(-1, 1).float()
    pixels = F.interpolate(pixels, size=(rows, columns), mode="bilinear", antialias=True, align_corners=False)
    top, left = (rows - height) // 2, (columns - width) // 2
    return pixels[:, :, top : top + height, left : left + width].movedim(1, -1)


def _poses(vae: Any, poses: Tensor | None, size: Size, clips: tuple[Clip, ...]) -> tuple[Tensor | None, ...]:
    """Latents of the poses of each clip: its first frame is encoded twice, and the latent of the first one dropped."""
    if poses is None:
        return (None,) * len(clips)
    led = torch.cat([poses[:1].expand(LEAD_IN, -1, -1, -1), poses])
    out = []
    for clip in clips:
        frames = covered(led[clip.start : clip.start + clip.frames], size) if clip.start < len(led) else None
        width, height = size
        black = torch.full((clip.frames - (0 if frames is None else len(frames)), height, width, 3), BLACK)
        frames = black if frames is None else torch.cat([frames, black.to(frames)])
        out.append(vae.encode(torch.cat([frames[:1], frames]))[:, :, 1:])
    return tuple(out)
