"""The transformer's `ops` over ComfyUI's layers: casting, offloading and quantised storage stay ComfyUI's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...wan_core.kernels import Form
from ...wan_core.weights.mapped import check_all
from . import host, residency
from .branches import BranchedLinear
from .float8 import Float8Linear
from .float8 import form as in_float8
from .int8 import Int8Linear, float8_first
from .int8 import form as in_int8
from .lookup import LookedUp
from .lora_table import TableReader, added, on_weights

FILES = "wan_core_files"  # in the options of a call: the files that weights are read from
LAYERS = ("Conv1d", "Conv2d", "Conv3d", "LayerNorm", "RMSNorm")  # whose weights the table can change


@lru_cache(maxsize=16)  # ComfyUI makes a new class for each quantised model
def wan_operations(native: type) -> type:
    """Returns the layers of `native` with the functions that the transformer asks of its host.

    A Linear is one class for every storage type: where its weight is quantised, a LoRA goes beside it. All layers add
    what the run's table of LoRAs says.

    The transformer passes float32 to layers that hold bfloat16, so layers that never cast give way to those that do.
    """
    casting = native if issubclass(native, comfy.ops.manual_cast) else comfy.ops.manual_cast
    own: dict[str, Any] = {name: type(name, (TableReader, getattr(casting, name)), {}) for name in LAYERS}
    own["Embedding"] = type("Embedding", (LookedUp, casting.Embedding), {})
    own["Linear"] = type("Linear", (BranchedLinear, Int8Linear, Float8Linear, casting.Linear), {})
    functions = {"weights": weights, "parameter": parameter, "stream": stream, "form": form}
    own |= {name: staticmethod(function) for name, function in functions.items()}
    return type("WanOps", (casting,), own)


@contextmanager
def weights(module: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yields weight and bias on `like`'s device and in its dtype; they may be gone after the context."""
    with on_weights(module, like):
        weight, bias, handle = comfy.ops.cast_bias_weight(module, like, offloadable=True)
    try:
        yield weight, bias
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, handle)


def parameter(module: nn.Module, name: str, like: Tensor) -> Tensor:
    """Returns a parameter that ComfyUI keeps on the GPU, on `like`'s device and in its dtype."""
    return added(module, name, getattr(module, name).to(like))


def form(device: torch.device, dtype: torch.dtype, *layers: nn.Module, int8: bool = False) -> Form:
    """The form of the tokens that all of these layers take: int8 where it is asked for and they have it."""
    found = in_float8(device, dtype, *layers)
    if not int8 or (found.values is not None and float8_first(device)):
        return found
    return in_int8(device, dtype, *layers) or found


def stream(
    blocks: Iterable[nn.Module], device: torch.device, options: dict[str, Any] | None
) -> Iterator[tuple[int, nn.Module]]:
    """Yields (index, block); while a block computes, the next one's weights are on their way to the GPU.

    Raises:
        WeightsFileError: a file that weights are read from was cut off or written over.
    """
    options = options or {}
    blocks = list(blocks)
    if torch.compiler.is_compiling():  # a compiled model is not streamed
        yield from enumerate(blocks)
        return
    prefetch, files = host.prefetch_module(), options.get(FILES, ())
    if prefetch is None:
        for index, block in enumerate(blocks):
            check_all(files)
            yield index, block
        return
    queue = prefetch.make_prefetch_queue(blocks, device, options)
    for index, block in enumerate(blocks):
        check_all(files)
        residency.RECOVERY.attempt(_Fetch(prefetch, queue, device, block))
        yield index, block
        if queue is None:  # a try that failed may have left marks, which nothing else takes off
            prefetch.cleanup_prefetched_modules(block.modules())
    prefetch.prefetch_queue_pop(queue, device, None)


class _Fetch:
    """Sends a block's weights on their way, as often as it is called for the same block.

    Where PyTorch keeps the memory that they need, the native call leaves its queue between two blocks.
    """

    def __init__(self, prefetch: ModuleType, queue: list[Any] | None, device: torch.device, block: nn.Module) -> None:
        self.prefetch, self.queue, self.device, self.block = prefetch, queue, device, block
        self.tried = False

    def __call__(self) -> None:
        if self.tried and self.queue is not None:
            self.prefetch.cleanup_prefetched_modules(self.block.modules())
            self.queue.insert(0, None)
        self.tried = True
        self.prefetch.prefetch_queue_pop(self.queue, self.device, self.block)
