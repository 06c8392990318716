"""ComfyUI's conditions of the variants, by their names there, as the transformer's slots."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from ...wan_core.adapters.animate import face_of, pose_bias
from ...wan_core.adapters.camera import CameraEmbedding, camera_bias
from ...wan_core.adapters.reference import reference_group
from ...wan_core.adapters.vace import ControlClip, vace_adapters
from ...wan_core.conditioning import Conditioning
from ...wan_core.errors import InputError
from ...wan_core.hooks import Hooks
from ...wan_core.transformer import WanTransformer


def with_variants(
    conditioning: Conditioning, transformer: WanTransformer, x: Tensor, hooks: Hooks, conds: dict[str, Any]
) -> Conditioning:
    """Adds what the checkpoint has weights for: control clips, a reference picture, camera rays, poses and a face.

    x is the noisy latent [B, C, F, H, W] with its concat channels.

    Raises:
        InputError: a condition and the latent differ in size.
    """
    if transformer.config.vace_dim:
        conditioning = _controlled(conditioning, transformer, conds)
    reference = conds.get("reference_latent")
    if transformer.config.reference_dim and reference is not None:
        conditioning = _with_reference(conditioning, transformer, reference, hooks)
    rays = conds.get("camera_conditions")
    if transformer.config.camera_dim and rays is not None:
        embedding = cast(CameraEmbedding, transformer.get_submodule("control_adapter"))
        bias = camera_bias(embedding, rays.to(x), _grid(transformer, x))
        conditioning = replace(conditioning, token_bias=bias)
    if transformer.config.pose_dim:
        conditioning = _animated(conditioning, transformer, x, conds)
    return conditioning


def _grid(transformer: WanTransformer, x: Tensor) -> tuple[int, int, int]:
    """Tokens along latent frames, rows and columns of a latent."""
    frames, rows, columns = transformer.padded(x[:1, :1]).shape[2:]
    sizes = transformer.patch_size
    return frames // sizes[0], rows // sizes[1], columns // sizes[2]


def _controlled(conditioning: Conditioning, transformer: WanTransformer, conds: dict[str, Any]) -> Conditioning:
    """`vace_context` is [B, clips, 96, F, H, W], `vace_strength` one number for each clip."""
    context = conds.get("vace_context")
    if context is None:
        return conditioning
    strengths = conds.get("vace_strength") or [1.0] * context.shape[1]
    clips = [
        ControlClip(transformer.padded(latent), strength)
        for latent, strength in zip(context.unbind(1), strengths, strict=True)
    ]
    adapters = vace_adapters(transformer, transformer.config, clips)
    return replace(conditioning, adapters=(*conditioning.adapters, *adapters))


def _with_reference(
    conditioning: Conditioning, transformer: WanTransformer, reference: Tensor, hooks: Hooks
) -> Conditioning:
    """`reference_latent` is [B, C, H, W]."""
    channels = transformer.config.reference_dim
    if reference.ndim != 4 or reference.shape[1] != channels:
        raise InputError(
            "The reference picture does not fit the model",
            where="reference_latents of the conditioning",
            found=f"a latent of shape {list(reference.shape)}",
            expected=f"{channels} channels, one frame",
            remedy="Encode the picture with the model's VAE",
        )
    picture = transformer.padded(reference.unsqueeze(2)).squeeze(2)
    group = reference_group(transformer.get_submodule("ref_conv"), picture, hooks.positions)
    return replace(conditioning, groups=(*conditioning.groups, group))


def _animated(
    conditioning: Conditioning, transformer: WanTransformer, x: Tensor, conds: dict[str, Any]
) -> Conditioning:
    """`pose_latents` is [B, C, frames, H, W], `face_pixel_values` [B, 3, frames, side, side] in -1..1."""
    poses, faces = conds.get("pose_latents"), conds.get("face_pixel_values")
    if poses is not None:
        embedding, grid = transformer.get_submodule("pose_patch_embedding"), _grid(transformer, x)
        bias = pose_bias(embedding, transformer.padded(poses.to(x.device)), grid, x.dtype)
        conditioning = replace(conditioning, token_bias=bias)
    if faces is not None:
        face = face_of(transformer, transformer.config, faces.to(x.device))
        conditioning = replace(conditioning, adapters=(*conditioning.adapters, face))
    return conditioning
