"""Presets of the sampler, and what they come to for a model: everything that a run is sampled with, as data.

0 and "auto" stand for "from the preset"; what a preset leaves open comes from the task's official defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InputError
from ..tasks import Task

AUTO, OFFICIAL = "auto", "official"
OFFICIAL_SOLVERS = ("official_unipc", "official_dpmpp")
DISTILLED_GUIDANCE = 1.0  # scale of a model that is distilled to a few steps: none


@dataclass(frozen=True)
class Settings:
    """How a run is sampled. As wishes, 0 and "auto" are open; as the result of `resolve`, nothing is."""

    preset: str = AUTO
    steps: int = 0
    guidance_high: float = 0.0
    guidance_low: float = 0.0
    shift: float = 0.0
    boundary: float = 0.0  # below 1 a sigma, from 1 on the number of steps on the high expert
    solver: str = AUTO
    schedule: str = AUTO
    repaired_steps: int = 0  # first steps without the step-distillation LoRA, at guidance_high; the next at 1


@dataclass(frozen=True)
class Preset:
    """One row: its settings, and whether they only suit models with a step-distillation LoRA."""

    about: str
    settings: Settings
    distilled: bool = False


PRESETS = {
    OFFICIAL: Preset(
        "as the official code samples: its steps, guidance, shift, UniPC solver and integer timesteps",
        Settings(solver="official_unipc", schedule=OFFICIAL),
    ),
    # ModelTC/Wan2.2-Lightning and lightx2v/Wan2.2-Lightning: 4 steps, no guidance, shift 5, Euler
    # TI2V-5B: quanhaol/Wan2.2-TI2V-5B-Turbo the same (1000, 750, 500, 250 before a shift of 5); FastVideo's FastWan2.2
    # has no guidance and a shift of 5 too, but makes 3 steps (1000, 757, 522) with new noise after each
    "fast": Preset(
        "4 steps without guidance, for models with a step-distillation LoRA (Lightning, lightx2v, FastWan)",
        Settings(steps=4, guidance_high=1.0, guidance_low=1.0, shift=5.0, solver="euler", schedule="simple"),
        distilled=True,
    ),
    # deepbeepmeep/Wan2GP docs/LORAS.md: guidance 3.5 without the LoRA at first, then 1 with it, against slow motion
    "motion": Preset(
        "6 steps, the first 2 without the step-distillation LoRA at the official guidance: against slow motion",
        Settings(steps=6, guidance_low=1.0, shift=5.0, solver="euler", schedule="simple", repaired_steps=2),
        distilled=True,
    ),
    "balanced": Preset(
        "as official, in 20 steps",
        Settings(steps=20, solver="official_unipc", schedule=OFFICIAL),
    ),
    "draft": Preset(
        "as official, in 10 steps: to choose a seed or a prompt",
        Settings(steps=10, solver="official_unipc", schedule=OFFICIAL),
    ),
}


def resolve(wishes: Settings, task: Task, *, distilled: bool, experts: int = 1) -> Settings:
    """What the wishes come to for a task: wish, else preset, else official default. Preset auto: fast if distilled.

    Raises:
        InputError: fast without a step-distillation LoRA; two experts for a task that has no boundary.
    """
    name = wishes.preset if wishes.preset != AUTO else ("fast" if distilled else OFFICIAL)
    preset = PRESETS[name]
    if preset.distilled and not distilled:
        raise InputError(
            "This preset needs models that are distilled to a few steps",
            where="preset",
            found=f"{name}, and a model without a step-distillation LoRA",
            remedy="Put LoRAs with lightx2v, Lightning or 4steps in their names on with Wan LoRA Pair, or choose auto",
        )
    default = Settings(
        steps=task.steps,
        guidance_high=task.guidance_high,
        guidance_low=task.guidance_low,
        shift=task.shift,
        boundary=task.boundary or 0.0,
    )
    solver = preset.settings.solver if wishes.solver == AUTO else wishes.solver
    schedule = wishes.schedule
    if schedule == AUTO:
        schedule = OFFICIAL if solver in OFFICIAL_SOLVERS else preset.settings.schedule
    chosen = {field: _first(field, wishes, preset.settings, default) for field in _NUMBERS}
    if experts == 2 and not chosen["boundary"]:
        raise InputError(
            "This model has one expert only",
            where="low",
            found=f"a second model for {task.title}",
            remedy="Disconnect it, or set boundary to the sigma at which it takes over",
        )
    repaired = preset.settings.repaired_steps
    return replace(wishes, preset=name, solver=solver, schedule=schedule, repaired_steps=repaired, **chosen)


def summary(settings: Settings, high: int, low: int | None) -> str:
    """What a run came to: "4 steps: 2 high + 2 low, cfg 1, shift 5"; low is None where there is one model."""
    steps = high + (low or 0)
    share = "" if low is None else f": {high} high + {low} low"
    guidance = _guidance_text(settings, pair=low is not None)
    return f"{steps} step{'s' * (steps != 1)}{share}, cfg {guidance}, shift {settings.shift:g}"


def _guidance_text(settings: Settings, *, pair: bool) -> str:
    high, low, first = settings.guidance_high, settings.guidance_low, ""
    if settings.repaired_steps:
        first = f"{high:g} in the first {settings.repaired_steps} without the distillation LoRA, then "
        high = DISTILLED_GUIDANCE
    return first + (f"{high:g} / {low:g}" if pair and low != high else f"{high:g}")


_NUMBERS = ("steps", "guidance_high", "guidance_low", "shift", "boundary")


def _first(field: str, *rows: Settings) -> float:
    return next((value for row in rows if (value := getattr(row, field))), 0)
