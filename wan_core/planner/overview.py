"""What files need, before a size is chosen: a line for each official size of the model."""

from __future__ import annotations

from collections.abc import Sequence

from ..geometry import OFFICIAL_SIZES
from ..weights import Checkpoint
from ..weights.families import DIFFUSION_MODEL, TEXT_ENCODER, VAE
from .memory import Clip, Part
from .pace import Pace
from .plan import Machine, Run, plan


def overview(
    high: Checkpoint,
    machine: Machine,
    learned: Pace,
    *,
    low: Checkpoint | None = None,
    text_encoder: Checkpoint | None = None,
    vae: Checkpoint | None = None,
) -> list[str]:
    """A line for each official size of the model, at its official length; none for a model without a task."""
    task = high.task
    if task is None or high.config is None:
        return []
    model = Part.of(high)
    parts = [None if file is None else Part.of(file) for file in (low, text_encoder, vae)]
    found = []
    for width, height in OFFICIAL_SIZES.get(task.id, ()):
        if width >= height:
            clip = Clip(width, height, task.frames)
            run = Run(model, clip, *parts, encodes=high.config.in_dim > high.config.out_dim)
            found.append(f"{width}x{height}, {task.frames} frames: {plan(run, machine, learned).line(machine)}")
    return found


def overview_of(files: Sequence[Checkpoint], machine: Machine, learned: Pace) -> list[str]:
    """The same for the first diffusion model of these files; another of its family is its other expert."""
    models = [file for file in files if file.kind == DIFFUSION_MODEL and file.task is not None]
    if not models:
        return []
    low = next((file for file in models[1:] if file.family.id == models[0].family.id), None)
    encoder, vae = (next((file for file in files if file.kind == kind), None) for kind in (TEXT_ENCODER, VAE))
    return overview(models[0], machine, learned, low=low, text_encoder=encoder, vae=vae)
