"""Additions to the transformer that act between its blocks: VACE, Animate's face, S2V's audio, and the like.

An adapter is weights plus the inputs of one clip, bound to each other before sampling. Each forward call gets a run of
its own, so that two prompts or the two branches of guidance cannot mix: nothing is written on modules.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..hooks import Hooks
from ..stream import Stream


class AdapterRun:
    """The state of one adapter in one forward call."""

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        """Called after block `index`; returns the tokens that go on, [B, L, D]."""
        return tokens


class Adapter(Protocol):
    """Module, inputs and strength; what `Conditioning.adapters` holds."""

    def begin(self, tokens: Tensor, stream: Stream, hooks: Hooks) -> AdapterRun:
        """Starts the run of one forward call, with the tokens as they enter the first block, [B, L, D].

        `hooks` are those of the call: an attention of the host's choice holds for the adapter's own too.
        """
        ...
