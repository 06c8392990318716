"""Options of a MODEL that its transformer reads at every call."""

from __future__ import annotations

from typing import Any

from ...wan_core.errors import InputError
from .facts import model_facts


def with_option(model: Any, option: str, name: str) -> Any:
    """A clone of MODEL, from the input `name`, with this key of `transformer_options` set.

    Raises:
        WrongModelError: not Wan.
        InputError: ComfyUI's own model, which does not read the option.
    """
    facts = model_facts(model, name)
    if facts.is_native:
        raise InputError(
            "ComfyUI's own model does not read this option",
            where=facts.path or name,
            remedy="Load it with Wan Load Models or Wan Load Diffusion Model",
        )
    clone = model.clone()
    clone.model_options["transformer_options"][option] = True
    return clone
