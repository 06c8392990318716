"""Pictures to what a model is conditioned on: channels beside the noise (A14B), or clean frames in the latent (5B)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import node_helpers
import torch
from torch import Tensor

from ...wan_core import geometry
from ...wan_core.image_conditioning import Keyframe, clip_parts, known_mask, pixel_parts
from ...wan_core.planner.memory import LEAST_TILE, OVERLAP
from ...wan_core.vae.causal import CausalVAE
from .latents import LATENT_FORMATS
from .leftovers import cleared_on_failure
from .residency import is_lack_of_memory
from .soundness import check_vae

CONCAT_LATENT, CONCAT_MASK = "concat_latent_image", "concat_mask"  # what the models read from a conditioning


def condition_on(
    conditionings: Sequence[Any], vae: Any, keyframes: Sequence[Keyframe], frames: int, size: geometry.Size
) -> list[Any]:
    """Returns the conditionings with the keyframes' latent and mask, as native image-to-video nodes set them.

    The mask is 0 where a frame is known, as everywhere in ComfyUI; the model turns it round.
    """
    latent = encode_keyframes(vae, keyframes, frames, size)
    mask = 1 - known_mask(keyframes, frames).to(latent)[None, :, :, None, None]
    values = {CONCAT_LATENT: latent, CONCAT_MASK: mask.repeat(1, 1, 1, *latent.shape[-2:])}
    return with_conditions(conditionings, values)


def encode_keyframes(vae: Any, keyframes: Sequence[Keyframe], frames: int, size: geometry.Size) -> Tensor:
    """Raw latent [1, C, F, h, w] of the clip that is grey but for the keyframes.

    With our VAE the grey frames are encoded only until they have settled; any other encodes the whole clip.
    """
    return encode_parts(vae, list(clip_parts(keyframes, frames, size)), frames)


def encode_clip(vae: Any, clip: Tensor) -> Tensor:
    """Raw latent [1, C, F, h, w] of a clip [1, 3, 4n+1, H, W] in -1..1; grey stretches cost little with our VAE."""
    return encode_parts(vae, list(pixel_parts(clip)), clip.shape[2])


def blank_latent(like: Tensor) -> Tensor:
    """A raw latent that the model's normalisation turns to zero: what the models get where there is no picture."""
    return LATENT_FORMATS[like.shape[1]]().process_out(torch.zeros_like(like))


def with_conditions(conditionings: Sequence[Any], values: dict[str, Any], *, append: bool = False) -> list[Any]:
    """The conditionings with these values; `append` adds lists to those of a node before."""
    return [node_helpers.conditioning_set_values(each, values, append=append) for each in conditionings]


def encode_parts(vae: Any, parts: Sequence[tuple[Tensor, int]], frames: int) -> Tensor:
    """Parts [1, 3, f, H, W] in -1..1 with how often each follows itself, `frames` in all -> latent [1, C, F, h, w].

    Where the GPU is too small for whole frames the clip is encoded in tiles, as ComfyUI does.

    Raises:
        InputError, WeightsFileError: the latent is no numbers, see check_vae.
    """
    latent = _encoded(vae, parts, frames)
    check_vae(latent, vae)
    return latent


def _encoded(vae: Any, parts: Sequence[tuple[Tensor, int]], frames: int) -> Tensor:
    vae.throw_exception_if_invalid()
    if not isinstance(vae.first_stage_model, CausalVAE):
        return vae.encode(_pictures(parts))
    try:
        return _in_whole_frames(vae, parts, frames)
    except Exception as error:
        if not is_lack_of_memory(error):
            raise
        logging.warning("WanCore: not enough GPU memory to encode whole frames; encoding tiles instead.")
    comfy.model_management.soft_empty_cache()
    return vae.encode_tiled(_pictures(parts), tile_x=LEAST_TILE, tile_y=LEAST_TILE, overlap=OVERLAP)


def _pictures(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """The whole clip as ComfyUI's pictures [F, H, W, 3] in 0..1."""
    clip = torch.cat([part for part, times in parts for _ in range(times)], dim=2)
    return (clip[0].movedim(0, -1) + 1) / 2


def start_latent(latent: dict[str, Any], vae: Any, pictures: Tensor) -> dict[str, Any]:
    """The LATENT with its first frames made of the pictures [n, 3, H, W], and a mask that keeps them clean throughout.

    What is masked holds the latent that the model's normalisation turns to zero.
    """
    empty = latent["samples"]
    known = vae.encode((pictures.movedim(1, -1) + 1) / 2).to(empty)
    check_vae(known, vae)
    if known.ndim == 4:
        known = known.unsqueeze(2)
    mask = torch.ones_like(empty[:, :1])
    mask[:, :, : known.shape[2]] = 0
    samples = blank_latent(empty)
    samples[:, :, : known.shape[2]] = known
    return {**latent, "samples": samples, "noise_mask": mask}


def _in_whole_frames(vae: Any, parts: Sequence[tuple[Tensor, int]], frames: int) -> Tensor:
    height, width = parts[0][0].shape[-2:]
    memory = vae.memory_used_encode((1, 3, frames, height, width), vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory, force_full_load=vae.disable_offload)
    with comfy.model_management.cuda_device_context(vae.device), cleared_on_failure(vae.first_stage_model):
        typed = ((part.to(vae.vae_dtype), times) for part, times in parts)
        latent = vae.first_stage_model.encode_parts(typed, device=vae.device)
    return latent.to(device=vae.output_device, dtype=vae.vae_output_dtype())
