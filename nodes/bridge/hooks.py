"""ComfyUI's `transformer_options` as the transformer's hooks, so that model patches written for native Wan work.

The dictionaries that patches receive are those of comfy/ldm/wan/model.py (ComfyUI 0.30): keys, shapes and order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...wan_core.hooks import Block, Hooks, PositionTransform
from ...wan_core.stream import Stream
from . import host, residency, texts
from .eight_bits import ATTENTION, LAYERS

torch.compiler.assume_constant_result(host.attention_is_chosen)  # ComfyUI's flags, which no compiler can read


def hooks_of(options: dict[str, Any]) -> Hooks:
    """Returns the hooks of one forward call; `options` is written to, as native models do (block_index...)."""
    call = _Call(options)
    replaced = options.get("patches_replace", {}).get("dit", {})
    return Hooks(
        attention=call.attend if "optimized_attention_override" in options or host.attention_is_chosen() else None,
        self_attention=(call.after_self_attention,) if call.patches("attn1_patch") else (),
        cross_attention=(call.after_cross_attention,) if call.patches("attn2_patch") else (),
        replace_block={
            name[1]: partial(call.replace_block, patch) for name, patch in replaced.items() if name[0] == "double_block"
        },
        after_block=(call.after_block,) if call.patches("double_block") else (),
        positions=_positions(options.get("rope_options")),
        at_block=call.at_block,
        stream_options=options,
        in_eight_bits=options.get(ATTENTION.option, False),
        layers_in_int8=options.get(LAYERS.option, False),
        sparing=options.get(residency.OPTION, False),
        texts=None if torch.compiler.is_compiling() else options.get(texts.OPTION),
        recovery=None if torch.compiler.is_compiling() else residency.RECOVERY,
    )


class _Call:
    """One forward call; a block's patch may hand it other options for the time of that block."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def patches(self, name: str) -> list[Callable[[dict[str, Any]], Any]]:
        return self.options.get("patches", {}).get(name, [])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        return optimized_attention(q, k, v, heads=heads, transformer_options=self.options)

    def after_self_attention(self, x: Tensor, q: Tensor, k: Tensor) -> Tensor:
        for patch in self.patches("attn1_patch"):
            x = patch({"x": x, "q": q, "k": k, "transformer_options": self.options})
        return x

    def after_cross_attention(self, x: Tensor) -> Tensor:
        for patch in self.patches("attn2_patch"):
            x = patch({"x": x, "transformer_options": self.options})
        return x

    def after_block(self, index: int, x: Tensor, stream: Stream) -> Tensor:
        for patch in self.patches("double_block"):
            args = {"img": x, "x": stream.video, "vec": stream.time, "block_index": index, "img_offset": 0}
            x = patch({**args, "transformer_options": self.options})["img"]
        return x

    def replace_block(self, patch: Callable[..., dict[str, Any]], x: Tensor, stream: Stream, block: Block) -> Tensor:
        def original(args: dict[str, Any]) -> dict[str, Tensor]:
            before, self.options = self.options, args["transformer_options"]
            try:
                turns = stream.rotation if args["pe"] is matrices else _turns(args["pe"])
                changed = replace(stream, context=args["txt"], rows=args["vec"], rotation=turns)
                return {"img": block(args["img"], changed)}
            finally:
                self.options = before

        matrices = _matrices(stream.rotation)
        args = {"img": x, "txt": stream.context, "vec": stream.rows, "pe": matrices}
        return patch({**args, "transformer_options": self.options}, {"original_block": original})["img"]

    def at_block(self, index: int, count: int, grid: tuple[int, int, int]) -> None:
        self.options.update(
            block_index=index, total_blocks=count, block_type="double", grid_sizes=torch.Size(grid)
        )  # read by attention overrides and patches


def _matrices(rotation: Tensor) -> Tensor:
    """Rotations as native models keep them: [1, L, 1, d / 2] complex -> [1, L, 1, d / 2, 2, 2]."""
    cos, sin = rotation.real, rotation.imag
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))


def _turns(matrices: Tensor) -> Tensor:
    """The way back."""
    return torch.complex(matrices[..., 0, 0].float(), matrices[..., 1, 0].float())


def _positions(options: dict[str, float] | None) -> PositionTransform | None:
    """rope_options of ComfyUI's ScaleROPE node; y are rows, x columns."""
    if options is None:
        return None
    scale, shift = (
        tuple(float(options.get(f"{what}_{axis}", default)) for axis in "tyx")
        for what, default in (("scale", 1.0), ("shift", 0.0))
    )
    return PositionTransform(scale=(scale[0], scale[1], scale[2]), shift=(shift[0], shift[1], shift[2]))
