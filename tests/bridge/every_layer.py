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


def lora_file(path: Path) -> str:
    """A LoRA on every matrix, with differences of their biases."""
    generator = torch.Generator().manual_seed(4)
    file, out = weights(), dict[str, Tensor]()
    for name in matrices():
        weight = file[f"{name}.weight"]
        out[f"{LORA}{name}.lora_down.weight"] = torch.randn(RANK, weight.shape[1], generator=generator)
        up = torch.randn(weight.shape[0], RANK, generator=generator) * SIZE * weight.float().std() / RANK**0.5
        out |= {f"{LORA}{name}.lora_up.weight": up, f"{LORA}{name}.alpha": torch.tensor(float(RANK))}
        out[f"{LORA}{name}.diff_b"] = 0.1 * torch.randn(weight.shape[0], generator=generator)
    save_file(out, path)
    return str(path)


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
    with running(patcher.model, options) if options else nullcontext():
        yield


def effective(patcher: Any, name: str) -> tuple[Tensor, Tensor]:
    """The layer's weight [out, in] and bias [out], from its answers in float32 to unit vectors and to nothing."""
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, name)
    x = torch.eye(layer.in_features, device=patcher.load_device)
    with called(patcher):
        bias = layer(torch.zeros_like(x[:1]))
        return (layer(x) - bias).t().float().cpu(), bias[0].float().cpu()


def stored(patcher: Any, name: str) -> Tensor:
    """The bits of the layer's weight."""
    weight = comfy.utils.get_attr(patcher.model.diffusion_model, name).weight
    return (weight._qdata if isinstance(weight, QuantizedTensor) else weight).view(torch.uint8).cpu().clone()


def errors(model: str, lora: str, node: str, names: list[str] | None = None) -> dict[str, float]:
    """Error of the effective weight and bias over the LoRA's own difference, worst layer, and whether anything stayed.

    weight: against the stored weight plus the exact LoRA; bias: the same; kept: 1.0 if the stored bits and the answers
    are the same after the LoRA is gone; first: largest difference of the stored bias from the file's.
    """
    tensors, file, base = comfy.utils.load_torch_file(lora), weights(), load_model(model)
    names = names or matrices()
    load(base)
    plain = {name: effective(base, name) for name in names}
    bits = {name: stored(base, name) for name in names}
    patched = with_lora(base, node, lora)
    load(patched)
    worst = {"weight": 0.0, "bias": 0.0, "again": 0.0, "first": 0.0, "kept": 1.0}
    for name in names:
        exact = STRENGTH * tensors[f"{LORA}{name}.lora_up.weight"] @ tensors[f"{LORA}{name}.lora_down.weight"]
        weight, bias = effective(patched, name)
        again = effective(patched, name)[0]  # ComfyUI may have kept a patched copy in between
        moved = STRENGTH * tensors[f"{LORA}{name}.diff_b"]
        measured = {
            "weight": (weight - plain[name][0] - exact).norm() / exact.norm(),
            "again": (again - plain[name][0] - exact).norm() / exact.norm(),
            "bias": (bias - plain[name][1] - moved).norm() / moved.norm(),
            "first": (plain[name][1] - file[f"{name}.bias"].float()).abs().max(),
        }
        for key, value in measured.items():
            worst[key] = max(worst[key], float(value.nan_to_num(nan=torch.inf)))
    load(base)
    same = all(
        torch.equal(stored(base, name), bits[name]) and torch.equal(effective(base, name)[0], plain[name][0])
        for name in names
    )
    management.unload_all_models()
    return {**worst, "kept": float(same)}
