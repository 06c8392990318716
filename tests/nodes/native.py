"""What ComfyUI hands to nodes, the call and VAE objects of the Wan family; and a meter of what nodes make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfy.sd
import torch
from comfy_api.latest import io
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

SHAPES = Path(__file__).parents[1] / "shapes"


def run(node: type[io.ComfyNode], *, hidden: dict[io.Hidden, Any] | None = None, **inputs: Any) -> io.NodeOutput:
    """Calls a node as the server does, on a clone of its class that carries the hidden inputs."""
    return node.PREPARE_CLASS_CLONE({"hidden_inputs": hidden or {}}).execute(**inputs)


def native_vae_on_meta(shapes: str) -> comfy.sd.VAE:
    """ComfyUI's object for a checkpoint with these tensors, without weights: enough for everything but decoding."""
    tensors = json.loads((SHAPES / shapes).read_text())["shapes"]
    with torch.device("meta"):
        return comfy.sd.VAE(sd={name: torch.empty(shape) for name, shape in tensors.items()})


class LargestFloat(TorchDispatchMode):
    """Records the largest floating-point tensor, in elements, that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in tree_flatten(result)[0]:
            if isinstance(item, torch.Tensor) and item.is_floating_point():
                self.largest = max(self.largest, item.untyped_storage().nbytes() // item.element_size())
        return result
