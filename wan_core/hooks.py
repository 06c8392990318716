"""Where a host may look into the forward pass or change it. Empty by default: plain PyTorch needs none of it.

The slots are those that ComfyUI's model patches reach (`attn1_patch`, `attn2_patch`, `patches_replace["dit"]`,
`double_block`, rope options, attention override); the bridge translates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from .stream import Stream
from .texts import TextMemory

Attention = Callable[[Tensor, Tensor, Tensor, int], Tensor]  # (q, k, v, heads) -> out, all [B, L, heads * d]
Block = Callable[[Tensor, Stream], Tensor]  # (tokens, stream) -> tokens
ReplaceBlock = Callable[[Tensor, Stream, Block], Tensor]  # (tokens, stream, the block itself) -> tokens
AfterBlock = Callable[[int, Tensor, Stream], Tensor]  # (index, tokens, stream) -> tokens
Answer = TypeVar("Answer")
AtBlock = Callable[[int, int, tuple[int, int, int]], None]  # (index, number of blocks, grid of video tokens)


@dataclass(frozen=True)
class PositionTransform:
    """position -> position * scale + shift, along time, rows and columns."""

    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Recovery:
    """How a host helps what failed, so that it is tried a second time."""

    applies: Callable[[Exception], bool]  # whether it can help with this error
    run: Callable[[], None]  # called when the failed try's tensors are gone

    def attempt(self, call: Callable[[], Answer]) -> Answer:
        """What the call answers, the first time or, where the host could help, the second time."""
        try:
            return call()
        except Exception as error:
            if not self.applies(error):
                raise
        self.run()
        return call()


@dataclass(frozen=True)
class Hooks:
    """The hooks of one forward call."""

    attention: Attention | None = None  # in place of wan_core's choice
    in_eight_bits: bool = False  # self-attention, where the card has a kernel for it
    layers_in_int8: bool = False  # those of the blocks, where the host has kernels for them
    self_attention: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = ()  # (x, q, k) -> x, before `o`
    cross_attention: tuple[Callable[[Tensor], Tensor], ...] = ()  # tokens -> tokens, after the residual
    replace_block: Mapping[int, ReplaceBlock] = field(default_factory=dict)
    after_block: tuple[AfterBlock, ...] = ()
    positions: PositionTransform | None = None  # of the video's tokens
    at_block: AtBlock | None = None  # before each block
    stream_options: Any = None  # handed to ops.stream as it is
    texts: TextMemory | None = None  # of the run that this call belongs to
    recovery: Recovery | None = None  # for blocks that lack memory
    sparing: bool = False  # of memory: where weights come and go, activations take their room
