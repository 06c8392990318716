"""Control LoRAs: they widen the model's input, so that the latent of a control video goes in beside the noise.

`patch_embedding.reshape_weight` in their file is the shape that this weight gets, with zeros in its new channels.
ComfyUI pads a weight while it merges such a patch, and gives a model as many channels as its weight has then. Where the
LoRA goes beside the weights, a patch of zeros widens the weight in the same way.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import torch
from comfy.weight_adapter.lora import LoRAAdapter

from .patches import Patch

INPUT = "diffusion_model.patch_embedding.weight"
Shape = tuple[int, ...]


def widened_to(value: Any) -> Shape | None:
    """The shape that a patch's value gives a weight; None: it leaves the shape as it is."""
    if isinstance(value, LoRAAdapter):
        return None if value.weights[5] is None else tuple(value.weights[5])
    if isinstance(value, tuple) and len(value) == 2 and value[0] == "diff" and len(value[1]) > 1:
        return tuple(value[1][0].shape) if value[1][1].get("pad_weight") else None
    return None


def input_shape(patcher: Any) -> Shape:
    """The input weight's shape [D, C, 1, 2, 2] with the patches of this MODEL, whichever of its clones is loaded."""
    network = patcher.model.diffusion_model
    rows, _, *kernel = network.patch_embedding.weight.shape
    patches: Sequence[Patch] = patcher.patches.get(INPUT, ())
    found = [widened_to(patch[1]) for patch in patches]
    return next((shape for shape in reversed(found) if shape), (rows, network.in_dim, *kernel))


def is_in_place(patcher: Any) -> bool:
    """True if the weight is now as wide as this MODEL has it in a run."""
    return tuple(patcher.model.diffusion_model.patch_embedding.weight.shape) == input_shape(patcher)


def widen(clone: Any, shape: Shape) -> None:
    """Puts zeros on the input weight of a MODEL until it has this shape; equal clones stay equal."""
    if input_shape(clone) == shape:
        return
    before = clone.patches_uuid
    clone.add_patches({INPUT: ("diff", (torch.zeros(shape), {"pad_weight": True}))}, 0.0)
    clone.patches_uuid = uuid.uuid5(before, repr(shape))


def put_in_place(patcher: Any, device_to: Any) -> None:
    """Merges what widens the input where the legacy patcher would do it anew at each call, too late to be seen."""
    if INPUT in patcher.backup or not any(widened_to(patch[1]) for patch in patcher.patches.get(INPUT, ())):
        return
    layer = patcher.model.diffusion_model.patch_embedding
    layer.weight_function = [each for each in layer.weight_function if not getattr(each, "is_lowvram_patch", False)]
    patcher.patch_weight_to_device(INPUT, device_to=device_to)
    layer.comfy_patched_weights = True
