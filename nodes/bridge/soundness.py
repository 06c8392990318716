"""Whether weights hold numbers: the small ones at loading, the large ones once an answer shows that some do not.

Reading 14 GB to look for a NaN would take longer than loading them. Scales, biases, norms and modulation are a few
megabytes and are looked at before anything else; matrices only when the model's first answer of a run is no number.
Of two experts that share a run, each has a first answer of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...wan_core.errors import InputError, WeightsFileError
from ...wan_core.weights.header import DOWNLOAD_AGAIN

SMALL = 2**18  # numbers; the scales of one matrix's channels are at most 30,720
SHOWN = 5  # names in an error
SCALES = (".weight_scale", ".scale_weight", ".weight_scale_2", ".weight_global_scale")
NO_NUMBERS = "NaN or infinity"
KEY = "wan_core_soundness"  # of the callbacks

_FIRST: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # the step of a model's first call in a run


def watch(patcher: Any) -> None:
    """Has the first answers of every run of this patcher and its clones looked at."""
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, KEY, _begin)
    patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, KEY, _begin)


def is_first(model: nn.Module, step: int) -> bool:
    """True in the step of the model's first call in a run, which is of all prompts; an expert may join in any step."""
    return _FIRST.setdefault(model, step) == step


def _begin(patcher: Any) -> None:
    _FIRST.pop(patcher.model, None)


def check_small(tensors: Mapping[str, Tensor], where: str) -> None:
    """Looks at all small tensors of a file, by its own names.

    Raises:
        WeightsFileError: one holds NaN or infinity, or a scale is zero over weights that are not.
    """
    broken, zero = [], []
    for name, tensor in tensors.items():
        if isinstance(tensor, QuantizedTensor) or tensor.numel() > SMALL or not _is_float(tensor):
            continue
        if not is_finite(tensor):
            broken.append(name)
        elif name.endswith(SCALES) and not tensor.float().all() and _has_weights(tensors, name):
            zero.append(name)
    if broken:
        raise damaged(where, broken)
    if zero:
        raise WeightsFileError(
            "The weights file is damaged", where=where, found=f"a scale of zero in {_some(zero)}", remedy=DOWNLOAD_AGAIN
        )


def is_finite(tensor: Tensor) -> bool:
    """True if the tensor, which is not empty, holds numbers only; reads it once, without a copy of its size."""
    if tensor.dtype.itemsize < 2:
        tensor = tensor.float()
    return bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def require_numbers(name: str, tensor: Tensor) -> None:
    """Raises:
    InputError: the input `name` holds NaN or infinity.
    """
    if not is_finite(tensor):
        raise InputError(
            f"The {name.replace('_', ' ')} holds values that are not numbers",
            where=name,
            found=NO_NUMBERS,
            remedy="Look at the node that makes it: its file or its settings are at fault, not the model",
        )


def broken_names(model: nn.Module, device: torch.device) -> list[str]:
    """Parameters that hold NaN or infinity, decoded one after another on a device; a few more than an error shows."""
    names: list[str] = []
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.is_meta or not (isinstance(weight, QuantizedTensor) or _is_float(weight)):
            continue
        weight = weight.to(device)
        weight = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        if not bool(torch.isfinite(weight.float()).all()):
            names.append(name)
        if len(names) > SHOWN:
            break
    return names


def check_answer(answer: Tensor, model: nn.Module, where: str, **inputs: Tensor | None) -> None:
    """Looks for what made an answer no number: its inputs by name, then the weights of `model` from the file `where`.

    Raises:
        InputError: an input holds no numbers, or neither inputs nor weights explain the answer.
        WeightsFileError: weights of the file hold no numbers.
    """
    if bool(torch.isfinite(answer).all()):
        return
    for name, value in inputs.items():
        if value is not None:
            require_numbers(name, value)
    if names := broken_names(model, answer.device):
        raise damaged(where, names)
    raise InputError(
        "The model answers with values that are not numbers",
        where=where,
        found=f"{NO_NUMBERS}, though its weights and inputs are numbers",
        remedy="Start ComfyUI without flags that choose an attention (--use-sage-attention and others); if it stays, "
        "load each expert with Wan Load Diffusion Model, weight_dtype (advanced) fp32",
    )


def check_vae(made: Tensor, vae: Any) -> None:
    """Looks why pixels or latents that a VAE made are no numbers, where what went into it were.

    Raises:
        WeightsFileError: its weights are none.
        InputError: its type does not hold them.
    """
    if bool(torch.isfinite(made).all()):
        return
    model = vae.first_stage_model
    if names := broken_names(model, vae.device):
        raise damaged(getattr(model, "where", "vae"), names)
    raise InputError(
        "The VAE makes values that are not numbers",
        where="vae",
        found=NO_NUMBERS,
        remedy="Start ComfyUI with --fp32-vae or --bf16-vae",
    )


def check_lora(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises:
    WeightsFileError: tensors of a LoRA file hold NaN or infinity.
    """
    if broken := [name for name, tensor in tensors.items() if _is_float(tensor) and not is_finite(tensor)]:
        raise damaged(where, broken)


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0


def _has_weights(tensors: Mapping[str, Tensor], scale: str) -> bool:
    """True if the matrix under a scale holds anything but zeros; a layer of zeros may have a scale of zero."""
    weight = tensors.get(scale.rpartition(".")[0] + ".weight")
    return weight is not None and bool(weight.view(torch.uint8).any())


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"


def damaged(where: str, names: list[str]) -> WeightsFileError:
    """The error for a file of which these tensors hold no numbers."""
    return WeightsFileError(
        "The weights file holds values that are not numbers",
        where=where,
        found=f"{NO_NUMBERS} in {_some(names)}",
        remedy=DOWNLOAD_AGAIN,
    )
