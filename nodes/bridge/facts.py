"""What a MODEL is, ours or a native one: task, expert, distilled or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.ldm.wan.model
import comfy.model_base

from ...wan_core.errors import WrongModelError
from ...wan_core.tasks import (
    ANIMATE_14B,
    FLF2V_21,
    FUN_5B,
    FUN_21,
    FUN_A14B,
    I2V_21,
    I2V_A14B,
    S2V_14B,
    T2V_1_3B,
    T2V_21,
    T2V_A14B,
    TI2V_5B,
    VACE_21,
    VACE_FUN_A14B,
    Task,
)
from ...wan_core.transformer import WanTransformer
from ...wan_core.weights.names import expert_at, is_distilled, is_wan21
from .control_lora import input_shape

I2V_CHANNELS = 36  # noise, mask and picture; Fun Control takes its control clip as well
T2V_1_3B_WIDTH = 1536
DISTILLED = "wan_core_distilled"  # attachment of a patcher that carries a step-distillation LoRA


@dataclass(frozen=True)
class ModelFacts:
    """What sampling needs to know of a MODEL."""

    task: Task
    expert: str | None  # "high", "low"; from the file's name
    distilled: bool  # made for a few steps without guidance, by a LoRA or by itself
    path: str | None
    in_dim: int  # channels that it takes, with those of a control LoRA
    latent_channels: int
    is_native: bool  # ComfyUI's own Wan


def model_facts(model_patcher: Any, name: str = "model") -> ModelFacts:
    """Reads the facts off a patcher, which came in by the input of this name.

    Raises:
        WrongModelError: the MODEL is not Wan, or there is none.
    """
    model = getattr(model_patcher, "model", None)
    network: Any = getattr(model, "diffusion_model", None)
    is_native = isinstance(network, comfy.ldm.wan.model.WanModel)
    if not is_native and not isinstance(network, WanTransformer):
        raise WrongModelError(
            "This MODEL is not Wan",
            where=name,
            found="no model" if model is None else type(model).__name__,
            remedy="Connect a model from Wan Load Models or from Load Diffusion Model with a Wan file",
        )
    path = _path_of(model_patcher)
    name = "/".join(Path(path).parts[-2:]) if path else ""
    expert = expert_at(Path(path)) if path else None
    return ModelFacts(
        task=_task_of(network, expert, is_old=is_wan21(Path(path or "").name) and not expert),
        expert=expert,
        distilled=_is_distilled(model_patcher, name),
        path=path,
        in_dim=input_shape(model_patcher)[1],
        latent_channels=network.out_dim,
        is_native=is_native,
    )


def _path_of(model_patcher: Any) -> str | None:
    """Both our loader and ComfyUI's keep what they would load again."""
    made_by = getattr(model_patcher, "cached_patcher_init", None)
    path = made_by[1][0] if made_by and made_by[1] else None
    return path if isinstance(path, str) else None


def _task_of(network: Any, expert: str | None, *, is_old: bool) -> Task:
    """`is_old`: the file's name says Wan 2.1."""
    if network.out_dim == TI2V_5B.latent_channels:
        return FUN_5B if network.in_dim > network.out_dim else TI2V_5B
    if hasattr(network, "casual_audio_encoder"):
        return S2V_14B
    if hasattr(network, "face_adapter"):
        return ANIMATE_14B
    if hasattr(network, "vace_blocks"):
        return VACE_FUN_A14B if expert else VACE_21
    if hasattr(network, "control_adapter") or network.in_dim > I2V_CHANNELS:
        return FUN_21 if getattr(network, "img_emb", None) is not None else FUN_A14B
    if network.model_type == "i2v":
        return FLF2V_21 if "img_emb.emb_pos" in dict(network.named_parameters()) else I2V_21
    if network.in_dim > network.out_dim:
        return I2V_A14B
    if network.dim == T2V_1_3B_WIDTH:
        return T2V_1_3B
    return T2V_21 if is_old else T2V_A14B


def _is_distilled(model_patcher: Any, name: str) -> bool:
    if is_distilled(Path(name).name) or model_patcher.get_attachment(DISTILLED):
        return True
    notes = model_patcher.get_attachment("lora_metadata")  # left by ComfyUI's LoRA loaders, which keep no name
    return notes is not None and is_distilled(json.dumps(notes, default=str))
