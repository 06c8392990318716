"""What a MODEL computes in 8 bits because its user wants it: options that nodes set and every forward reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management

from ...wan_core import paths
from ...wan_core.errors import InputError
from ...wan_core.planner.rounding import InEightBits
from . import host
from .facts import model_facts


@dataclass(frozen=True)
class Wish:
    """One such option."""

    option: str  # in transformer_options
    rule: Callable[[paths.Card], paths.Path]  # what it comes to on a card

    def put_on(self, model: Any, name: str = "model") -> Any:
        """A clone of MODEL, from the input `name`, that has the option.

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
        clone.model_options["transformer_options"][self.option] = True
        return clone

    def path(self) -> paths.Path:
        """What the option comes to on this machine."""
        return self.rule(paths.card_of(comfy.model_management.get_torch_device()))

    def is_on(self, options: dict[str, Any]) -> bool:
        """Whether transformer options have the option, on a machine that has kernels for it."""
        return bool(options.get(self.option)) and self.path().name == paths.INT8


def _attention(card: paths.Card) -> paths.Path:
    if host.attention_is_chosen():
        return paths.Path(paths.EXACT, "ComfyUI was started with an attention of its own choice, which goes first")
    return paths.attention_in_8_bits(card)


ATTENTION = Wish("wan_core_attention_8", _attention)  # the self-attention
LAYERS = Wish("wan_core_layers_8", paths.layers_in_8_bits)  # the blocks' linear layers: int8.py


def possible() -> InEightBits:
    """What this machine has kernels for."""
    return InEightBits(*(wish.path().name == paths.INT8 for wish in (ATTENTION, LAYERS)))


def in_eight_bits(options: dict[str, Any]) -> InEightBits:
    """What transformer options make of a forward on this machine."""
    return InEightBits(attention=ATTENTION.is_on(options), layers=LAYERS.is_on(options))
