"""Linear layers in int8 as an option of a MODEL; int8.py has the layers."""

from __future__ import annotations

from typing import Any

import comfy.model_management

from ...wan_core import paths
from .options import with_option

OPTION = "wan_core_layers_8"  # in transformer_options


def with_layers8(model: Any, name: str = "model") -> Any:
    """A clone of MODEL, from the input `name`, whose blocks multiply in int8 where the card has kernels for it.

    Raises:
        WrongModelError: not Wan.
        InputError: ComfyUI's own model, which does not read the option.
    """
    return with_option(model, OPTION, name)


def is_on(options: dict[str, Any]) -> bool:
    """Whether transformer options have the option, on a machine that has kernels for it."""
    return bool(options.get(OPTION)) and path().name == paths.INT8


def path() -> paths.Path:
    """What the option comes to on this machine."""
    return paths.layers_in_8_bits(paths.card_of(comfy.model_management.get_torch_device()))
