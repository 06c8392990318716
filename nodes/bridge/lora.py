"""LoRA files onto a MODEL through ComfyUI's own machinery, with a count of what matched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.utils

from ...wan_core.errors import WrongModelError
from ...wan_core.weights import inspect, require
from ...wan_core.weights.families import LORA
from ...wan_core.weights.names import is_distilled
from .facts import DISTILLED

SHOWN = 3  # names in a report
DELTAS = (".diff", ".diff_b")  # whole differences, beside the low-rank ones


@dataclass(frozen=True)
class LoraMatch:
    """How much of one file reached the model, in layers."""

    name: str
    strength: float
    applied: int
    unknown: tuple[str, ...]  # layers that the model does not have
    misfit: tuple[str, ...]  # layers of another shape

    def report(self) -> str:
        """One line: "name (strength 1): 300 of 300 layers"."""
        total = self.applied + len(self.unknown) + len(self.misfit)
        text = f"{self.name} (strength {self.strength:g}): {self.applied} of {total} layers"
        for what, layers in (("unknown", self.unknown), ("of another shape", self.misfit)):
            if layers:
                text += f"; {len(layers)} {what}: {', '.join(layers[:SHOWN])}{', ...' if len(layers) > SHOWN else ''}"
        return text


def apply_lora(patcher: Any, path: str, name: str, strength: float) -> tuple[Any, LoraMatch | None]:
    """Returns a clone of the patcher with the LoRA on it, and what matched; the patcher itself at strength 0.

    Names and shapes are compared by the header, before the file is read. `name` is the file's, with its folder.

    Raises:
        WeightsFileError: the file cannot be read as weights.
        WrongModelError: it is no LoRA, or none of its layers fits this model.
    """
    checkpoint = inspect(path)
    require(checkpoint, LORA)
    if strength == 0:
        return patcher, None
    key_map = comfy.lora.model_lora_keys_unet(patcher.model, {})
    shapes = comfy.lora_convert.convert_lora(checkpoint.shapes)
    unknown, misfit = _strangers(shapes, key_map, patcher.model)
    lora, notes = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    lora = comfy.lora_convert.convert_lora(lora)
    fitting = {name: tensor for name, tensor in lora.items() if _layer_of(name, key_map) not in misfit}
    clone = patcher.clone()
    targets: set[Any] = set()
    for part in _parts(fitting):
        targets.update(clone.add_patches(comfy.lora.load_lora(part, key_map, log_missing=False), strength))
    layers = {layer for name in fitting if (layer := _layer_of(name, key_map)) is not None}
    applied = {layer for layer in layers if key_map[layer] in targets or _bias(key_map[layer]) in targets}
    match = LoraMatch(name, strength, len(applied), (*unknown, *sorted(layers - applied)), tuple(sorted(misfit)))
    if not applied:
        _refuse(path, match)
    if notes:
        clone.set_attachments("lora_metadata", notes)
    if is_distilled(name):
        clone.set_attachments(DISTILLED, name)
    return clone, match


def _parts(lora: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Low-rank pairs and whole differences apart: ComfyUI keeps one patch per weight of each reading."""
    low_rank = {name: tensor for name, tensor in lora.items() if not name.endswith(DELTAS)}
    deltas = {name: tensor for name, tensor in lora.items() if name.endswith(DELTAS)}
    return [part for part in (low_rank, deltas) if part]


def _strangers(
    shapes: Mapping[str, Sequence[int]], key_map: Mapping[str, str], model: Any
) -> tuple[list[str], set[str]]:
    """Returns the layers that the model does not have, and those whose shape is another."""
    unknown: dict[str, None] = {}
    misfit: set[str] = set()
    for name, shape in shapes.items():
        layer = _layer_of(name, key_map)
        if layer is None:
            unknown[name.removesuffix(".weight").rpartition(".")[0] or name] = None
        elif not _fits(name, shape, comfy.utils.get_attr(model, key_map[layer]).shape):
            misfit.add(layer)
    return list(unknown), misfit


def _layer_of(name: str, key_map: Mapping[str, str]) -> str | None:
    """The longest part of a tensor's name that the model knows."""
    layer = name
    while "." in layer:
        layer = layer.rpartition(".")[0]
        if layer in key_map:
            return layer
    return None


def _fits(name: str, shape: Sequence[int], weight: Sequence[int]) -> bool:
    """Compares the outer sizes of a low-rank pair or a whole difference with the weight's; others pass."""
    if name.endswith((".lora_down.weight", ".lora_A.weight")):
        return math.prod(shape[1:]) == math.prod(weight[1:])
    if name.endswith((".lora_up.weight", ".lora_B.weight", ".diff_b")):
        return shape[0] == weight[0]
    return not name.endswith(".diff") or tuple(shape) == tuple(weight)


def _bias(key: str) -> str:
    return key.removesuffix(".weight") + ".bias"


def _refuse(path: str, match: LoraMatch) -> None:
    raise WrongModelError(
        "This LoRA does not fit the model",
        where=repr(path),
        found=f"{len(match.misfit)} layers of another shape, {len(match.unknown)} that the model does not have"
        + (f", such as {match.unknown[0]}" if match.unknown else ""),
        remedy="Take a LoRA that was made for this model and size, with keys as ComfyUI reads them",
    )
