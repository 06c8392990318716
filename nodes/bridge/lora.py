"""LoRA files onto a MODEL through ComfyUI's own machinery, with a count of what matched."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import comfy.lora
import comfy.utils
import torch

from ...wan_core.errors import WrongModelError
from ...wan_core.weights import Checkpoint, inspect, require
from ...wan_core.weights.families import LORA
from ...wan_core.weights.lora import DOWN, PeftScale, module_of, official_name, peft_scale
from ...wan_core.weights.lora_fit import (
    INPUT_LAYER,
    WIDENS,
    check_control,
    control_input,
    layer_of,
    mismatches,
    strangers,
)
from ...wan_core.weights.mapped import MappedFile
from ...wan_core.weights.names import is_distilled
from .branches import has_quantised, reads_table
from .control_lora import INPUT, input_shape
from .facts import DISTILLED, model_facts
from .lora_table import LoraRow, can_read_table, rows_of, with_row
from .soundness import check_lora

ROTATION = ".oft_blocks"
DELTAS = (".diff", ".diff_b")  # whole differences, beside the low-rank ones


@dataclass(frozen=True)
class LoraMatch:
    """How much of one file reached the model, in layers."""

    name: str
    strengths: Sequence[float]
    beside: bool  # of the weights; False: merged into them
    applied: int
    unknown: tuple[str, ...]  # layers that the model does not have
    misfit: tuple[str, ...]  # layers of another shape

    def report(self) -> str:
        """One line: "name (strength 1, merged): 300 of 300 layers"."""
        total = self.applied + len(self.unknown) + len(self.misfit)
        strengths = " ".join(f"{strength:g}" for strength in self.strengths)
        where = "beside the weights" if self.beside else "merged"
        matched = f"{self.applied} of {total} layers{mismatches(self.unknown, self.misfit)}"
        return f"{self.name} (strength {strengths}, {where}): {matched}"


def apply_lora(
    patcher: Any, path: str, name: str, strength: float | Sequence[float], *, merge: bool = True
) -> tuple[Any, LoraMatch | None]:
    """Returns a clone of the patcher with the LoRA on it, and what matched; the patcher itself at strength 0.

    `name` is the file's, with its folder. `strength` may be one for each step of the run. Weights in floating point are
    merged with it, unless `merge` is False, the strength changes, or it rotates them, which ComfyUI's Dynamic VRAM
    cannot; it goes beside all others (lora_table.py).
    Names and shapes are compared by the header, before the file is read.

    Raises:
        WeightsFileError: the file cannot be read as weights.
        WrongModelError: it is no LoRA, or none of its layers fits this model.
        InputError: strengths for steps on a model that is not the pack's.
    """
    strengths = (strength,) if isinstance(strength, (int, float)) else tuple(strength)
    strengths = strengths[:1] if len(set(strengths)) == 1 else strengths
    checkpoint = inspect(path)
    require(checkpoint, LORA)
    if not any(strengths):
        return patcher, None
    key_map = comfy.lora.model_lora_keys_unet(patcher.model, {})
    shapes = {official_name(name): shape for name, shape in checkpoint.shapes.items()}
    unknown, misfit, layers = strangers(shapes, partial(_weight_of, patcher, key_map))
    check_control(repr(path), shapes, misfit, input_shape(patcher))
    merge = merge and len(strengths) == 1 and not any(name.endswith(ROTATION) for name in shapes)
    beside = can_read_table(patcher) and not (merge and not has_quantised(patcher.model))
    row = LoraRow(name, strengths, MappedFile.of(os.path.abspath(path)))
    if not layers:
        _refuse(patcher, path, unknown, misfit)
    read = partial(_patches, patcher, checkpoint, key_map, misfit, beside=beside)
    clone = with_row(patcher, row, read, beside=beside)
    targets = set(rows_of(clone)[-1].keys)
    applied = {layer for layer in layers if key_map[layer] in targets or _bias(key_map[layer]) in targets}
    match = LoraMatch(
        name, strengths, beside, len(applied), (*unknown, *sorted(layers - applied)), tuple(sorted(misfit))
    )
    if not applied:
        _refuse(patcher, path, match.unknown, match.misfit)
    if checkpoint.metadata:
        clone.set_attachments("lora_metadata", dict(checkpoint.metadata))
    if is_distilled(name):
        clone.set_attachments(DISTILLED, name)
    return clone, match


def _patches(
    patcher: Any, checkpoint: Checkpoint, key_map: Mapping[str, str], misfit: Collection[str], *, beside: bool
) -> dict[str, list[Any]]:
    """Reads a LoRA: {key of a weight in the model: values of ComfyUI's patches}, without the layers that do not fit."""
    path = str(checkpoint.path)
    tensors = comfy.utils.load_torch_file(path, safe_load=True)
    check_lora(tensors, repr(path))
    lora = _readable(tensors, peft_scale(checkpoint.path, checkpoint.metadata))
    fitting = {name: tensor for name, tensor in lora.items() if layer_of(name, key_map.__contains__) not in misfit}
    fitting = _widening(fitting, input_shape(patcher)[2:])
    known = patcher.model.state_dict().keys()
    patches: dict[str, list[Any]] = {}
    for part in _parts(fitting):
        for key, value in comfy.lora.load_lora(part, key_map, log_missing=False).items():
            if key in known and (not beside or reads_table(patcher.model, key)):
                patches.setdefault(key, []).append(value)
    return patches


def _widening(lora: Mapping[str, Any], kernel: Sequence[int]) -> dict[str, Any]:
    """The tensors without the shapes that weights are to get, but for the input's, which its matrices tell."""
    plain = {name: tensor for name, tensor in lora.items() if not name.endswith(f".{WIDENS}")}
    widened = control_input({name: tensor.shape for name, tensor in lora.items()})
    return plain if widened is None else plain | {f"{INPUT_LAYER}.{WIDENS}": torch.tensor([*widened, *kernel])}


def _readable(tensors: Mapping[str, Any], scale: PeftScale | None) -> dict[str, Any]:
    """The tensors under the names that ComfyUI reads, with what trainers leave out: alpha, and an axis of DoRA.

    The alpha of OFT and BOFT bounds the rotation, 0 means freely; without one ComfyUI's BOFT fails and does nothing.
    """
    lora = {official_name(name): tensor for name, tensor in tensors.items()}
    for written in tensors:
        name = official_name(written)
        if name.endswith(".dora_scale") and lora[name].ndim == 1:
            lora[name] = lora[name].unsqueeze(1)
        if name.endswith(ROTATION):
            lora.setdefault(name.removesuffix(ROTATION) + ".alpha", torch.tensor(0.0))
        if scale is not None and name.endswith(DOWN):
            alpha = scale.alpha_of(lora[name].shape[0], module_of(written))
            lora.setdefault(name.removesuffix(DOWN) + ".alpha", torch.tensor(alpha))
    return lora


def _parts(lora: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Low-rank pairs and whole differences apart: ComfyUI keeps one patch per weight of each reading."""
    low_rank = {name: tensor for name, tensor in lora.items() if not name.endswith(DELTAS)}
    deltas = {name: tensor for name, tensor in lora.items() if name.endswith(DELTAS)}
    return [part for part in (low_rank, deltas) if part]


def _weight_of(patcher: Any, key_map: Mapping[str, str], layer: str) -> Sequence[int] | None:
    """The shape of a layer's weight in the MODEL, by its name in LoRA files; None: the model has no such layer."""
    if layer not in key_map:
        return None
    key = key_map[layer]
    return input_shape(patcher) if key == INPUT else comfy.utils.get_attr(patcher.model, key).shape


def _bias(key: str) -> str:
    return key.removesuffix(".weight") + ".bias"


def _refuse(patcher: Any, path: str, unknown: Sequence[str], misfit: Collection[str]) -> NoReturn:
    raise WrongModelError(
        "This LoRA does not fit the model",
        where=repr(path),
        found=f"{len(misfit)} layers of another shape, {len(unknown)} that the model does not have"
        + (f", such as {unknown[0]}" if unknown else ""),
        remedy=f"Take a LoRA made for {model_facts(patcher).task.title}",
    )
