"""The high expert of the miniature family in every quantised form that the loader reads, as files."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.quant_ops
from make_pocket import build, family, scale_to_fp8
from pocket_gguf import is_block_matrix, write_gguf
from safetensors.torch import save_file
from torch import Tensor

GGUF_TYPES = ("Q8_0", "Q4_0", "Q5_1", "Q4_K")
NATIVE = {  # ComfyUI's name of the format: options of its quantiser
    "int8_tensorwise": {},
    "int8_tensorwise convrot": {"per_channel": True, "convrot": True},
    "float8_e5m2": {},
    "mxfp8": {},
    "nvfp4": {},
    "convrot_w4a4": {},
}
FORMATS = (*GGUF_TYPES, "fp8 scaled", "fp8 plain", *NATIVE, "LightX2V nvfp4")
CHANNELS = {"LightX2V fp8": torch.float8_e4m3fn, "LightX2V int8": torch.int8}  # a scale for each output channel
FLOAT8 = {"fp8 plain": torch.float8_e4m3fn, "fp8 e5m2 plain": torch.float8_e5m2}
OTHER_LAYOUTS = (
    "fp8 unmarked",
    "fp8 comfy_quant",
    "fp8 metadata",
    "fp8 e5m2 plain",
    *CHANNELS,
    "mxfp8 E8M0",
    "LightX2V mxfp8",
)
OTHER_GGUF = ("F32", "F16", "BF16", "Q4_1", "Q5_0", "Q2_K", "Q3_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
ALL = (*FORMATS, *OTHER_LAYOUTS, *OTHER_GGUF)


# The K types have blocks of 256 numbers, so rows have to be at least that long: twice the family's width.
WIDE = replace(
    family.T2V_HIGH,
    short="wide",
    layers=2,
    widths={5120: 256, 13824: 512, 30720: 1536, 4096: family.TEXT_DIM},
)


def weights() -> dict[str, Tensor]:
    """The tensors, for everybody: they are drawn once and not written to."""
    return dict(_drawn())


@cache
def _drawn() -> dict[str, Tensor]:
    return build(WIDE, fp8=False)


def write_format(path: Path, kind: str) -> str:
    """Writes the file of one of ALL; its suffix follows from the kind."""
    if kind in (*GGUF_TYPES, *OTHER_GGUF):
        return str(write_gguf(path.with_suffix(".gguf"), weights(), kind))
    tensors, metadata = weights(), dict(family.T2V_HIGH.metadata)
    if kind in ("fp8 scaled", "fp8 unmarked", "fp8 metadata"):
        tensors = scale_to_fp8(tensors)
    if kind in ("fp8 unmarked", "fp8 metadata"):
        del tensors["scaled_fp8"]
    if kind == "fp8 metadata":
        tensors = {name.replace("scale_weight", "weight_scale"): tensor for name, tensor in tensors.items()}
        layers = [name.removesuffix(".weight_scale") for name in tensors if name.endswith("weight_scale")]
        named = {layer: {"format": "float8_e4m3fn"} for layer in layers}
        metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": named})
    elif kind in FLOAT8:
        tensors = {
            name: weight.to(FLOAT8[kind]) if is_block_matrix(name, weight) else weight
            for name, weight in tensors.items()
        }
    elif kind in CHANNELS:
        tensors = _by_channels(tensors, CHANNELS[kind])
    elif kind == "LightX2V nvfp4":
        tensors = _lightx2v(quantised(tensors, "nvfp4"))
    elif kind == "mxfp8 E8M0":
        tensors = {
            name: tensor.view(torch.float8_e8m0fnu) if name.endswith("weight_scale") else tensor
            for name, tensor in quantised(tensors, "mxfp8").items()
        }
    elif kind == "LightX2V mxfp8":  # bytes, scales in E8M0, no mark
        kinds = {torch.float8_e4m3fn: torch.uint8, torch.uint8: torch.float8_e8m0fnu}
        tensors = {
            name: tensor.view(kinds.get(tensor.dtype, tensor.dtype))
            for name, tensor in quantised(tensors, "mxfp8").items()
            if not name.endswith("comfy_quant")
        }
    elif kind == "fp8 comfy_quant":
        tensors = quantised(tensors, "float8_e4m3fn")
    elif kind in NATIVE:
        tensors = quantised(tensors, kind)
    save_file(tensors, path.with_suffix(".safetensors"), metadata=metadata)
    return str(path.with_suffix(".safetensors"))


def is_known(kind: str) -> bool:
    """False for a format that the ComfyUI under test is too old for."""
    name = kind.removeprefix("LightX2V ").partition(" ")[0]
    return (
        kind not in (*NATIVE, "LightX2V nvfp4", "mxfp8 E8M0", "LightX2V mxfp8") or name in comfy.quant_ops.QUANT_ALGOS
    )


def quantised(tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Block matrices in one of the native formats, each with the mark that says so."""
    name, _, variant = kind.partition(" ")
    mark = torch.tensor(list(json.dumps({"format": name, **({variant: True} if variant else {})}).encode()))
    out: dict[str, Tensor] = {}
    for key, weight in tensors.items():
        out[key] = weight
        if is_block_matrix(key, weight):
            layout = comfy.quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
            packed = comfy.quant_ops.QuantizedTensor.from_float(weight.float(), layout, **NATIVE.get(kind, {}))
            out |= {part: tensor.contiguous() for part, tensor in packed.state_dict(key).items()}
            out[key.replace("weight", "comfy_quant")] = mark.to(torch.uint8)
    return out


def _lightx2v(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI's nvfp4 as LightX2V writes it."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if leaf == "weight_scale_2":
            out |= {f"{layer}.weight_global_scale": 1 / tensor, f"{layer}.input_absmax": torch.tensor(26.88)}
        elif leaf != "comfy_quant":
            out[name] = (tensor << 4) | (tensor >> 4) if tensor.dtype == torch.uint8 else tensor
    return out


def _by_channels(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """One scale [out, 1] for each output channel and no mark, as LightX2V's converter writes float8 and int8."""
    most = torch.finfo(dtype).max if dtype.is_floating_point else 127
    out: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        if not is_block_matrix(name, weight):
            out[name] = weight
            continue
        scale = weight.float().abs().amax(1, keepdim=True) / most
        values = weight.float() / scale
        out[name] = (values if dtype.is_floating_point else values.round()).to(dtype)
        out[f"{name}_scale"] = scale
    return out
