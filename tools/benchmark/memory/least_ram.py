"""The least RAM of a whole run, by bisection of a control group's limit, beside what the planner says.

Pages of files count in the group, too, but the system takes them back where it needs room: they make a run slow, and do
not make it fail.
"""

from __future__ import annotations

import json
from pathlib import Path

from ....wan_core.planner import memory
from ....wan_core.weights import inspect
from .bisection import Try, bisect
from .cases import GIB, Card, Clip, Model

GRAIN = 0.04  # of the result: where the bisection ends
FROM, TO = 0.5 * GIB, 10.0 * GIB  # bytes with which no run does, and with which every one should


def planned(model: Model, clip: Clip, card: Card, base: Path) -> float:
    """Bytes of RAM that the planner asks for."""
    models = base / "models"
    files = [memory.Part.of(inspect(models / "diffusion_models" / name)) for name in model.files]
    found = memory.phases(
        files[0],
        memory.Clip(clip.width, clip.height, clip.frames),
        low=(*files, None)[1],
        text_encoder=memory.Part.of(inspect(models / "text_encoders" / model.text_encoder)),
        vae_file=memory.Part.of(inspect(models / "vae" / model.vae)),
        encode=model.has_picture,
    )
    return memory.least_ram(found, card.vram or 0.0)


def search(attempt: Try) -> tuple[float | None, list[tuple[float, str]]]:
    """The least that a run does with, in bytes (None: it fails with TO), and what was tried: GiB, what went wrong."""
    return bisect(attempt, FROM, TO, GRAIN)


def write(found: list[dict[str, object]], folder: Path) -> None:
    """least_ram.json."""
    (folder / "least_ram.json").write_text(json.dumps(found), encoding="utf-8")
