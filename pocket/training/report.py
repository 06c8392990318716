"""Does a clip obey its prompt: 64 held-out prompts, judged; the numbers and a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..aside import PREFIX, written_aside
from ..captions import caption
from ..judge import Seen, judge, psnr
from ..world import COLORS, DIRECTIONS, SHAPES, Scene, Sheet, draw_scene, is_held_out, sheet
from .data import Size, draw_clips

PROMPTS = 64


@dataclass(frozen=True)
class Prompt:
    """A text and what it asks for."""

    text: str
    scene: Scene

    def obeyed(self, seen: Seen) -> dict[str, bool]:
        thing = self.scene.things[0]
        return {
            "color": seen.color == thing.color,
            "shape": seen.shape == thing.shape,
            "direction": seen.direction == thing.direction,
        }


def held_out_prompts(seed: int = 0, count: int = PROMPTS) -> list[Prompt]:
    """Prompts in forms and of combinations that were never trained on, every combination as often as the others."""
    rng = np.random.default_rng((seed, 64))
    triples = [(s, c, d) for s in range(len(SHAPES)) for c in range(len(COLORS)) for d in range(len(DIRECTIONS))]
    wanted: list[tuple[int, int, int]] = []
    prompts = []
    while len(prompts) < count:
        scene = draw_scene(rng, held_out=True, pairs=0.0)
        thing = scene.things[0]
        assert is_held_out(thing)
        wanted = wanted or [triple for triple in triples if sum(triple) % 4 == 3]
        if thing.triple in wanted:
            wanted.remove(thing.triple)
            prompts.append(Prompt(caption(scene, rng, held_out=True, complete=True).text, scene))
    return prompts


def score(prompts: Sequence[Prompt], clips: Tensor) -> dict[str, float]:
    """Share of the clips [N, F, H, W, 3] that show each attribute as prompted."""
    answers = [prompt.obeyed(judge(clip.numpy())) for prompt, clip in zip(prompts, clips, strict=True)]
    return {name: float(np.mean([answer[name] for answer in answers])) for name in answers[0]}


def draw(prompts: Sequence[Prompt], size: Size, device: torch.device) -> Tensor:
    """The generator's own clips of the prompts' scenes, [N, 3, F, H, W] in -1..1."""
    scenes = sheet([prompt.scene for prompt in prompts])
    placed = Sheet(*(torch.from_numpy(getattr(scenes, field.name)).to(device) for field in fields(Sheet)))
    return draw_clips(placed, size)


def first_frame(pictures: Tensor, clips: Tensor) -> dict[str, float]:
    """How near the first frames of clips [N, F, H, W, 3] are to the given pictures [N, H, W, 3], in dB."""
    found = [psnr(picture.numpy(), clip[0].numpy()) for picture, clip in zip(pictures, clips, strict=True)]
    return {"first frame, mean dB": float(np.mean(found)), "first frame, worst dB": float(np.min(found))}


def keep(part: str, rows: Mapping[str, object], state: Path, out: Path) -> None:
    """Adds one part to the report. Parts are kept apart too, so that stages can end at the same time.

    The report of the one that joins last may miss a part that came meanwhile: "how", behind all stages, has them all.
    """
    folder = state / "report"
    folder.mkdir(parents=True, exist_ok=True)
    with written_aside(folder / f"{part}.json") as aside:
        aside.write_text(json.dumps(rows))
    out.mkdir(parents=True, exist_ok=True)
    joined = {}
    for file in sorted(folder.glob("*.json")):
        if not file.name.startswith(PREFIX):  # another stage's, not yet whole
            joined |= json.loads(file.read_text())
    with written_aside(out / "report.json", by=f"{part}_") as aside:
        aside.write_text(json.dumps(joined, indent=1) + "\n")


def contact_sheet(prompts: Sequence[Prompt], clips: Tensor, path: Path, *, count: int = 16, frames: int = 5) -> None:
    """Writes a JPEG: a row of frames to each prompt, two prompts side by side."""
    cells = []
    for prompt, clip in list(zip(prompts, clips.numpy(), strict=True))[:count]:
        chosen = clip[np.linspace(0, len(clip) - 1, frames).round().astype(int)]
        strip = Image.fromarray((np.concatenate(list(chosen), axis=1) * 255).round().astype(np.uint8))
        cell = Image.new("RGB", (strip.width + 8, strip.height + 20), "white")
        cell.paste(strip, (4, 16))
        text = prompt.text if len(prompt.text) < 82 else prompt.text[:79] + "..."
        ImageDraw.Draw(cell).text((4, 3), text, fill="black")
        cells.append(cell)
    width, height = cells[0].size
    whole = Image.new("RGB", (2 * width, -(-len(cells) // 2) * height), "white")
    for index, cell in enumerate(cells):
        whole.paste(cell, (index % 2 * width, index // 2 * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, quality=80)
