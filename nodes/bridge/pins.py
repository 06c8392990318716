"""Whose weights keep a pinned copy in RAM, from which they reach the GPU at the link's full rate.

A machine with 32 GB holds both experts in 8 bits, but not the text encoder besides, which runs once a prompt. ComfyUI
gives copies up when RAM runs short, those of the model that ran last first, and reads that part of the file again in
the next run: seconds at every switch of experts. So the text encoder is the one that gives way.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.memory_management
import comfy.model_management as management
import psutil
import torch

from .read_ahead import plain_parameters

LEAST_FREE = 2 * 2**30  # bytes of RAM that ComfyUI leaves free beside pinned copies
HYSTERESIS = 2**29  # bytes that it frees more where it has to free


def size_of(module: torch.nn.Module) -> int:
    """Bytes of its parameters as they are stored."""
    return sum(parameter.nbytes for parameter in plain_parameters(module))


@contextmanager
def in_free_ram_only(size: int) -> Iterator[None]:
    """Pins nothing new within it where `size` bytes would not fit beside the copies that others have."""
    free = psutil.virtual_memory().available - max(_headroom() / 2, LEAST_FREE)
    if management.args.disable_pinned_memory or free >= size:
        yield
        return
    management.args.disable_pinned_memory = True  # read at every copy that would be made
    try:
        yield
    finally:
        management.args.disable_pinned_memory = False


def make_room(models: Sequence[Any]) -> int:
    """Gives up copies of other models that keep those of these MODELs from fitting; returns how many bytes.

    What they lack is counted as if all of it was to be copied, and what ComfyUI frees again behind every node as taken.
    """
    own = {id(model.model): model for model in models if _is_dynamic(model)}  # clones share one copy
    if not own or management.args.disable_pinned_memory:
        return 0
    lacking = sum(max(0, model.model_size() - model.loaded_ram_size()) for model in own.values())
    short = lacking + max(_headroom(), LEAST_FREE) + HYSTERESIS - psutil.virtual_memory().available
    return _given_up(short, keep=own)


def free_ram(size: float) -> None:
    """Has models give up copies until `size` bytes of RAM are there for what is no weight."""
    _given_up(size + LEAST_FREE - psutil.virtual_memory().available)


def _given_up(short: float, keep: Container[int] = ()) -> int:
    """Bytes of copies that models gave up, of `short`; those with the ids of `keep` give none."""
    freed = 0
    for model in filter(None, management.loaded_models()):  # None: one that is gone
        if freed >= short:
            break
        if _is_dynamic(model) and id(model.model) not in keep:
            freed += model.partially_unload_ram(short - freed)
    return freed


def _headroom() -> float:
    """Bytes of RAM that ComfyUI keeps free behind every node."""
    return getattr(comfy.memory_management, "RAM_CACHE_HEADROOM", 0)


def _is_dynamic(model: Any) -> bool:
    """True for a patcher of Dynamic VRAM that tells of its copies; others keep none."""
    return model.is_dynamic() and hasattr(model, "loaded_ram_size")
