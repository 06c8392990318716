"""Small prompts in API format that several tests run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Prompt = dict[str, Any]

T2V_HIGH = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
T2V_LOW = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
LORA_HIGH = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
LORA_LOW = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors"


class Nodes:
    """Writes nodes of a prompt with every widget at its default, as a freshly placed node has them."""

    def __init__(self, object_info: Mapping[str, Any]) -> None:
        self._object_info = object_info

    def inputs(self, node_type: str) -> dict[str, Any]:
        """What a node can be given: {input: its kind and settings}."""
        kinds = self._object_info[node_type]["input"]
        return {**kinds.get("required", {}), **kinds.get("optional", {})}

    def __call__(self, node_type: str, **inputs: Any) -> Prompt:
        """One node: the default of every widget, and `inputs` over them."""
        kinds = self.inputs(node_type)
        unknown = inputs.keys() - kinds.keys()
        assert not unknown, f"{node_type} has no input {unknown}"
        widgets = {name: default_of(*kind) for name, kind in kinds.items()}
        filled = {name: value for name, value in widgets.items() if value is not None}
        return {"class_type": node_type, "inputs": {**filled, **inputs}}


def default_of(kind: Any, settings: Mapping[str, Any] | None = None) -> Any:
    """The default of a widget as /object_info describes it; None for a socket."""
    settings = settings or {}
    choices = kind if isinstance(kind, list) else settings.get("options", []) if "COMBO" in kind else []
    first = choices[0] if choices else "" if kind == "STRING" else None
    return settings.get("default", first["key"] if isinstance(first, dict) else first)


def text_to_video(nodes: Nodes, *, models: Prompt | None = None, prefix: str = "test", **sampler: Any) -> Prompt:
    """A clip of 64 x 64 pixels and 9 frames, in 2 steps; `models` replaces the loader, `sampler` are inputs of it."""
    return {
        "models": models or nodes("WanCoreLoadModels", model=T2V_HIGH, low_model=T2V_LOW),
        "text": nodes("WanCoreTextEncode", clip=["models", 2], prompt="a red circle moves to the right"),
        "size": nodes("WanCoreTextToVideo", vae=["models", 3], size="custom", width=64, height=64, length=9),
        "sampler": nodes(
            "WanCoreKSampler",
            high=["models", 0],
            low=["models", 1],
            positive=["text", 0],
            negative=["text", 1],
            latent=["size", 0],
            **{"seed": 1, "steps": 2, **sampler},
        ),
        "decode": nodes("WanCoreVAEDecode", latent=["sampler", 0], vae=["models", 3]),
        "save": nodes("WanCoreSaveVideo", video=["decode", 0], filename_prefix=prefix),
    }
