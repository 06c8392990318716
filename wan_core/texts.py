"""Keys and values of the texts, kept from one forward call of a run to the next, which has the same texts.

A text is known by the bits of its embedding and not by its name: whatever changes it on its way into the blocks gives
other bits. Whoever owns the run says with `start` what else keys and values depend on, and drops the memory at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]  # keys and values, [B, n, D] each
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Text:
    embedded: Tensor
    pairs: dict[nn.Module, Pair] = field(default_factory=dict)  # by the layer that makes the keys


class TextMemory:
    """What one run has computed of its texts. A text for which there is no room is computed each time."""

    def __init__(self, layers: int, room: int) -> None:
        """`layers` cross-attentions of the model, `room` in bytes for the keys and values of all texts."""
        self.layers, self.room = layers, room
        self._texts: list[_Text] = []
        self._weights: Hashable = None

    def start(self, weights: Hashable) -> None:
        """Begins a call; forgets everything where `weights`, what the layers compute with, are not those before."""
        if weights != self._weights:
            self._texts, self._weights = [], weights

    def known(self, text: Tensor) -> Tensor:
        """The tensor of an earlier call with the bits of text [B, n, D]; if there is none `text`, kept from now on."""
        for kept in self._texts:
            if _same_bits(kept.embedded, text):
                return kept.embedded
        if (len(self._texts) + 1) * 2 * self.layers * text.nbytes <= self.room:
            self._texts.append(_Text(text))
        return text

    def pair(self, text: Tensor, layer: nn.Module, compute: Callable[[], Pair]) -> Pair:
        """What `compute` returns, or returned before, for a text that `known` gave and the layer of its keys."""
        for kept in self._texts:
            if kept.embedded is text:
                if layer not in kept.pairs:
                    kept.pairs[layer] = compute()
                return kept.pairs[layer]
        return compute()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    bits = BITS[one.element_size()]
    return torch.equal(one.view(bits), other.view(bits))
