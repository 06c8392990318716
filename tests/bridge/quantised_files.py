"""The high expert of the miniature family in every quantised form that the loader reads, as files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from make_pocket import build, family, scale_to_fp8
from pocket_gguf import is_block_matrix, write_gguf
from safetensors.torch import save_file
from torch import Tensor

GGUF_TYPES = ("Q8_0", "Q4_0", "Q5_1", "Q4_K")
FORMATS = (*GGUF_TYPES, "fp8 scaled", "fp8 plain", "int8")
INT8_MAX = 127


# The K types have blocks of 256 numbers, so rows have to be at least that long: twice the family's width.
WIDE = replace(
    family.T2V_HIGH,
    short="wide",
    layers=3,
    widths={5120: 256, 13824: 512, 30720: 1536, 4096: family.TEXT_DIM},
)


def weights() -> dict[str, Tensor]:
    return build(WIDE, fp8=False)


def write_format(path: Path, kind: str) -> str:
    """Writes the file of one of FORMATS; its suffix follows from the kind."""
    if kind in GGUF_TYPES:
        return str(write_gguf(path.with_suffix(".gguf"), weights(), kind))
    tensors = weights()
    if kind == "fp8 scaled":
        tensors = scale_to_fp8(tensors)
    elif kind == "fp8 plain":
        tensors = {
            name: weight.to(torch.float8_e4m3fn) if is_block_matrix(name, weight) else weight
            for name, weight in tensors.items()
        }
    else:
        tensors = _int8(tensors)
    save_file(tensors, path.with_suffix(".safetensors"), metadata=family.T2V_HIGH.metadata)
    return str(path.with_suffix(".safetensors"))


def _int8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    mark = torch.tensor(list(json.dumps({"format": "int8_tensorwise"}).encode()), dtype=torch.uint8)
    out: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        if not is_block_matrix(name, weight):
            out[name] = weight
            continue
        scale = weight.float().abs().amax() / INT8_MAX
        layer = name.removesuffix(".weight")
        out[name] = (weight.float() / scale).round().to(torch.int8)
        out[f"{layer}.weight_scale"] = scale
        out[f"{layer}.comfy_quant"] = mark.clone()
    return out
