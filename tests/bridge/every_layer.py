"""What a LoRA does to each matrix of a model, read off by unit vectors: for the tests, and for machines with a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy.sd
import comfy.utils
from comfy.quant_ops import QuantizedTensor
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.lora_table import running
from wancore.nodes.bridge.model import load_model

from .quantised_files import is_block_matrix, weights

STRENGTH, RANK, SIZE = 0.7, 8, 0.02  # of the LoRA; size relative to the weight
NODES = ("ComfyUI's LoRA node", "Wan LoRA Pair")
LORA = "diffusion_model."


def matrices() -> list[str]:
    """Names of the layers that are quantised."""
    return [name.removesuffix(".weight") for name, weight in weights().items() if is_block_matrix(name, weight)]


def lora_files(folder: Path) -> tuple[str, str]:
    """A LoRA on every matrix, and one of differences of their biases."""
    generator = torch.Generator().manual_seed(4)
    file, pairs, biases = weights(), dict[str, Tensor](), dict[str, Tensor]()
    for name in matrices():
        weight = file[f"{name}.weight"]
        pairs[f"{LORA}{name}.lora_down.weight"] = torch.randn(RANK, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], RANK, generator=generator) * SIZE * weight.float().std() / RANK**0.5
        pairs |= {f"{LORA}{name}.lora_up.weight": up, f"{LORA}{name}.alpha": torch.tensor(float(RANK))}
        biases[f"{LORA}{name}.diff_b"] = 0.1 * torch.randn(weight.shape[0], generator=generator)
    paths = folder / "style_high_noise.safetensors", folder / "biases_high_noise.safetensors"
    for path, tensors in zip(paths, (pairs, biases), strict=True):
        save_file(tensors, path)
    return str(paths[0]), str(paths[1])


def with_lora(patcher: Any, node: str, path: str) -> Any:
    """The MODEL with the LoRA, as one of NODES makes it."""
    if node == NODES[0]:
        return comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(path), STRENGTH, 0)[0]
    return apply_lora(patcher, path, Path(path).name, STRENGTH, merge=False)[0]


def load(patcher: Any) -> None:
    """As a sampler does before its first step."""
    management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])


@contextmanager
def called(patcher: Any) -> Iterator[None]:
    """As inside a call of the model, so that the layers see what the run adds."""
    options = patcher.model_options.get("transformer_options", {})
    with running(patcher.model, options, 0) if options else nullcontext():
        yield


def effective(patcher: Any, name: str) -> Tensor:
    """The layer's weight [out, in], from its answer in float32 to unit vectors and to nothing, in one call."""
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, name)
    units = torch.eye(layer.in_features + 1, layer.in_features, device=patcher.load_device)
    with called(patcher):
        answer = layer(units)
    return (answer[:-1] - answer[-1]).t().float().cpu()


def bias_of(patcher: Any, name: str) -> Tensor:
    """The layer's answer [out] to nothing, in bfloat16, as a model computes."""
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, name)
    with called(patcher):
        answer = layer(torch.zeros(1, layer.in_features, device=patcher.load_device, dtype=torch.bfloat16))
    return answer[0].float().cpu()


def stored(patcher: Any, name: str) -> Tensor:
    """The bits of the layer's weight."""
    weight = comfy.utils.get_attr(patcher.model.diffusion_model, name).weight
    return (weight._qdata if isinstance(weight, QuantizedTensor) else weight).view(torch.uint8).cpu().clone()


def errors(model: str, loras: tuple[str, str], node: str, names: list[str] | None = None) -> dict[str, float]:
    """Error of the effective weight and bias over the LoRA's own difference, worst layer, and whether anything stayed.

    weight: against the stored weight plus the exact LoRA; again: the same at a second call, before which ComfyUI may
    have kept a patched copy; bias: the same of biases; first: largest difference of the biases from the file's;
    kept: 1.0 if the stored bits and the answers are the same after the LoRA is gone.
    """
    names = names or matrices()
    pairs, biases = (comfy.utils.load_torch_file(path) for path in loras)
    file, base = weights(), load_model(model)
    load(base)
    plain = {name: (effective(base, name), bias_of(base, name), stored(base, name)) for name in names}
    worst = {"weight": 0.0, "again": 0.0, "bias": 0.0, "first": 0.0, "kept": 1.0}

    def add(key: str, value: Tensor) -> None:
        worst[key] = max(worst[key], float(value.nan_to_num(nan=torch.inf)))

    patched = with_lora(base, node, loras[0])
    load(patched)
    for name in names:
        exact = STRENGTH * pairs[f"{LORA}{name}.lora_up.weight"] @ pairs[f"{LORA}{name}.lora_down.weight"]
        for key in ("weight", "again"):
            add(key, (effective(patched, name) - plain[name][0] - exact).norm() / exact.norm())
        add("first", (plain[name][1] - file[f"{name}.bias"].float()).abs().max())
    moved = with_lora(base, node, loras[1])
    load(moved)
    for name in names:
        difference = STRENGTH * biases[f"{LORA}{name}.diff_b"]
        add("bias", (bias_of(moved, name) - plain[name][1] - difference).norm() / difference.norm())
    load(base)
    for name in names:
        weight, bias, bits = plain[name]
        same = torch.equal(stored(base, name), bits) and torch.equal(effective(base, name), weight)
        worst["kept"] = min(worst["kept"], float(same and torch.equal(bias_of(base, name), bias)))
    management.unload_all_models()
    return worst
