"""One call from a pair of MODELs to a sampled LATENT: checks, schedule, guider, run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from ...wan_core.errors import InputError
from ...wan_core.sampling.experts import boundary_after, steps_per_expert
from ...wan_core.sampling.presets import DISTILLED_GUIDANCE, OFFICIAL, Settings, resolve, summary
from ...wan_core.sampling.schedules import official_schedule
from .fitting import check_conditions, check_picture
from .guider import DualExpertGuider
from .latents import EMPTY_SIZES, FRAME_RATE
from .meter import Meter
from .pair import Pair
from .planning import RunPlan
from .preview import RunReport
from .progress import ONLY, Part
from .repair import without_distillation
from .resume import Logged, logged
from .schedule import native_sigmas, patched_shift, sampler_object, with_official_timesteps, with_shift
from .show import send_text, show_on_node
from .switching import AUTO, SegmentedGuider, why_segmented


@dataclass(frozen=True)
class Run:
    """Which part of the schedule is run, and from what."""

    seed: int
    denoise: float = 1.0
    start_at_step: int = 0
    end_at_step: int = 10000
    add_noise: bool = True


@dataclass(frozen=True)
class Plan:
    """A run ready to go: patched MODELs, sigmas [steps + 1], and what the settings came to."""

    pair: Pair
    settings: Settings
    sigmas: Tensor
    boundary: float  # a sigma
    part: Part = ONLY  # which of several runs this is
    heading: str = ""  # the same for the user
    segmented: str = ""  # why the experts sample in two runs; empty where they do in one

    @property
    def text(self) -> str:
        """What the run comes to, with what looks wrong about it, line by line."""
        high, low = steps_per_expert(self.sigmas, self.boundary)
        share = (high + low, None) if self.pair.low is None else (high, low)
        heading = [self.heading] if self.heading else []
        return "\n".join([*heading, summary(self.settings, *share), *self.remarks()])

    def remarks(self) -> list[str]:
        """What is unusual about the run, line by line."""
        runs = [f"in two runs: {self.segmented}"] if self.segmented else []
        return [*runs, *self.pair.doubts()]

    def with_models(self, high: Any, low: Any | None) -> Plan:
        """The same run with other patchers of the same models."""
        return replace(self, pair=replace(self.pair, high=high, low=low))

    def forwards(self) -> tuple[int, int]:
        """Forwards of each expert, with one evaluation to a step."""
        high, low = steps_per_expert(self.sigmas, self.boundary)
        if self.pair.low is None:
            high, low = high + low, 0
        guided = [
            1 if scale == DISTILLED_GUIDANCE else 2
            for scale in (self.settings.guidance_high, self.settings.guidance_low)
        ]
        return high * guided[0], low * guided[1]

    def timed(self, meter: Meter) -> Plan:
        """The same run with its forwards timed."""
        high, low = self.pair.high, self.pair.low
        return self.with_models(meter.on(high, "high"), meter.on(low, "low") if low is not None else None)

    def guider(self, positive: Any, negative: Any) -> DualExpertGuider:
        kind = SegmentedGuider if self.segmented else DualExpertGuider
        guider = kind(self.pair.high, self.pair.low, self.boundary)
        guider.set_conds(positive, negative)
        settings = self.settings
        if settings.repaired_steps:
            guider.set_cfg(DISTILLED_GUIDANCE, settings.guidance_low)
            guider.set_first_cfg(settings.guidance_high, float(self.sigmas[settings.repaired_steps]))
        else:
            guider.set_cfg(settings.guidance_high, settings.guidance_low)
        return guider


def settle(pair: Pair, wishes: Settings) -> Settings:
    """What the wishes come to. A shift that a node before put on the models counts as a wish.

    Raises:
        InputError: the two carry different shifts, and none is wished for; see `resolve`.
    """
    if not wishes.shift:
        carried = [patched_shift(model) for model in (pair.high, pair.low) if model is not None]
        shifts = {shift for shift in carried if shift is not None}
        if len(shifts) > 1:
            raise InputError(
                "The two experts carry different shifts",
                where="shift",
                found=" and ".join(f"{shift:g}" for shift in sorted(shifts)),
                remedy="Set shift here, or give both the same one",
            )
        wishes = replace(wishes, shift=next(iter(shifts), 0.0))
    return resolve(wishes, pair.facts.task, distilled=pair.distilled, experts=1 if pair.low is None else 2)


def plan(pair: Pair, wishes: Settings, run: Run, switching: str = AUTO) -> Plan:
    """Settles the schedule and patches it onto clones of the models; nothing is loaded.

    Raises:
        InputError: see `settle`; a start after the end.
    """
    settings = settle(pair, wishes)
    models = [model for model in (pair.high, pair.low) if model is not None]
    if settings.schedule == OFFICIAL:
        schedule = official_schedule(settings.solver, settings.steps, settings.shift, run.denoise)
        sigmas = schedule.sigmas
        if schedule.timesteps.is_floating_point():
            models = [with_shift(model, settings.shift) for model in models]
        else:
            models = [with_official_timesteps(model, settings.shift, schedule) for model in models]
    else:
        models = [with_shift(model, settings.shift) for model in models]
        sigmas = native_sigmas(models[0], settings.schedule, settings.solver, settings.steps, run.denoise)
    boundary = settings.boundary if settings.boundary < 1 else boundary_after(sigmas, round(settings.boundary))
    high, low = (*models, None)[:2]
    sigmas = _part(sigmas, run)
    if settings.repaired_steps:
        left = max(0, min(settings.repaired_steps - run.start_at_step, steps_per_expert(sigmas, boundary)[0]))
        guidance = settings.guidance_high if left else DISTILLED_GUIDANCE
        settings = replace(settings, repaired_steps=left, guidance_high=guidance)
        high = without_distillation(high, left)
    segmented = why_segmented(high, low, switching) if all(steps_per_expert(sigmas, boundary)) else ""
    return Plan(replace(pair, high=high, low=low), settings, sigmas, boundary, segmented=segmented)


def guider_plan(pair: Pair, wishes: Settings, *, integer: bool, switching: str = AUTO) -> Plan:
    """A plan for sigmas of one's own. A boundary in steps needs the schedule.

    Raises:
        InputError: a boundary in steps; see `settle`.
    """
    settings = settle(pair, wishes)
    if settings.boundary >= 1:
        raise InputError(
            "A guider does not know the steps",
            where="boundary",
            found=f"{settings.boundary:g}",
            expected="a sigma below 1",
            remedy="Give the sigma, or use Wan KSampler",
        )
    patch = with_official_timesteps if integer else with_shift
    models = [patch(model, settings.shift) for model in (pair.high, pair.low) if model is not None]
    high, low = (*models, None)[:2]
    segmented = why_segmented(high, low, switching)
    return Plan(replace(pair, high=high, low=low), settings, torch.empty(0), settings.boundary, segmented=segmented)


def guider(
    plan: Plan, positive: Any, negative: Any, node_id: str | None, *, integer: bool, graph: Any = None
) -> DualExpertGuider:
    """The GUIDER of a plan, which shows what its settings came to; with `graph`, its runs can be resumed."""
    _check_conditions(plan.pair, positive, negative)
    settings, pair = plan.settings, plan.pair
    text = f"cfg {settings.guidance_high:g}, shift {settings.shift:g}"
    if pair.low is not None:
        text = f"cfg {settings.guidance_high:g} / {settings.guidance_low:g}, shift {settings.shift:g}, "
        text += f"boundary {settings.boundary:g}"
    models = pair.high, pair.low
    kept = Logged(models)
    if graph is not None:
        kept = logged(
            models,
            (positive, negative),
            [settings.shift, integer],
            graph,
            node_id,
            lambda report: send_text(node_id, f"{text}\nsampled{report}"),
        )
    text = "\n".join([text, *plan.remarks(), *kept.remarks])
    show_on_node(node_id, text)
    return plan.with_models(*kept.models).guider(positive, negative)


def _part(sigmas: Tensor, run: Run) -> Tensor:
    if run.start_at_step >= run.end_at_step:
        raise InputError(
            "The run ends before it starts",
            where="end_at_step",
            found=f"start {run.start_at_step}, end {run.end_at_step}",
            remedy="Set end_at_step above start_at_step",
        )
    return sigmas[min(run.start_at_step, len(sigmas) - 1) : run.end_at_step + 1]


def _check_conditions(pair: Pair, positive: Any, negative: Any) -> None:
    """Makes sure that the prompts' pictures, sounds and control clips are this model's: see fitting.py."""
    where = pair.facts.path or "high"
    check_conditions(pair.high, (positive, negative), title=pair.facts.task.title, where=where)
    check_picture(pair.facts, (positive, negative))


def sample(
    plan: Plan,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    run: Run,
    node_id: str | None,
    *,
    graph: Any = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs the plan; returns the LATENT at its end and the denoised estimate of its last step.

    With `graph`, the prompt that is run (API format), it can be resumed.
    """
    _check_conditions(plan.pair, positive, negative)
    settings, models = plan.settings, (plan.pair.high, plan.pair.low)
    kept = Logged(models)
    if graph is not None:
        told = [settings.shift, settings.schedule, settings.solver]
        kept = logged(models, (positive, negative), told, graph, node_id)
        plan = plan.with_models(*kept.models)
    high = plan.pair.high
    sizes = {name: latent[name] for name in EMPTY_SIZES if name in latent}
    start = comfy.sample.fix_empty_latent_channels(high, latent["samples"], **sizes)
    out = {name: value for name, value in latent.items() if name not in EMPTY_SIZES}
    if len(plan.sigmas) < 2:
        return {**out, "samples": start}, {**out, "samples": start}
    noise = torch.zeros_like(start, device="cpu")
    if run.add_noise:
        noise = comfy.sample.prepare_noise(start, run.seed, latent.get("batch_index"))
    needs = RunPlan.of(plan.pair, start.shape, plan.forwards()) if start.ndim == 5 else None
    text = "\n".join([plan.text, *kept.remarks])
    if needs is not None:
        text = f"{text}\n{needs.report()}"
        plan = plan.timed(needs.meter)
    boundary = None if plan.pair.low is None else plan.boundary
    report = RunReport(node_id, text, plan.sigmas, boundary, plan.part)
    report.start()
    estimate: dict[str, Tensor] = {}
    samples = plan.guider(positive, negative).sample(
        noise,
        start,
        sampler_object(plan.settings.solver),
        plan.sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=report.callback(high, start, estimate, latent.get(FRAME_RATE) or plan.pair.facts.task.frame_rate),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=run.seed,
    )
    if needs is not None:
        needs.learn()
    report.finish(kept.report())
    denoised = high.model.process_latent_out(estimate["x0"].cpu()) if "x0" in estimate else samples
    return {**out, "samples": _stored(samples)}, {**out, "samples": _stored(denoised)}


def _stored(samples: Tensor) -> Tensor:
    """On the device and in the type that ComfyUI keeps latents in between nodes."""
    dtype = getattr(comfy.model_management, "intermediate_dtype", lambda: samples.dtype)()
    return samples.to(device=comfy.model_management.intermediate_device(), dtype=dtype)
