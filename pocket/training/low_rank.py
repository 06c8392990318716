"""Low-rank differences to the linear layers in a transformer's blocks, as LoRAs keep them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ...wan_core.transformer import WanTransformer
from .. import storage


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

    def factors(self) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
        """Layer, as the transformer names it -> down [rank, in], up [out, rank] and what is added to its bias [out]."""
        found = {}
        for name, pair in self.pairs.items():
            down, up, bias = pair["down"].weight, pair["up"].weight, pair["up"].bias
            bias = None if bias is None else bias.detach()
            found["blocks." + name.replace("/", ".")] = (down.detach(), up.detach(), bias)
        return found

    def save(self, path: Path) -> None:
        """Writes the pairs under the names of the published 4-step LoRAs; make_pocket adds the alphas."""
        weights = {}
        for name, (down, up, bias) in self.factors().items():
            key = f"diffusion_model.{name}"
            weights |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
            if bias is not None:
                weights[f"{key}.diff_b"] = bias
        storage.save(weights, path)


@torch.no_grad()
def merge(model: WanTransformer, lora: Mapping[str, Tensor]) -> None:
    """Adds the pairs that `LowRank.save` wrote to the weights of a transformer, at strength 1."""
    layers = dict(model.named_modules())
    for name, down in lora.items():
        if name.endswith(".lora_down.weight"):
            key = name.removesuffix(".lora_down.weight")
            delta = lora[f"{key}.lora_up.weight"].float() @ down.float()
            layer = layers[key.removeprefix("diffusion_model.")]
            layer.weight += delta.to(layer.weight)
            if f"{key}.diff_b" in lora:
                layer.bias += lora[f"{key}.diff_b"].to(layer.bias)
