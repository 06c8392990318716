"""Quantised files of other makers, and old ones, in the form that ComfyUI's quantised layers read today."""

from __future__ import annotations

import json
from collections.abc import Mapping

import comfy.utils
import torch
from torch import Tensor

from ...wan_core.weights import Checkpoint
from .reading import with_scales

UNMARKED = ("unmarked", "one scale")  # files that have scales, and no mark of what they mean
NVFP4_LEAVES = ("weight_global_scale", "input_absmax", "alpha", "input_global_scale")
NVFP4_MAX = 448.0 * 6.0  # of a block's scale in float8 times a number in 4 bits


def native_form(
    tensors: dict[str, Tensor], metadata: Mapping[str, str] | None, checkpoint: Checkpoint, prefix: str = ""
) -> dict[str, Tensor]:
    """Tensors without their prefix, as ComfyUI's quantised layers read them; `metadata` name layers with the prefix."""
    if checkpoint.quantised == "lightx2v_nvfp4":
        return native_nvfp4(tensors)
    if checkpoint.quantised == "unmarked" and checkpoint.precision == "mxfp8":
        return native_mxfp8(tensors)
    if checkpoint.quantised == "one scale" and checkpoint.precision.startswith("fp8"):
        return present_form(marked(tensors), {})
    if checkpoint.quantised in UNMARKED:
        return with_scales(tensors)
    return present_form({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, metadata, prefix)


def present_form(tensors: dict[str, Tensor], metadata: Mapping[str, str] | None, prefix: str = "") -> dict[str, Tensor]:
    """The tensors under `prefix`, without it; `scaled_fp8` with `scale_weight` as `comfy_quant` with `weight_scale`.

    The native conversion calls every layer e4m3; a layer that is stored as e5m2 is called so here.
    """
    tensors, _ = comfy.utils.convert_old_quants(tensors, model_prefix=prefix, metadata=dict(metadata or {}))
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    for name in [name for name in tensors if name.endswith(".comfy_quant")]:
        weight = tensors.get(f"{name.removesuffix('.comfy_quant')}.weight")
        if weight is not None and weight.dtype == torch.float8_e5m2:
            layer = {**json.loads(bytes(tensors[name].tolist())), "format": "float8_e5m2"}
            tensors[name] = torch.tensor(list(json.dumps(layer).encode()), dtype=torch.uint8)
    return tensors


def marked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float8 with one scale for each layer and no mark, as `scaled_fp8` with its mark."""
    out = {name.replace(".weight_scale", ".scale_weight"): tensor for name, tensor in tensors.items()}
    out = {name: t.reshape(()) if name.endswith(".scale_weight") else t for name, t in out.items()}
    return {**out, "scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}


def native_mxfp8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LightX2V's mxfp8 as ComfyUI's: the same blocks and scales in the same order, without a mark, stored as bytes.

    Source: ModelTC/LightX2V tools/convert/converter.py and lightx2v_kernel gemm.py scaled_mxfp8_quant at f8aee98.
    """
    out = dict(tensors)
    mark = torch.tensor(list(json.dumps({"format": "mxfp8"}).encode()), dtype=torch.uint8)
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        layer = name.removesuffix(".weight_scale")
        out[f"{layer}.weight"] = out[f"{layer}.weight"].view(torch.float8_e4m3fn)
        out[f"{layer}.comfy_quant"] = mark.clone()
    return out


def native_nvfp4(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LightX2V's nvfp4 as ComfyUI's: the other half of each byte first, and the scales the other way round.

    Its layers have `weight_global_scale` and `input_absmax`, older files `alpha` and `input_global_scale`.
    Source: ModelTC/LightX2V at f8aee98: lightx2v/common/ops/mm/mm_weight.py (MMWeightWnvfp4Anvfp4dynamic),
    tools/convert/converter.py (names), lightx2v_kernel/csrc/gemm/nvfp4_quant_kernels_sm120.cu (first number in the low
    half, scales in tiles of 128 x 4).
    """
    out = dict(tensors)
    mark = torch.tensor(list(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)
    for name in [name for name in tensors if name.endswith((".weight_global_scale", ".input_global_scale"))]:
        layer = name.rpartition(".")[0]
        parts = {leaf: out.pop(f"{layer}.{leaf}").float() for leaf in NVFP4_LEAVES if f"{layer}.{leaf}" in out}
        if f"{layer}.weight" not in out or not parts:
            continue  # seen by its other name
        if "weight_global_scale" in parts:
            scale = 1.0 / parts["weight_global_scale"]
        else:
            scale = parts["alpha"] * parts["input_global_scale"]
        if "input_absmax" in parts:
            out[f"{layer}.input_scale"] = parts["input_absmax"] / NVFP4_MAX
        elif "input_global_scale" in parts:
            out[f"{layer}.input_scale"] = 1.0 / parts["input_global_scale"]
        packed = out[f"{layer}.weight"].view(torch.uint8)
        out[f"{layer}.weight"] = (packed << 4) | (packed >> 4)
        out[f"{layer}.weight_scale_2"] = scale.reshape(())
        out[f"{layer}.comfy_quant"] = mark.clone()
    return out
