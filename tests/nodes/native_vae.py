"""Native VAE objects of the Wan family, full size on the meta device or small with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import comfy.sd
import torch

SHAPES = Path(__file__).parents[1] / "shapes"


def native_vae_on_meta(shapes: str) -> comfy.sd.VAE:
    """ComfyUI's object for a checkpoint with these tensors, without weights: enough for everything but decoding."""
    tensors = json.loads((SHAPES / shapes).read_text())["shapes"]
    with torch.device("meta"):
        return comfy.sd.VAE(sd={name: torch.empty(shape) for name, shape in tensors.items()})
