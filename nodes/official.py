"""The official code's schedule and solvers, for graphs of one's own."""

from __future__ import annotations

from comfy_api.latest import io

from ..wan_core.sampling.presets import OFFICIAL_SOLVERS
from ..wan_core.sampling.schedules import SCHEDULES, official_schedule
from .bridge.schedule import sampler_object
from .sampling import CATEGORY, LAST_STEP


class WanCoreOfficialSigmas(io.ComfyNode):
    """The official code's schedule as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreOfficialSigmas",
            display_name="Wan Official Sigmas",
            category=CATEGORY,
            description="The sigmas that the official code samples with, shift included.",
            search_aliases=["sigmas", "scheduler", "schedule"],
            inputs=[
                io.Combo.Input(
                    "solver",
                    options=list(SCHEDULES),
                    default=next(iter(SCHEDULES)),
                    tooltip="Whose schedule: UniPC is the official default; euler is that of the 4-step LoRAs.",
                ),
                io.Int.Input(
                    "steps",
                    default=40,
                    min=1,
                    max=LAST_STEP,
                    tooltip="Number of steps: 40 for T2V, I2V and S2V, 50 for the 5B, Fun and VACE, 20 for Animate, 4 "
                    "with the 4-step LoRAs.",
                ),
                io.Float.Input(
                    "shift",
                    default=5.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="12 for T2V and VACE, 3 for S2V, 5 for the other 2.2 models and the 4-step LoRAs.",
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Below 1 gives the end of a longer schedule, to change a latent that is there.",
                ),
            ],
            outputs=[io.Sigmas.Output("sigmas", tooltip="steps + 1 sigmas, falling to 0.")],
        )

    @classmethod
    def execute(cls, solver: str, steps: int, shift: float, denoise: float) -> io.NodeOutput:
        return io.NodeOutput(official_schedule(solver, steps, shift, denoise).sigmas)


class WanCoreOfficialSampler(io.ComfyNode):
    """The official solvers as SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreOfficialSampler",
            display_name="Wan Official Sampler",
            category=CATEGORY,
            description="A solver of the official code, for SamplerCustomAdvanced.",
            search_aliases=["unipc", "dpm++", "sampler select"],
            inputs=[
                io.Combo.Input(
                    "solver",
                    options=list(OFFICIAL_SOLVERS),
                    default=OFFICIAL_SOLVERS[0],
                    tooltip="UniPC (order 2, with corrector) is the official default; DPM++ is 2M midpoint.",
                )
            ],
            outputs=[io.Sampler.Output("sampler", tooltip="For SamplerCustomAdvanced and SamplerCustom.")],
        )

    @classmethod
    def execute(cls, solver: str) -> io.NodeOutput:
        return io.NodeOutput(sampler_object(solver))


NODES = [WanCoreOfficialSigmas, WanCoreOfficialSampler]
