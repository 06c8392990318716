"""The tensors of a weights file in any container, mapped where ComfyUI maps."""

from __future__ import annotations

from typing import Any

import comfy.utils
import safetensors.torch
import torch
from comfy_kitchen.tensor.base import BaseLayoutParams, QuantizedLayout, QuantizedTensor, register_layout_class
from torch import Tensor

from ...wan_core.weights import Checkpoint
from ...wan_core.weights.mapped import MappedFile

LAYOUT = "WanCoreScaledChannels"
LOGICAL_DTYPE = torch.bfloat16
SCALES = (".weight_scale", ".scale_weight")


def files_of(checkpoint: Checkpoint) -> tuple[MappedFile, ...]:
    """The files of a model as they are now."""
    return tuple(MappedFile.of(file) for file in checkpoint.header.files or (checkpoint.path,))


def read_tensors(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns {name in the file: tensor} and the metadata; matrices of GGUF stay in their blocks."""
    if checkpoint.is_gguf:
        from .gguf import load_tensors

        return load_tensors(str(checkpoint.path)), {}
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    types = getattr(comfy.utils, "_TYPES", None)  # that Dynamic VRAM's reader knows
    unknown = types is not None and any(entry.dtype not in types for entry in checkpoint.header.tensors.values())
    for file in checkpoint.header.files or (checkpoint.path,):
        if unknown:
            tensors |= safetensors.torch.load_file(file)
            metadata |= checkpoint.header.metadata
            continue
        part, notes = comfy.utils.load_torch_file(str(file), safe_load=True, return_metadata=True)
        tensors |= part
        metadata |= notes or {}
    return tensors, metadata


class ScaledChannelsLayout(QuantizedLayout):
    """float8 or int8 with one scale for each output channel, as LightX2V's files have without any mark."""

    Params = BaseLayoutParams

    @classmethod
    def quantize(cls, tensor: Tensor, **_unused: Any) -> tuple[Tensor, Any]:
        """Such weights are never made here: patches go beside them."""
        raise NotImplementedError("these weights cannot be written back")

    @classmethod
    def dequantize(cls, qdata: Tensor, params: BaseLayoutParams) -> Tensor:
        """[out, in] in 8 bits -> the weight in `orig_dtype`; the product is rounded once."""
        return (qdata.float() * params.scale).to(params.orig_dtype)

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, ...]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: BaseLayoutParams) -> dict[str, Tensor]:
        return {"": qdata, "_scale": params.scale}


register_layout_class(LAYOUT, ScaledChannelsLayout)


def with_scales(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins each matrix with the scale beside it: one number, or one for each output channel."""
    out = dict(tensors)
    for name, scale in tensors.items():
        end = next((end for end in SCALES if name.endswith(end)), None)
        if end is None:
            continue
        layer = name.removesuffix(end)
        weight = out[f"{layer}.weight"]
        scale = out.pop(name).float().reshape(-1, 1)
        params = BaseLayoutParams(scale=scale, orig_dtype=LOGICAL_DTYPE, orig_shape=tuple(weight.shape))
        out[f"{layer}.weight"] = QuantizedTensor(weight, LAYOUT, params)
        out.pop(f"{layer}.input_scale", None)
        out.pop(f"{layer}.scale_input", None)
    return out
