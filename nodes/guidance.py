"""Guidance: what steers a MODEL beside the guidance scale."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core.guidance import NormalizedGuidance
from .bridge.nag import with_nag


class WanCoreNAG(io.ComfyNode):
    """Makes the negative prompt count at guidance scale 1."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreNAG",
            display_name="Wan NAG",
            category="WanCore/sampling",
            description="Normalised attention guidance: the negative prompt steers inside the cross-attention, so that "
            "it counts at guidance scale 1 too, as with the 4-step LoRAs. Costs one more cross-attention per block.",
            search_aliases=["nag", "negative prompt", "normalized attention guidance", "guidance"],
            inputs=[
                io.Model.Input("model", tooltip="A Wan model; give each expert a node of its own."),
                io.Conditioning.Input("negative", tooltip="What to avoid: one prompt."),
                io.Float.Input(
                    "nag_scale",
                    default=11.0,
                    min=1.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How far to move away from the negative prompt, 4 to 15. 1 is off.",
                ),
                io.Float.Input(
                    "nag_tau",
                    default=2.5,
                    min=1.0,
                    max=10.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Limit: the result grows at most this many times, 2 to 4.",
                ),
                io.Float.Input(
                    "nag_alpha",
                    default=0.25,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Share of the moved result, 0.1 to 0.5. 0 is off.",
                ),
            ],
            outputs=[io.Model.Output("model", tooltip="The model with the guidance; the one given stays as it is.")],
        )

    @classmethod
    def execute(cls, model: Any, negative: Any, nag_scale: float, nag_tau: float, nag_alpha: float) -> io.NodeOutput:
        return io.NodeOutput(with_nag(model, negative, NormalizedGuidance(nag_scale, nag_tau, nag_alpha)))


NODES = [WanCoreNAG]
