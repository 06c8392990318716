"""What a run computes in 8 bits because its user wants it, whatever its files hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InEightBits:
    """Parts of a forward."""

    attention: bool = False  # among the tokens
    layers: bool = False  # the products of the blocks' linear layers, in int8

    def __or__(self, other: InEightBits) -> InEightBits:
        return InEightBits(self.attention or other.attention, self.layers or other.layers)

    def __str__(self) -> str:
        """As it stands behind the kind of a model: ", attention in 8 bits"."""
        parts = [name for name in ("attention", "layers") if getattr(self, name)]
        return f", {' and '.join(parts)} in 8 bits" if parts else ""


NOTHING = InEightBits()
NODES = {"Wan 8-bit Attention": InEightBits(attention=True), "Wan 8-bit Layers": InEightBits(layers=True)}
