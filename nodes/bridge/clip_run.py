"""Samples a plan of clips one after the other: each goes on from the one before, and is kept on the disk when done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management

from ...wan_core.errors import InputError
from . import sampling
from .clips import CLIPS, ClipPlan, Job, Latent
from .latents import EMPTY_SIZES
from .progress import Part, progress
from .sampling import Plan, Run
from .segments import Results, Segments, Timeline, clip_key, segments_folder
from .show import send_text, show_on_node

OF_ONE_CLIP = (*EMPTY_SIZES, "noise_mask")  # parts of a LATENT that the joined one has not


def sample(
    plan: Plan,
    positive: Any,
    negative: Any,
    latent: Latent,
    run: Run,
    node_id: str | None,
    *,
    graph: Any = None,
    resume: bool = False,
) -> tuple[Latent, Latent]:
    """As sampling.sample; a LATENT with a plan of clips is run clip by clip.

    `graph` is the prompt that is run (API format): by it finished clips are found again, and with `resume` steps, too.

    Raises:
        WrongModelError: the clips are made for another model.
        InputError: they need a mask, which two runs cannot keep.
    """
    clips: ClipPlan | None = latent.get(CLIPS)
    replayed = graph if resume else None
    if clips is None:
        return sampling.sample(plan, positive, negative, latent, run, node_id, graph=replayed)
    clips.check(plan.pair.facts)
    if plan.segmented and clips.is_masked and len(clips.lengths) > 1:
        raise InputError(
            f"{clips.maker} needs both experts in one run",
            where="switching",
            found=f"two runs, {plan.segmented}",
            remedy="Set switching to one run",
        )
    run_of_clips = _ClipRun(plan, run, node_id, graph, replayed)
    if len(clips.lengths) == 1:
        return run_of_clips.only(clips.begun(), positive, negative, latent)
    return run_of_clips.all(clips.begun(), positive, negative, latent)


class _ClipRun:
    """One run over all clips of a plan."""

    def __init__(self, plan: Plan, run: Run, node_id: str | None, graph: Any, replayed: Any) -> None:
        self.plan, self.settings, self.node_id = plan, run, node_id
        self.graph, self.replayed = graph, replayed
        self.store = Segments(segments_folder())

    def only(self, clips: ClipPlan, positive: Any, negative: Any, latent: Latent) -> tuple[Latent, Latent]:
        """A plan of one clip is a plain run."""
        job = clips.job(0, latent, positive, negative)
        run = replace(self.settings, seed=clips.seed(0, self.settings.seed))
        prompts = job.positive, job.negative
        return sampling.sample(self.plan, *prompts, job.latent, run, self.node_id, graph=self.replayed)

    def all(self, clips: ClipPlan, positive: Any, negative: Any, latent: Latent) -> tuple[Latent, Latent]:
        device = latent["samples"].device
        with Timeline() as sampled, Timeline() as denoised:
            timelines = sampled, denoised
            for number in range(len(clips.lengths)):
                comfy.model_management.throw_exception_if_processing_interrupted()
                results = self._clip(number, clips, clips.job(number, latent, positive, negative))
                clips, *kept = clips.going_on(number, *(samples.to(device) for samples in results))
                for timeline, samples in zip(timelines, kept, strict=True):
                    timeline.append(samples)
            joined = [timeline.joined().to(device) for timeline in timelines]
        if lines := clips.report():
            show_on_node(self.node_id, "\n".join([self.plan.text, *lines]))
        rest = {name: value for name, value in latent.items() if name not in OF_ONE_CLIP}
        outs = [{**rest, "samples": samples, CLIPS: clips.ended()} for samples in joined]
        return outs[0], outs[1]

    def _clip(self, number: int, clips: ClipPlan, job: Job) -> Results:
        """What clip `number` becomes, from the disk where it is there."""
        part = Part(number, len(clips.lengths))
        heading = f"{clips.part} {number + 1} of {part.count}"
        run = replace(self.settings, seed=clips.seed(number, self.settings.seed))
        key = clip_key(self.plan, run, job, self.graph, self.node_id)
        found = self.store.find(key)
        if found is not None:
            send_text(self.node_id, f"{heading}: from the disk")
            steps = max(1, len(self.plan.sigmas) - 1)
            progress(part.total(steps))(part.done(steps, steps))
            return found
        plan = replace(self.plan, part=part, heading=heading)
        prompts = job.positive, job.negative
        made = sampling.sample(plan, *prompts, job.latent, run, self.node_id, graph=self.replayed)
        is_whole = float(plan.sigmas[-1]) == 0  # then the latent is its own estimate, but for rounding
        results = made[0]["samples"], made[0 if is_whole else 1]["samples"]
        self.store.keep(key, results)
        return results
