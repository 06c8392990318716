"""What a call that failed leaves of Dynamic VRAM: layers whose weights were on their way, and pages held for them.

ComfyUI marks a layer for as long as its weights are on their way, and takes them for fetched where it finds the mark.
Behind a call that fails in the wrong moment, as in the cast of a weight for which memory is short, the mark stays
(ComfyUI 0.30, comfy/ops.py, cast_bias_weight): the next call would compute with what lies there by then, or read memory
that is gone, which ends the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from . import host

HELD = 2  # bit of a page's state


@contextmanager
def cleared_on_failure(model: nn.Module) -> Iterator[None]:
    """The model computes within it; whatever ends it early leaves nothing behind."""
    try:
        yield
    except BaseException:
        clear(model)
        raise


def clear(model: nn.Module) -> None:
    """Takes all marks off a model that computes nothing, and lets go the pages that are held for it."""
    prefetch = host.prefetch_module()
    places = [vars(layer)["_v"] for layer in model.modules() if "_v" in vars(layer)]  # (address range, start, bytes)
    if prefetch is None or not places:
        return
    vbar = places[0][0]
    torch.cuda.synchronize(vbar.device)  # what is on its way arrives before its place is given away
    prefetch.cleanup_prefetched_modules(model.modules())
    for _ in places:  # no page is held more often than there are layers
        if not any(page & HELD for page in vbar.get_residency()):
            break
        vbar.unpin(vbar.base_addr, vbar.offset)
