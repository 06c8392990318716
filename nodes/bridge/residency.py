"""Which weights stay on a card that cannot hold all of them: decided at once, before a model's first forward.

ComfyUI's Dynamic VRAM brings weights in until the card is full. Whenever a layer or a tensor needs room after that, it
takes some back, of other models first, and waits for the GPU before and after it (comfy-aimdo 0.4, src/model-vbar.c,
vbars_free): nothing is hidden behind anything in the first forward of a model. So other models give up at once what
this one will need, and the model is told where the weights end that stay; those behind come anew for every block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import comfy.model_management as management
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ...wan_core.hooks import Recovery
from ...wan_core.planner.memory import IN_FLIGHT, residence, tokens_of
from . import leftovers
from .eight_bits import in_eight_bits
from .pins import size_of

OPTION = "wan_core_sparing"  # in the options of a call: activations are to take little, as weights come and go

_SPARING: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # models that were settled since they were loaded
_TIGHT: WeakSet[nn.Module] = WeakSet()  # those of which no weight stays
_CLEARED: WeakSet[nn.Module] = WeakSet()  # and those for which everything else had to leave


def watch(patcher: Any) -> None:
    """Has this patcher, and its clones, settle anew whenever ComfyUI has loaded it."""
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, OPTION, _forget)


def settled(model: Any, options: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """The options of a call on latents x [B, C, F, H, W]; the first since loading gives the weights their places."""
    patcher = model.current_patcher
    if patcher is None or x.device.type != "cuda":
        return options
    if model not in _SPARING:
        _SPARING[model] = _settle(patcher, x, options)
    return {**options, OPTION: True} if _SPARING[model] else options


def apart(model: Any, call: Callable[[], Tensor]) -> Tensor:
    """What the call answers; where memory is tight, in a place of its own.

    PyTorch would keep it, and what the solver makes of it, in the memory of tokens that are gone: those of the next
    call no longer fit in there, and what is left of it serves nobody.
    """
    answer = call()
    if model not in _TIGHT:
        return answer
    device = answer.device
    answer = answer.cpu()
    management.soft_empty_cache()
    return answer.to(device)


def recovery_of(model: Any) -> Recovery:
    """What helps a forward of this model that ran out of memory, once since it was loaded."""
    return Recovery(partial(_may_clear, model), partial(_clear, model))


def _may_clear(model: Any, error: Exception) -> bool:
    """Whether memory was short in a forward that failed with `error`, and more of it can be made free."""
    patcher = model.current_patcher
    if model in _CLEARED or patcher is None or _vbar(patcher) is None:
        return False
    return is_lack_of_memory(error)


def is_lack_of_memory(error: Exception) -> bool:
    """True for PyTorch's error, and for those of Dynamic VRAM where it finds no room for weights."""
    return management.is_oom(error) or str(error).startswith(("VRAM grow failed", "Fault failed"))


def catch_up() -> None:
    """Waits until the GPU has done what it was given, and gives back what PyTorch keeps of it in pieces.

    The CPU is blocks ahead of the GPU: until then, memory that is free again can be had only in the pieces it was in.
    """
    _note_short_memory()
    management.soft_empty_cache()


@cache
def _note_short_memory() -> None:
    """Once for each loading: at the limit it is every block."""
    logging.info("Wan: memory of the GPU ran out in a block; blocks for which it does are tried again")


RECOVERY = Recovery(is_lack_of_memory, catch_up)


def _clear(model: Any) -> None:
    """Other models leave the card, and weights come for each block alone; PyTorch's memory has no gaps then."""
    patcher = model.current_patcher
    leftovers.clear(model)
    for other in _others(patcher):
        other.partially_unload(patcher.load_device, 1e30)
    _vbar(patcher).set_watermark(0)
    management.soft_empty_cache()
    _SPARING[model] = True
    _TIGHT.add(model)
    _CLEARED.add(model)
    logging.info("Wan: memory of the GPU ran out; all weights come anew for every block from here on")


def _settle(patcher: Any, x: Tensor, options: dict[str, Any]) -> bool:
    """Gives the weights their places beside such a call; returns whether activations are to be sparing."""
    vbar = _vbar(patcher)
    if vbar is None:
        return patcher.loaded_size() < patcher.model_size()
    network = patcher.model.diffusion_model
    tokens = len(x) * tokens_of(network.config, *x.shape[2:])
    fetched = IN_FLIGHT * max(size_of(block) for block in network.blocks)
    stay = residence(
        network.config,
        tokens,
        size=vbar.offset,
        fetched=fetched,
        free=reachable(patcher),
        eight_bits=in_eight_bits(options),
    )
    _make_room(patcher, stay.weights + stay.working)
    if stay.weights < vbar.offset:
        vbar.set_watermark(int(stay.weights))
    if stay.weights <= 0:
        _TIGHT.add(patcher.model)
    return stay.sparing


def reachable(patcher: Any) -> float:
    """Bytes of its device for a model's weights and whatever works with them: free, its own, or given up for it."""
    there = (patcher, *_others(patcher))
    return management.get_free_memory(patcher.load_device) + sum(model.loaded_size() for model in there)


def _make_room(patcher: Any, needed: float) -> None:
    """Other models give up what is missing to `needed` bytes for this one's weights and whatever works with them."""
    vbar = _vbar(patcher)
    own = 0 if vbar is None else vbar.loaded_size()
    short = needed - own - management.get_free_memory(patcher.load_device)
    # First those that come back fastest: from a copy in pinned RAM.
    for other in sorted(_others(patcher), key=lambda other: other.loaded_ram_size() / other.model_size(), reverse=True):
        if short <= 0:
            break
        short -= other.partially_unload(patcher.load_device, int(short))


@contextmanager
def held(patcher: Any, working: float) -> Iterator[None]:
    """No weight of this model leaves the card within it, where `working` bytes are needed beside them."""
    vbar = _vbar(patcher)
    if vbar is None:
        yield
        return
    _make_room(patcher, vbar.offset + working)
    vbar.set_watermark_limit(vbar.offset)
    try:
        yield
    finally:
        vbar.set_watermark_limit(0)


def _forget(patcher: Any, *_unused: Any) -> None:
    _SPARING.pop(patcher.model, None)
    _TIGHT.discard(patcher.model)
    _CLEARED.discard(patcher.model)
    _note_short_memory.cache_clear()


def _vbar(patcher: Any) -> Any:
    """The address range that Dynamic VRAM keeps a MODEL's weights in; None where it has none."""
    found = patcher._vbar_get() if patcher.is_dynamic() else None
    return found if hasattr(found, "set_watermark") else None


def _others(patcher: Any) -> list[Any]:
    """Other models of Dynamic VRAM on the same device; clones of one are one."""
    found = {
        id(other.model): other
        for other in filter(None, management.loaded_models())  # None: one that is gone
        if other.is_dynamic() and other.load_device == patcher.load_device and other.model is not patcher.model
    }
    return list(found.values())
