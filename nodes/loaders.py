"""From the files that people have to MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..wan_core.weights.names import HIGH, expert_of
from .bridge import planning
from .bridge.files import choices, path_of, unlisted
from .bridge.loading import AUTO, MODELS, NONE, TEXT_ENCODERS, VAES, select, stamp, stamps
from .bridge.model import load_model
from .bridge.show import show_on_node
from .bridge.text_encoder import load_text_encoder
from .bridge.vae import load_vae

CATEGORY = "WanCore/loaders"
WEIGHT_TYPES = {"default": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def _first_model(names: list[str]) -> str | None:
    """What a new node shows: a high-noise Wan model if there is one."""
    wan = [name for name in names if "wan" in name.lower()]
    return next((name for name in wan if expert_of(name) == HIGH), next(iter(wan or names), None))


class WanCoreLoadModels(io.ComfyNode):
    """Loads everything that a Wan graph needs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = choices(MODELS)
        return io.Schema(
            node_id="WanCoreLoadModels",
            display_name="Wan Load Models",
            category=CATEGORY,
            description="Loads a Wan model with its two experts, the text encoder and the VAE, and checks that they "
            "belong together before anything large is read.",
            search_aliases=["load wan", "unet loader", "load diffusion model", "high noise low noise", "wan loader"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=models,
                    default=_first_model(models),
                    tooltip="The diffusion model, from models/diffusion_models. For A14B the high-noise file; for "
                    "TI2V-5B the only one.",
                ),
                io.Combo.Input(
                    "low_model",
                    options=[AUTO, NONE, *models],
                    default=AUTO,
                    tooltip="The low-noise expert of an A14B pair. auto: the file whose name says low where the "
                    "model's says high, in the same folder or its twin (HighNoise, LowNoise). none: the model alone.",
                ),
                io.Combo.Input(
                    "text_encoder",
                    options=[AUTO, *choices(TEXT_ENCODERS)],
                    default=AUTO,
                    tooltip="UMT5-XXL, from models/text_encoders. auto: the one file there that fits the model.",
                ),
                io.Combo.Input(
                    "vae",
                    options=[AUTO, *choices(VAES)],
                    default=AUTO,
                    tooltip="From models/vae: the Wan 2.1 VAE for A14B, the Wan 2.2 VAE for TI2V-5B. auto: the one "
                    "file there that fits the model.",
                ),
            ],
            outputs=[
                io.Model.Output("high", tooltip="The model, or the high-noise expert of a pair."),
                io.Model.Output("low", tooltip="The low-noise expert; empty for a model of one expert."),
                io.Clip.Output("clip", tooltip="The text encoder."),
                io.Vae.Output("vae", tooltip="The VAE."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model: str, low_model: str, text_encoder: str, vae: str) -> bool | str:
        return unlisted(
            {
                "model": (MODELS, model),
                "low_model": (MODELS, low_model),
                "text_encoder": (TEXT_ENCODERS, text_encoder),
                "vae": (VAES, vae),
            }
        )

    @classmethod
    def fingerprint_inputs(cls, model: str, low_model: str, text_encoder: str, vae: str) -> Any:
        return stamps(model, low_model, text_encoder, vae)

    @classmethod
    def execute(cls, model: str, low_model: str, text_encoder: str, vae: str) -> io.NodeOutput:
        chosen = select(model, low_model, text_encoder, vae)
        lines = [chosen.report()] if AUTO in (low_model, text_encoder, vae) else []
        parts = {"low": chosen.low, "text_encoder": chosen.text_encoder, "vae": chosen.vae}
        show_on_node(cls.hidden.unique_id, "\n".join([*lines, planning.of_files(chosen.high, **parts)]))
        high = load_model(str(chosen.high.path))
        low = load_model(str(chosen.low.path)) if chosen.low else None
        return io.NodeOutput(high, low, load_text_encoder(chosen.text_encoder.path), load_vae(chosen.vae.path))


class WanCoreLoadDiffusionModel(io.ComfyNode):
    """Loads one diffusion model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        models = choices(MODELS)
        return io.Schema(
            node_id="WanCoreLoadDiffusionModel",
            display_name="Wan Load Diffusion Model",
            category=CATEGORY,
            description="Loads one Wan model: an expert of a pair, or the 5B, S2V, Animate, VACE, Fun or Wan 2.1.",
            search_aliases=["unet loader", "load wan model"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=models,
                    default=_first_model(models),
                    tooltip="The file, from models/diffusion_models.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_TYPES),
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="Number type that the model computes in. default: the file's own, bf16 for fp8 and fp32 "
                    "files. fp32 doubles memory and time; fp16 may overflow with files made for bf16.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The diffusion model.")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str) -> bool | str:
        return unlisted({"model_name": (MODELS, model_name)})

    @classmethod
    def fingerprint_inputs(cls, model_name: str, weight_dtype: str = "default") -> Any:
        return stamp(MODELS, model_name), weight_dtype

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str = "default") -> io.NodeOutput:
        return io.NodeOutput(load_model(path_of(MODELS, model_name), dtype=WEIGHT_TYPES[weight_dtype]))


class WanCoreLoadTextEncoder(io.ComfyNode):
    """Loads UMT5."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreLoadTextEncoder",
            display_name="Wan Load Text Encoder",
            category=CATEGORY,
            description="Loads Wan's text encoder UMT5-XXL.",
            search_aliases=["clip loader", "umt5", "load clip"],
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=choices(TEXT_ENCODERS),
                    tooltip="UMT5-XXL, from models/text_encoders, such as umt5_xxl_fp8_e4m3fn_scaled.safetensors.",
                )
            ],
            outputs=[io.Clip.Output("clip", tooltip="The text encoder.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder_name: str) -> bool | str:
        return unlisted({"text_encoder_name": (TEXT_ENCODERS, text_encoder_name)})

    @classmethod
    def fingerprint_inputs(cls, text_encoder_name: str) -> Any:
        return stamp(TEXT_ENCODERS, text_encoder_name)

    @classmethod
    def execute(cls, text_encoder_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_text_encoder(path_of(TEXT_ENCODERS, text_encoder_name)))


class WanCoreLoadVAE(io.ComfyNode):
    """Loads a Wan VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreLoadVAE",
            display_name="Wan Load VAE",
            category=CATEGORY,
            description="Loads a Wan VAE, which turns pictures into latents and latents into pictures.",
            search_aliases=["vae loader"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=choices(VAES),
                    tooltip="From models/vae: wan_2.1_vae.safetensors for A14B and 14B models, wan2.2_vae.safetensors "
                    "for TI2V-5B.",
                )
            ],
            outputs=[io.Vae.Output("vae", tooltip="The VAE.")],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str) -> bool | str:
        return unlisted({"vae_name": (VAES, vae_name)})

    @classmethod
    def fingerprint_inputs(cls, vae_name: str) -> Any:
        return stamp(VAES, vae_name)

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_vae(path_of(VAES, vae_name)))


NODES = [WanCoreLoadModels, WanCoreLoadDiffusionModel, WanCoreLoadTextEncoder, WanCoreLoadVAE]
