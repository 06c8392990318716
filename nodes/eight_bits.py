"""What a MODEL computes in 8 bits: shorter steps, a slightly different clip."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core.weights.names import HIGH, LOW
from .bridge.eight_bits import ATTENTION, LAYERS, Wish
from .bridge.show import show_on_node


def _schema(node_id: str, display_name: str, description: str, search_aliases: list[str]) -> io.Schema:
    return io.Schema(
        node_id=node_id,
        display_name=display_name,
        category="WanCore/sampling",
        description=description,
        search_aliases=search_aliases,
        inputs=[
            io.Model.Input("high", tooltip="The high-noise expert, or the only model."),
            io.Model.Input("low", optional=True, tooltip="The low-noise expert; open for a single model."),
        ],
        outputs=[
            io.Model.Output("high", tooltip="The high-noise expert; the one given stays as it is."),
            io.Model.Output("low", tooltip="The low-noise expert; empty if none came in."),
        ],
        hidden=[io.Hidden.unique_id],
    )


def _execute(node: type[io.ComfyNode], wish: Wish, high: Any, low: Any | None) -> io.NodeOutput:
    path = wish.path()
    show_on_node(node.hidden.unique_id, f"{path.name}: {path.why}")
    changed = wish.put_on(high, HIGH)
    return io.NodeOutput(changed, None if low is None else wish.put_on(low, LOW))


class WanCoreAttention8(io.ComfyNode):
    """Rounds the inputs of the self-attention to 8 bits."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "WanCoreAttention8",
            "Wan 8-bit Attention",
            "Computes the self-attention in 8 bits, which makes steps shorter and changes the clip "
            "slightly, on cards from RTX 30 on; on others it stays exact. The node says which it is.",
            ["sage attention", "fp8 attention", "int8 attention", "faster"],
        )

    @classmethod
    def execute(cls, high: Any, low: Any | None = None) -> io.NodeOutput:
        return _execute(cls, ATTENTION, high, low)


class WanCoreLayers8(io.ComfyNode):
    """Makes the linear layers of the blocks multiply in int8."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return _schema(
            "WanCoreLayers8",
            "Wan 8-bit Layers",
            "Multiplies the linear layers of the blocks in int8, for files of any precision, which makes steps shorter "
            "and changes the clip slightly, on cards from RTX 30 on; on others it stays exact. The node says which "
            "it is.",
            ["int8", "w8a8", "quantize", "hadamard", "faster"],
        )

    @classmethod
    def execute(cls, high: Any, low: Any | None = None) -> io.NodeOutput:
        return _execute(cls, LAYERS, high, low)


NODES = [WanCoreAttention8, WanCoreLayers8]
