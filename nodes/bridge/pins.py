"""Whose weights keep a pinned copy in RAM, from which they reach the GPU at the link's full rate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.memory_management
import comfy.model_management as management
import psutil
import torch

LEAST_FREE = 2 * 2**30  # bytes of RAM that ComfyUI leaves free beside pinned copies


def size_of(module: torch.nn.Module) -> int:
    """Bytes of its parameters as they are stored."""
    return sum(getattr(parameter, "_qdata", parameter).nbytes for parameter in module.parameters())


@contextmanager
def in_free_ram_only(size: int) -> Iterator[None]:
    """Pins nothing new within it where `size` bytes would not fit beside the copies that others have.

    ComfyUI gives up the copies of the model that sampled last, first, and reads that part of its file again in the
    next run: seconds on a machine whose RAM holds both experts and not the text encoder, too, which runs once a prompt.
    """
    reserve = max(getattr(comfy.memory_management, "RAM_CACHE_HEADROOM", 0) / 2, LEAST_FREE)
    if management.args.disable_pinned_memory or psutil.virtual_memory().available - reserve >= size:
        yield
        return
    management.args.disable_pinned_memory = True  # read at every copy that would be made
    try:
        yield
    finally:
        management.args.disable_pinned_memory = False
