"""From the inputs of one clip to the transformer's slots, for a checkpoint that takes sound.

B batch, C channels, T/H/W latent frames/rows/columns, S features per frame of sound. Source: Wan-Video/Wan2.2
wan/modules/s2v/model_s2v.py at 42bf4cf.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from ..adapters.s2v import Sound
from ..conditioning import Conditioning, TokenGroup
from ..errors import WrongModelError
from ..transformer import WanTransformer

FRAMES_PER_LATENT = 4  # frames of sound for one latent frame
REFERENCE_TIME = 30  # position of the reference picture; a clip has 20 latent frames
NOISE, REFERENCE, MOTION = 0, 1, 2  # rows of trainable_cond_mask


@dataclass(frozen=True)
class SoundInputs:
    """What one clip is made from; latents are clean and normalised."""

    sound: Tensor | None = None  # [B, layers, S, 4 T] features at 16 frames per second; None: not brought in at all
    reference: Tensor | None = None  # [B, C, n, H, W] picture of who is seen
    motion: Tensor | None = None  # [B, C, n, H, W] the latent frames before the clip; None: it is the first one
    pose: Tensor | None = None  # [B, C, T, H, W]


def sound_conditioning(model: WanTransformer, video: Tensor, text: Tensor, inputs: SoundInputs) -> Conditioning:
    """Fills the transformer's slots for the noisy latent `video` [B, C, T, H, W]. Computes with its weights.

    Raises:
        WrongModelError: the sound was encoded by another encoder than the checkpoint's.
    """
    part = model.get_submodule
    wide, zero = kernels.eager.wide, video.new_zeros(video.shape[0])
    with model.ops.weights(part("trainable_cond_mask"), wide(video[:1, :1, 0, 0, 0])) as (rows, _):
        rows = rows.clone()
    groups = []
    if inputs.reference is not None:
        tokens = model.patch_embedding(wide(model.padded(inputs.reference)))
        times = torch.arange(tokens.shape[2]) + max(REFERENCE_TIME, video.shape[2] + 9)
        places = torch.cartesian_prod(times, torch.arange(tokens.shape[3]), torch.arange(tokens.shape[4]))
        groups.append(TokenGroup(tokens.flatten(2).transpose(1, 2) + rows[REFERENCE], places.double(), zero))
    if inputs.motion is not None:
        tokens, places = part("frame_packer")(inputs.motion)
        groups.append(TokenGroup(tokens + rows[MOTION], places, zero))
    pose = torch.zeros_like(video) if inputs.pose is None else inputs.pose
    bias = part("cond_encoder")(wide(model.padded(pose))).flatten(2).transpose(1, 2) + rows[NOISE]
    adapters = ()
    if inputs.sound is not None:
        _check(inputs.sound, model)
        sound = _fitted(inputs.sound, FRAMES_PER_LATENT * video.shape[2])
        adapters = (Sound(part("audio_injector"), *part("casual_audio_encoder")(sound)),)
    return Conditioning(text, token_bias=bias, groups=tuple(groups), adapters=adapters)


def _check(sound: Tensor, model: WanTransformer) -> None:
    wanted = (model.config.audio_layers, model.config.audio_dim)
    if tuple(sound.shape[1:3]) != wanted:
        raise WrongModelError(
            "The sound was encoded by another audio encoder than the model's",
            where="audio_encoder",
            found=f"{sound.shape[1]} layers of {sound.shape[2]} features",
            expected=f"{wanted[0]} layers of {wanted[1]}",
            remedy="Load wav2vec2_large_english_fp16.safetensors from models/audio_encoders",
        )


def _fitted(sound: Tensor, frames: int) -> Tensor:
    """Cut, or filled up with nothing, to the frames of the clip."""
    return F.pad(sound[..., :frames], (0, max(0, frames - sound.shape[3])))
