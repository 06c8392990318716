"""Quantised weights under torch.compile: a model that has them runs as it is, whoever asked for a graph.

Where a card multiplies float8, ComfyUI's layer rounds its input to a QuantizedTensor and then asks that for its type.
PyTorch 2.11 cannot trace the question, so every layer becomes graphs of its own. One that takes any number of tokens
gives its result the symbolic sizes of its trace, on which the next trace stops: "vr must not be None for symbol", with
ComfyUI's own Wan as with ours. And what a graph has read it refers to, so that weights in GGUF blocks cannot be moved
any more: "Cannot swap t1 because it has weakref associated with it".
"""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from ...wan_core.errors import InputError

DYNAMO = "torch._dynamo"  # takes a second to import: nobody has compiled anything before
_TOLD: WeakSet[Any] = WeakSet()  # models of which the console says it


def left_out(model: Any) -> AbstractContextManager[Any]:
    """Inside the context PyTorch compiles nothing of a WanModel whose weights are quantised.

    Raises:
        InputError: a graph was asked for, and this PyTorch cannot pass it by.
    """
    if not (model.is_quantised and _is_compiled(model.diffusion_model)):
        return nullcontext()
    set_stance = getattr(torch.compiler, "set_stance", None)  # since PyTorch 2.6
    if set_stance is None:
        raise InputError(
            "torch.compile cannot trace quantised weights",
            where=f"TorchCompileModel, or a node like it, behind {model.model_config.path!r}",
            found=f"PyTorch {torch.__version__}, which cannot leave it out as 2.6 and newer do",
            remedy="Take that node out of the workflow; the pack's own kernels do its work",
        )
    if model not in _TOLD:
        _TOLD.add(model)
        logging.info("Wan: %s runs without torch.compile, which cannot trace its weights", model.model_config.path)
    return set_stance("force_eager")


def _is_compiled(network: nn.Module) -> bool:
    """True where a graph was asked for, for the whole network or some part of it, in any of PyTorch's ways."""
    dynamo = sys.modules.get(DYNAMO)
    return dynamo is not None and any(
        isinstance(part, dynamo.OptimizedModule)
        or part._compiled_call_impl is not None
        or hasattr(part.forward, "_torchdynamo_orig_callable")
        for part in network.modules()
    )
