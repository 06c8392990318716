"""Sampling: the dual-expert run as a sampler and as a guider."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core.sampling.presets import AUTO, OFFICIAL, OFFICIAL_SOLVERS, PRESETS, Settings
from .bridge import clip_run, sampling
from .bridge.pair import Pair, pair_for
from .bridge.schedule import native_samplers, native_schedulers
from .bridge.switching import SWITCHING

CATEGORY = "WanCore/sampling"
LAST_STEP = 10000
FROM_PRESET = "0 takes it from the preset."


def _models_and_prompts() -> list[io.Input]:
    return [
        io.Model.Input("high", tooltip="The high-noise expert, or the only model where there is one."),
        io.Model.Input(
            "low",
            optional=True,
            tooltip="The low-noise expert: takes over at the boundary, and is not loaded before. Leave it open for "
            "the 5B and other single models.",
        ),
        io.Conditioning.Input("positive", tooltip="What to show."),
        io.Conditioning.Input("negative", tooltip="What to avoid; not used where the guidance scale is 1."),
    ]


def _guidance_inputs(default: str = FROM_PRESET) -> list[io.Input]:
    def scale(name: str, expert: str) -> io.Input:
        return io.Float.Input(
            name,
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip=f"Guidance scale of the {expert}. 3 to 6 is usual, 1 takes half the time and suits distilled "
            f"models. {default}",
        )

    return [scale("cfg_high", "high expert, or of the only model"), scale("cfg_low", "low expert")]


def _shift_input(default: str = "the preset's") -> io.Input:
    return io.Float.Input(
        "shift",
        default=0.0,
        min=0.0,
        max=100.0,
        step=0.1,
        advanced=True,
        tooltip="Shift of the schedule, for both experts: higher spends more steps on layout and motion. 3 to 12 is "
        f"usual. 0 takes what a node before has put on the models, else {default}.",
    )


def _boundary_input(steps: str = "From 1 on: this many steps on high. ") -> io.Input:
    return io.Float.Input(
        "boundary",
        default=0.0,
        min=0.0,
        max=1000.0,
        step=0.005,
        advanced=True,
        tooltip="Where low takes over. Below 1: the sigma, 0.875 for text to video, 0.9 for image to video. "
        f"{steps}0 takes the model's.",
    )


def _resume_input() -> io.Input:
    return io.Boolean.Input(
        "resume",
        default=False,
        optional=True,
        advanced=True,
        tooltip="Keeps the models' answers on disk, at most 4 GiB: a run that was stopped or crashed goes on "
        "where it was when it is run again with its seed, and after a change of the low expert only its steps are run "
        "again.",
    )


def _switching_input() -> io.Input:
    return io.Combo.Input(
        "switching",
        options=list(SWITCHING),
        default=SWITCHING[0],
        optional=True,
        advanced=True,
        tooltip="one run: both experts share the solver's history, the noise and the mask. two runs: as a pair of "
        "native samplers, for model patches that do not fit around one run. auto takes one run wherever it can, and "
        "the node shows why where it cannot.",
    )


class WanCoreKSampler(io.ComfyNode):
    """Samples both experts of an A14B pair, or one model, in one run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreKSampler",
            display_name="Wan KSampler (Dual Expert)",
            category=CATEGORY,
            description="Samples a Wan 2.2 pair in one continuous run that changes from the high to the low expert at "
            "the right sigma. With one model it works the same. The node shows what its settings came to.",
            search_aliases=["ksampler", "sampler", "dual expert", "high noise low noise", "moe sampler"],
            inputs=[
                *_models_and_prompts(),
                io.Latent.Input("latent", tooltip="An empty latent of the size to make, or one to change."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Number of the noise: the same seed and settings give the same clip.",
                ),
                io.Combo.Input(
                    "preset",
                    options=[AUTO, *PRESETS],
                    default=AUTO,
                    tooltip="auto: fast where all models carry a 4-step LoRA of Wan LoRA Pair, told by its name "
                    "(lightx2v, Lightning, Turbo, 4steps), else official. "
                    + "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
                    + ". A setting below that is not 0 or auto wins.",
                ),
                *cls._advanced_inputs(),
            ],
            outputs=[
                io.Latent.Output("samples", display_name="LATENT", tooltip="The sampled latent, for Wan VAE Decode."),
                io.Latent.Output(
                    "denoised", display_name="denoised", tooltip="The clean estimate of the last step that was run."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def _advanced_inputs(cls) -> list[io.Input]:
        steps = {"min": 0, "max": LAST_STEP, "advanced": True}
        return [
            io.Int.Input("steps", default=0, **steps, tooltip=f"Steps over both experts, 4 to 50. {FROM_PRESET}"),
            *_guidance_inputs(),
            _shift_input(),
            _boundary_input(),
            io.Combo.Input(
                "sampler_name",
                options=[AUTO, *OFFICIAL_SOLVERS, *native_samplers()],
                default=AUTO,
                advanced=True,
                tooltip="The solver. auto takes the preset's; official_unipc and official_dpmpp are those of the "
                "official code; the others are ComfyUI's.",
            ),
            io.Combo.Input(
                "scheduler",
                options=[AUTO, OFFICIAL, *native_schedulers()],
                default=AUTO,
                advanced=True,
                tooltip="How the steps are spread. official: the official code's sigmas, with its integer timesteps "
                "for all solvers but euler; the others are ComfyUI's, with the shift above.",
            ),
            io.Float.Input(
                "denoise",
                default=1.0,
                min=0.01,
                max=1.0,
                step=0.01,
                advanced=True,
                tooltip="Share of the noise that is put on the latent, 0.01 to 1. Below 1 keeps more of it.",
            ),
            io.Int.Input("start_at_step", default=0, **steps, tooltip="First step to run; 0 is the beginning."),
            io.Int.Input(
                "end_at_step",
                default=LAST_STEP,
                **steps,
                tooltip="Step to stop before. Stopped early, LATENT keeps its noise and denoised is the estimate.",
            ),
            io.Boolean.Input(
                "add_noise",
                default=True,
                advanced=True,
                tooltip="Off for a latent that still carries the noise of an earlier run.",
            ),
            _resume_input(),
            _switching_input(),
        ]

    @classmethod
    def execute(
        cls,
        high: Any,
        positive: Any,
        negative: Any,
        latent: dict[str, Any],
        seed: int,
        preset: str,
        steps: int,
        cfg_high: float,
        cfg_low: float,
        shift: float,
        boundary: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        start_at_step: int,
        end_at_step: int,
        add_noise: bool,
        low: Any | None = None,
        resume: bool = False,
        switching: str = SWITCHING[0],
    ) -> io.NodeOutput:
        pair = pair_for(high, low, latent)
        wishes = Settings(preset, steps, cfg_high, cfg_low, shift, boundary, sampler_name, scheduler)
        run = sampling.Run(seed, denoise, start_at_step, end_at_step, add_noise)
        plan = sampling.plan(pair, wishes, run, switching)
        prompts, node_id, graph = (positive, negative), cls.hidden.unique_id, cls.hidden.prompt
        return io.NodeOutput(*clip_run.sample(plan, *prompts, latent, run, node_id, graph=graph, resume=resume))


class WanCoreDualExpertGuider(io.ComfyNode):
    """The dual-expert run as a GUIDER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreDualExpertGuider",
            display_name="Wan Dual Expert Guider",
            category=CATEGORY,
            description="Both experts as one GUIDER for SamplerCustomAdvanced, with any sampler and sigmas.",
            search_aliases=["guider", "cfg guider", "dual expert", "high noise low noise"],
            inputs=[
                *_models_and_prompts(),
                *_guidance_inputs("0 is 1 for models with a step-distillation LoRA, else the official scale."),
                _shift_input("5 for models with a step-distillation LoRA, the official one for others"),
                _boundary_input(steps="A guider knows no steps: 1 and more are refused. "),
                io.Combo.Input(
                    "timesteps",
                    options=["fractional", "integer"],
                    default="fractional",
                    advanced=True,
                    tooltip="What the transformer is told of the sigma: 1000 times it, or that cut to an integer as "
                    "in the official code. Use integer with Wan Official Sigmas.",
                ),
                _resume_input(),
                _switching_input(),
            ],
            outputs=[io.Guider.Output("guider", tooltip="For SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt],
        )

    @classmethod
    def execute(
        cls,
        high: Any,
        positive: Any,
        negative: Any,
        cfg_high: float,
        cfg_low: float,
        shift: float,
        boundary: float,
        timesteps: str,
        low: Any | None = None,
        resume: bool = False,
        switching: str = SWITCHING[0],
    ) -> io.NodeOutput:
        wishes = Settings(guidance_high=cfg_high, guidance_low=cfg_low, shift=shift, boundary=boundary)
        integer = timesteps == "integer"
        plan = sampling.guider_plan(Pair.of(high, low), wishes, integer=integer, switching=switching)
        graph = cls.hidden.prompt if resume else None
        shared = {"integer": integer, "graph": graph}
        return io.NodeOutput(sampling.guider(plan, positive, negative, cls.hidden.unique_id, **shared))


NODES = [WanCoreKSampler, WanCoreDualExpertGuider]
