"""Tiny Wan files with the real key names: full-size shapes with their widths replaced and layers cut."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from wancore.pocket.family import TEXT_DIM, TRANSFORMER, TRANSFORMER_METADATA

SHAPES = Path(__file__).parents[1] / "shapes"
WIDTHS = {**TRANSFORMER, 3072: 256, 14336: 512, 18432: 1536}
LAYERS = 2


def tiny_weights(shapes: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Seeded weights under the official names of one file of tests/shapes."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in json.loads((SHAPES / f"{shapes}.json").read_text())["shapes"].items():
        layer = re.match(r"(?:vace_)?blocks\.(\d+)\.", name)
        if layer and int(layer[1]) >= LAYERS:
            continue
        size = [WIDTHS.get(axis, axis) for axis in shape]
        noise = torch.rand(size, generator=generator) * 2 - 1
        if name.endswith("weight") and len(size) > 1:
            noise *= math.sqrt(3 / math.prod(size[1:]))
        elif name.endswith("weight"):
            noise = 1 + 0.2 * noise
        else:
            noise *= 0.1
        weights[name] = noise.to(dtype)
    return weights


def write_tiny(path: Path, shapes: str, seed: int = 0, dtype: torch.dtype = torch.float32, prefix: str = "") -> str:
    """Writes the weights as a file that both our loader and the native one take; returns its path."""
    weights = {prefix + name: weight for name, weight in tiny_weights(shapes, seed, dtype).items()}
    save_file(weights, path, metadata=TRANSFORMER_METADATA)
    return str(path)


def write_lora(path: Path, shapes: str, seed: int = 9, rank: int = 4) -> str:
    """Low-rank pairs with integer alpha for the blocks, `diff` and `diff_b` where published LoRAs have them."""
    generator = torch.Generator().manual_seed(seed)
    lora = {}
    for name, weight in tiny_weights(shapes).items():
        layer = f"diffusion_model.{name.rpartition('.')[0]}"
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            lora[f"{layer}.lora_down.weight"] = torch.randn(rank, weight.shape[1], generator=generator)
            lora[f"{layer}.lora_up.weight"] = 0.02 * torch.randn(weight.shape[0], rank, generator=generator)
            lora[f"{layer}.alpha"] = torch.tensor(2 * rank)
            lora[f"{layer}.diff_b"] = 0.05 * torch.randn(weight.shape[0], generator=generator)
        elif name.endswith(("norm_q.weight", "norm3.weight", "head.head.weight")):
            lora[f"{layer}.diff"] = 0.05 * torch.randn(weight.shape, generator=generator)
    name = "blocks.0.ffn.0"  # both a pair and a difference on one weight
    lora[f"diffusion_model.{name}.diff"] = 0.02 * torch.randn(512, WIDTHS[5120], generator=generator)
    save_file(lora, path)
    return str(path)


def text(batch: int = 1, tokens: int = 512, seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed))
