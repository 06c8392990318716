"""LoRAs to train: what is added to the linear layers of a transformer's blocks, and the file that it is kept in."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...wan_core.transformer import WanTransformer
from ..models import FP8_MAX


class LowRank(nn.Module):
    """The low-rank pairs of the linear layers in the blocks of a transformer, and what is added to biases."""

    def __init__(self, model: WanTransformer, rank: int, *, biases: bool = True) -> None:
        super().__init__()
        self.rank, self._blocks = rank, [dict(block.named_parameters()) for block in model.blocks]
        self.pairs = nn.ModuleDict()
        for index, block in enumerate(model.blocks):
            for name, layer in block.named_modules():
                if isinstance(layer, nn.Linear):
                    down = nn.Linear(layer.in_features, rank, bias=False)
                    up = nn.Linear(rank, layer.out_features, bias=biases)
                    for parameter in up.parameters():
                        nn.init.zeros_(parameter)
                    self.pairs[f"{index}/{name}".replace(".", "/")] = nn.ModuleDict({"down": down, "up": up})

    def weights(self, index: int) -> dict[str, Tensor]:
        """The weights of a block with the pairs added."""
        found: dict[str, Tensor] = dict(self._blocks[index])
        for name, pair in self.pairs.items():
            block, _, layer = name.partition("/")
            if int(block) == index:
                key = layer.replace("/", ".")
                found[f"{key}.weight"] = found[f"{key}.weight"] + pair["up"].weight @ pair["down"].weight
                if pair["up"].bias is not None:
                    found[f"{key}.bias"] = found[f"{key}.bias"] + pair["up"].bias
        return found

    def save(self, path: Path) -> None:
        """Writes the pairs in the layout of the published 4-step LoRAs, whose alphas are whole numbers."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self._named(torch.bfloat16), path, metadata={"format": "pt"})

    def save_small(self, path: Path) -> None:
        """Writes the matrices in float8, their scales as part of the alphas; see `read`."""
        weights = self._named(torch.float32)
        for name in [name for name in weights if name.endswith((".lora_down.weight", ".lora_up.weight"))]:
            scale = weights[name].abs().max().clamp(min=1e-12) / FP8_MAX
            weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
            alpha = f"{name.rpartition('.lora_')[0]}.alpha"
            weights[alpha] = weights[alpha] * scale
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(weights, path, metadata={"format": "pt"})

    def _named(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors of the file: matrices in `dtype`, biases in bfloat16."""
        weights = {}
        for name, pair in self.pairs.items():
            key = "diffusion_model.blocks." + name.replace("/", ".")
            weights[f"{key}.lora_down.weight"] = pair["down"].weight.detach().to("cpu", dtype)
            weights[f"{key}.lora_up.weight"] = pair["up"].weight.detach().to("cpu", dtype)
            weights[f"{key}.alpha"] = torch.tensor(self.rank)
            if pair["up"].bias is not None:
                weights[f"{key}.diff_b"] = pair["up"].bias.detach().to("cpu", torch.bfloat16)
        return {name: value.contiguous() for name, value in weights.items()}


def read(path: Path) -> dict[str, Tensor]:
    """A stored LoRA as its published file holds it: matrices in bfloat16."""
    return {
        name: value.to(torch.bfloat16) if value.dtype is torch.float8_e4m3fn else value
        for name, value in load_file(path).items()
    }


@torch.no_grad()
def merge(model: WanTransformer, path: Path) -> None:
    """Adds a stored LoRA to the weights of a transformer, at strength 1."""
    weights = read(path)
    layers = dict(model.named_modules())
    for name, down in weights.items():
        if name.endswith(".lora_down.weight"):
            key = name.removesuffix(".lora_down.weight")
            scale = float(weights[f"{key}.alpha"]) / len(down)
            delta = scale * weights[f"{key}.lora_up.weight"].float() @ down.float()
            layer = layers[key.removeprefix("diffusion_model.")]
            layer.weight += delta.to(layer.weight)
            if f"{key}.diff_b" in weights:
                layer.bias += weights[f"{key}.diff_b"].to(layer.bias)
