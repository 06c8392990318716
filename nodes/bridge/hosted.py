"""Our transformer with the constructor and the call that ComfyUI has for diffusion models."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import comfy.ldm.common_dit
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...wan_core.audio.conditioning import SoundInputs, sound_conditioning
from ...wan_core.conditioning import Conditioning, ContextGroup
from ...wan_core.config import TransformerConfig
from ...wan_core.errors import InputError
from ...wan_core.transformer import WanTransformer
from ...wan_core.weights import mapped
from . import lora_table
from .hooks import hooks_of
from .nag import against_of
from .ops import FILES, wan_operations
from .variants import with_variants


class HostedTransformer(WanTransformer):
    """The transformer with the constructor and the call of ComfyUI's diffusion models."""

    files: tuple[mapped.MappedFile, ...] = ()  # that its weights are read from while it runs

    def __init__(
        self, *, image_model: str, model_type: str, dtype: torch.dtype, device: Any, operations: type, **sizes: Any
    ) -> None:
        """`sizes` are the fields of TransformerConfig; the rest is what ComfyUI passes to every model."""
        super().__init__(TransformerConfig(**sizes), ops=wan_operations(operations), device=device, dtype=dtype)
        self.model_type = model_type  # "t2v" or "i2v", read by nodes

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """x [B, C, F, H, W] with concat channels, timestep [B] or [B, F] in 0..1000 -> velocity [B, C_out, F, H, W].

        Wrappers get the positional arguments of native Wan.

        Raises:
            InputError: in-context reference latents; a condition that differs from the latent in size.
        """
        options = {} if transformer_options is None else transformer_options
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        executor = WrapperExecutor.new_class_executor(self._predict, self, wrappers)
        return executor.execute(x, timestep, context, clip_fea, time_dim_concat, options, **conds)

    def _predict(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None,
        time_dim_concat: Tensor | None,
        transformer_options: dict[str, Any],
        **conds: Any,
    ) -> Tensor:
        if conds.get("context_latents") is not None:
            raise InputError(
                "In-context reference latents are not read by this model yet",
                where="context_latents of the conditioning",
                remedy="Load the model with ComfyUI's Load Diffusion Model node",
            )
        frames, rows, columns = x.shape[2:]
        if time_dim_concat is not None:  # reference frames after the clip, cut off below
            pad = partial(comfy.ldm.common_dit.pad_to_patch_size, patch_size=self.patch_size)
            x = torch.cat([pad(x), pad(time_dim_concat)], dim=2)
        contexts = () if clip_fea is None or not self.config.image_dim else (ContextGroup(clip_fea),)
        against = against_of(transformer_options, len(x))
        conditioning = Conditioning(context, contexts=contexts, against=against)
        if self.config.audio_dim:
            sound = sound_conditioning(self, x, context, _sound_inputs(conds))
            conditioning = replace(sound, against=against)
        files = (*self.files, *lora_table.files_beside(transformer_options))
        hooks = hooks_of({**transformer_options, FILES: files})
        conditioning = with_variants(conditioning, self, x, hooks, conds)
        velocity = super().forward(x, timestep, conditioning, hooks)
        return velocity[:, :, :frames, :rows, :columns]


def _sound_inputs(conds: dict[str, Any]) -> SoundInputs:
    """What native Wan S2V is given, by ComfyUI's names."""
    return SoundInputs(
        sound=conds.get("audio_embed"),
        reference=conds.get("reference_latent"),
        motion=conds.get("reference_motion"),
        pose=conds.get("control_video"),
    )
