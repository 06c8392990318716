"""Old scaled fp8 files in the form that ComfyUI's quantised layers read today."""

from __future__ import annotations

import json
from collections.abc import Mapping

import comfy.utils
import torch
from torch import Tensor


def present_form(tensors: dict[str, Tensor], metadata: Mapping[str, str] | None) -> dict[str, Tensor]:
    """Turns `scaled_fp8` with `scale_weight` into `comfy_quant` with `weight_scale`; other files pass as they are.

    The native conversion calls every layer e4m3; a layer that is stored as e5m2 is called so here.
    """
    tensors, _ = comfy.utils.convert_old_quants(tensors, model_prefix="", metadata=dict(metadata or {}))
    for name in [name for name in tensors if name.endswith(".comfy_quant")]:
        weight = tensors.get(f"{name.removesuffix('.comfy_quant')}.weight")
        if weight is not None and weight.dtype == torch.float8_e5m2:
            layer = {**json.loads(bytes(tensors[name].tolist())), "format": "float8_e5m2"}
            tensors[name] = torch.tensor(list(json.dumps(layer).encode()), dtype=torch.uint8)
    return tensors
