"""The memory of a run's texts (wan_core/texts.py) on a MODEL: from its native pre_run to its cleanup.

Weights stay as they are in a run but for what `_weights` returns. Conditionings with hooks change them in ways of their
own and get no memory; neither does a run whose weights would have to leave the card for it, since sending those again
costs more than a text's keys and values: what a run needs at least, which the planner says, is without it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ...wan_core.blocks import CrossAttention
from ...wan_core.texts import TextMemory
from .lora_table import at_step

OPTION = "wan_core_texts"  # in the options of a call, and of the callbacks
SHARE = 4  # all texts together may have this part of what the card has left

_RUNS: WeakKeyDictionary[nn.Module, TextMemory | None] = WeakKeyDictionary()  # None: its first call is still to come


def remember(patcher: Any) -> None:
    """Gives every run of this patcher and its clones a memory of its own."""
    patcher.add_callback_with_key(CallbacksMP.ON_PRE_RUN, OPTION, _begin)
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, OPTION, _begin_again)
    patcher.add_callback_with_key(CallbacksMP.ON_CLEANUP, OPTION, _end)


def remembering(model: Any, options: dict[str, Any], x: Tensor, step: int) -> dict[str, Any]:
    """The options of a call on latents x [B, C, F, H, W] at a step, with the memory of the run where it has one."""
    patcher = model.current_patcher
    if patcher is None or model not in _RUNS or patcher.current_hooks is not None or torch.is_grad_enabled():
        return options
    if "optimized_attention_override" in options:  # which may write into the keys that it is given
        return options
    memory = _RUNS[model]
    if memory is None:
        memory = _RUNS[model] = _memory(patcher, x)
    memory.start(_weights(patcher, options, step))
    return {**options, OPTION: memory}


def _weights(patcher: Any, options: dict[str, Any], step: int) -> Hashable:
    """What the weights of a call depend on."""
    return id(patcher), patcher.patches_uuid, at_step(options, step)


def _memory(patcher: Any, x: Tensor) -> TextMemory:
    device, model = patcher.load_device, patcher.model
    layers = sum(isinstance(module, CrossAttention) for module in model.modules())
    missing = patcher.model_size() - patcher.loaded_size()
    left = comfy.model_management.get_free_memory(device) - missing - model.memory_required(list(x.shape))
    return TextMemory(layers, int(left) // SHARE)


def _begin(patcher: Any) -> None:
    _RUNS[patcher.model] = None


def _begin_again(patcher: Any, *_unused: Any) -> None:
    if patcher.model in _RUNS:
        _RUNS[patcher.model] = None


def _end(patcher: Any) -> None:
    _RUNS.pop(patcher.model, None)
