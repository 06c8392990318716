"""Options of a MODEL for sampling: guidance beside the guidance scale, and a cache of steps."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core.guidance import NormalizedGuidance
from ..wan_core.weights.names import HIGH, LOW
from .bridge.nag import with_nag
from .bridge.pair import Pair
from .bridge.step_cache import CacheReport, with_step_cache


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


class WanCoreStepCache(io.ComfyNode):
    """Skips steps whose result would hardly change."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        def threshold(name: str, default: float, about: str) -> io.Input:
            return io.Float.Input(
                name,
                default=default,
                min=0.0,
                max=1.0,
                step=0.01,
                tooltip=f"Largest estimated error of a skipped step {about}, as a share of what the model predicts: "
                "0.03 is careful, 0.2 is fast and visible. 0 is off.",
            )

        return io.Schema(
            node_id="WanCoreStepCache",
            display_name="Wan Step Cache",
            category="WanCore/sampling",
            description="Skips steps that would hardly change anything, for runs of 15 steps and more. Each expert has "
            "its own limit and starts anew at the switch; the first and last two steps are always made. The node shows "
            "how many steps were skipped and at what error.",
            search_aliases=["easycache", "teacache", "magcache", "skip steps", "faster"],
            inputs=[
                io.Model.Input("high", tooltip="The high-noise expert, or the only model."),
                io.Model.Input("low", optional=True, tooltip="The low-noise expert; open for a single model."),
                threshold("threshold_high", 0.05, "of the high expert, which makes layout and motion"),
                threshold("threshold_low", 0.1, "of the low expert, which makes the detail"),
            ],
            outputs=[
                io.Model.Output("high", tooltip="The high-noise expert with the cache."),
                io.Model.Output("low", tooltip="The low-noise expert with the cache; empty if none came in."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, high: Any, threshold_high: float, threshold_low: float, low: Any | None = None) -> io.NodeOutput:
        Pair.of(high, low)
        report = CacheReport(cls.hidden.unique_id)
        cached = with_step_cache(high, threshold_high, "model" if low is None else HIGH, report)
        return io.NodeOutput(cached, None if low is None else with_step_cache(low, threshold_low, LOW, report))


NODES = [WanCoreNAG, WanCoreStepCache]
