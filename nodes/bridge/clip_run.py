"""Samples a plan of clips one after the other: each gets its sound and poses, and goes on from the one before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...wan_core.adapters.s2v import MOTION_FRAMES
from ...wan_core.errors import WrongModelError
from ...wan_core.tasks import S2V_14B
from . import sampling
from .clips import CLIPS, ClipPlan, decode_clip, item_of
from .sampling import Plan, Run
from .show import send_text

Latent = dict[str, Any]
SEEDS = 2**64


def sample(
    plan: Plan, positive: Any, negative: Any, latent: Latent, run: Run, node_id: str | None, *, graph: Any = None
) -> tuple[Latent, Latent]:
    """As sampling.sample; a LATENT with a plan of clips is run clip by clip, the seed one higher for each.

    Raises:
        WrongModelError: the clips are made from sound, and the model takes none.
    """
    clips = latent.get(CLIPS)
    if clips is None:
        return sampling.sample(plan, positive, negative, latent, run, node_id, graph=graph)
    if plan.pair.facts.task is not S2V_14B:
        raise WrongModelError(
            "This model takes no sound",
            where=plan.pair.facts.path or "high",
            found=plan.pair.facts.task.title,
            expected=S2V_14B.title,
            remedy="Load wan2.2_s2v_14B_fp8_scaled.safetensors, or take the latent from the node of this model's task",
        )
    return _run(plan, positive, negative, latent, replace(clips, before=clips.before[:1]), run, node_id, graph)


def _run(
    plan: Plan,
    positive: Any,
    negative: Any,
    latent: Latent,
    clips: ClipPlan,
    run: Run,
    node_id: str | None,
    graph: Any,
) -> tuple[Latent, Latent]:
    starts = _starts(latent, clips)
    recent = _grey(starts[0])
    made: list[tuple[Latent, Latent]] = []
    for number, (clip, start) in enumerate(zip(clips.clips, starts, strict=True)):
        if len(starts) > 1:
            send_text(node_id, f"clip {number + 1} of {len(starts)}")
        values = clips.conditions(number)
        prompts = with_values(positive, values), with_values(negative, silent(values))
        seeded = replace(run, seed=(run.seed + number) % SEEDS)
        started = {**latent, "samples": start}
        made.append(sampling.sample(plan, *prompts, started, seeded, node_id, graph=graph))
        if number + 1 < len(starts):
            denoised = made[-1][1]["samples"]
            recent = [
                _recent(clips.vae, clip, denoised[i : i + 1], item_of(clips.before[number], i), frames)
                for i, frames in enumerate(recent)
            ]
            clips = clips.going_on_from(torch.cat([clips.vae.encode(frames[..., :3]) for frames in recent]))
    samples, estimates = (
        {**outs[0], "samples": torch.cat([out["samples"] for out in outs], dim=2), CLIPS: clips}
        for outs in zip(*made, strict=True)
    )
    return samples, estimates


def _starts(latent: Latent, clips: ClipPlan) -> list[Tensor]:
    """What each clip is sampled from: its part of a latent that was sampled before, else nothing."""
    samples, lengths = latent["samples"], [clip.latents for clip in clips.clips]
    if samples.shape[2] == sum(lengths):
        return list(samples.split(lengths, dim=2))
    rest = [samples.new_zeros(*samples.shape[:2], length, *samples.shape[3:]) for length in lengths[1:]]
    return [samples[:, :, : lengths[0]], *rest]


def _grey(start: Tensor) -> list[Tensor]:
    """What comes before the first clip, for each item of the batch: [73, H, W, 3]."""
    batch, _, _, rows, columns = start.shape
    return [torch.full((MOTION_FRAMES, 8 * rows, 8 * columns, 3), 0.5) for _ in range(batch)]


def _recent(vae: Any, clip: Any, latents: Tensor, before: Tensor, frames: Tensor) -> Tensor:
    """The last frames of the video so far."""
    new = torch.cat([chunk.to(frames) for chunk in decode_clip(vae, clip, latents, before)])
    return torch.cat([frames, new])[-MOTION_FRAMES:]


def with_values(conditioning: Any, values: dict[str, Any]) -> Any:
    """A CONDITIONING with these values in every entry."""
    return [[tensor, {**options, **values}] for tensor, options in conditioning]


def silent(values: dict[str, Any]) -> dict[str, Any]:
    """The values of the unconditional branch: the same without sound."""
    return {**values, "audio_embed": torch.zeros_like(values["audio_embed"])}
