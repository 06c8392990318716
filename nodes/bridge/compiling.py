"""Quantised weights under torch.compile: a model that has them runs as it is, whoever asked for a graph.

Where a card multiplies float8, ComfyUI's layer rounds its input to a QuantizedTensor and then asks that for its type.
PyTorch 2.11 cannot trace the question, so every layer becomes graphs of its own. One that takes any number of tokens
gives its result the symbolic sizes of its trace, on which the next trace stops: "vr must not be None for symbol", with
ComfyUI's own Wan as with ours. And what a graph has read it refers to, so that weights in GGUF blocks cannot be moved
any more: "Cannot swap t1 because it has weakref associated with it".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from comfy.patcher_extension import WrappersMP

from ...wan_core.errors import InputError

KEY = "torch.compile"  # of the wrapper that ComfyUI's node puts around a model, and nodes of other packs through it
_TOLD: WeakSet[Any] = WeakSet()  # models of which the console says it


def left_out(model: Any, options: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Inside the context PyTorch compiles nothing of a WanModel whose weights are quantised; `options` of its call.

    Raises:
        InputError: a graph was asked for, and this PyTorch cannot pass it by.
    """
    if not model.is_quantised:
        return nullcontext()
    asked = KEY in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})
    set_stance = getattr(torch.compiler, "set_stance", None)  # since PyTorch 2.6
    if asked and set_stance is None:
        raise InputError(
            "torch.compile cannot trace quantised weights",
            where=f"TorchCompileModel, or a node like it, behind {model.model_config.path!r}",
            found=f"PyTorch {torch.__version__}, which cannot leave it out as 2.6 and newer do",
            remedy="Take that node out of the workflow; the pack's own kernels do its work",
        )
    if asked and model not in _TOLD:
        _TOLD.add(model)
        logging.info("Wan: %s runs without torch.compile, which cannot trace its weights", model.model_config.path)
    return nullcontext() if set_stance is None else set_stance("force_eager")
