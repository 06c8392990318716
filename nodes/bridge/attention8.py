"""Self-attention in 8 bits as an option of a MODEL."""

from __future__ import annotations

from typing import Any

import comfy.model_management

from ...wan_core import paths
from . import host
from .options import with_option

OPTION = "wan_core_attention_8"  # in transformer_options


def with_attention8(model: Any, name: str = "model") -> Any:
    """A clone of MODEL, from the input `name`, whose self-attention is in 8 bits where the card has a kernel for it.

    Raises:
        WrongModelError: not Wan.
        InputError: ComfyUI's own model, which does not read the option.
    """
    return with_option(model, OPTION, name)


def is_on(options: dict[str, Any]) -> bool:
    """Whether transformer options have the option, on a machine that has a kernel for it."""
    return bool(options.get(OPTION)) and path().name == paths.INT8


def path() -> paths.Path:
    """What the option comes to on this machine."""
    if host.attention_is_chosen():
        return paths.Path(paths.EXACT, "ComfyUI was started with an attention of its own choice, which goes first")
    return paths.attention_in_8_bits(paths.card_of(comfy.model_management.get_torch_device()))
