"""Measures long videos of the miniature family: python3 tools/measure_long.py t2v|i2v|ti2v [--sheets FOLDER]

Films things that turn round at every segment, in several ways to hand over, and things that move on with ComfyUI's
context windows and in segments, and judges every segment by pocket/judge.py. Prints a table in Markdown. Needs the
environment of tools/test.py; COMFYUI_PATH is the ComfyUI to measure with.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from pack import import_pack
from PIL import Image

import_pack()
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from comfy_host import import_comfy  # noqa: E402

import_comfy()

import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode  # noqa: E402
from make_pocket import make_pocket  # noqa: E402
from studio import Studio  # noqa: E402
from wancore.nodes.bridge import clip_run, sampling  # noqa: E402
from wancore.nodes.bridge.decode import decode_clips  # noqa: E402
from wancore.nodes.bridge.latents import empty_latent, grid_of  # noqa: E402
from wancore.nodes.bridge.long_clips import LATENTS, PICTURE  # noqa: E402
from wancore.nodes.images import WanCoreImageToVideo  # noqa: E402
from wancore.nodes.long_video import WanCoreLongVideo  # noqa: E402
from wancore.nodes.text import encode  # noqa: E402
from wancore.pocket import family  # noqa: E402
from wancore.pocket.judge import judge, path_of, regions  # noqa: E402
from wancore.pocket.world import HEADINGS, Scene, Thing, clip  # noqa: E402
from wancore.wan_core.geometry import CUSTOM  # noqa: E402
from wancore.wan_core.long_video import SeamMeter, drift, statistics  # noqa: E402
from wancore.wan_core.prompts import NEGATIVE  # noqa: E402
from wancore.wan_core.sampling.presets import Settings  # noqa: E402

TASKS = {
    "t2v": (family.T2V_HIGH, family.T2V_LOW, family.VAE, (96, 96), "fast"),
    "i2v": (family.I2V_HIGH, family.I2V_LOW, family.VAE, (96, 96), "draft"),
    "ti2v": (family.TI2V, None, family.VAE22, (128, 128), "draft"),
}
FRAMES = {"t2v": 17, "i2v": 33, "ti2v": 17}  # of a segment: lengths that the family was trained on
BACK = {"right": "left", "left": "right", "up": "down", "down": "up"}
THINGS = (
    ("circle", "red", "right", "grey"),
    ("square", "blue", "left", "beige"),
    ("triangle", "yellow", "up", "black"),
    ("cross", "green", "down", "white"),
    ("circle", "purple", "down", "grey"),
    ("square", "orange", "right", "sky blue"),
)
SEEDS = 2  # videos of each thing


@dataclass(frozen=True)
class Way:
    """How a long video is made."""

    name: str
    overlap: int = 12
    handover: str = PICTURE
    limit: float = 0.3
    turns: bool = True  # whether the prompt of every segment has the other direction
    windows: bool = False  # one run in ComfyUI's context windows


WAYS = (
    *(Way(f"overlap {n}, {handover}", n, handover) for handover in (PICTURE, LATENTS) for n in (4, 8, 12)),
    Way("overlap 12, not corrected", limit=0.0),
    Way("one direction, segments", turns=False),
    Way("one direction, context windows", turns=False, windows=True),
)


def prompt_of(shape: str, color: str, direction: str, ground: str) -> str:
    there = {"right": "to the right", "left": "to the left", "up": "up", "down": "down"}[direction]
    return f"A large {color} {shape} moves {there} slowly on a {ground} background."


class Director:
    """Films the long videos of one task."""

    def __init__(self, task: str, count: int, preset: str = "") -> None:
        high, low, vae, self.size, preset_of_task = TASKS[task]
        self.settings = Settings(preset or preset_of_task)
        self.task, self.count, self.frames = task, count, FRAMES[task]
        with tempfile.TemporaryDirectory() as folder:
            make_pocket(Path(folder), fp8=False)
            files = [Path(folder, m.folder, m.name) for m in (high, family.TEXT_ENCODER, vae)]
            second = Path(folder, low.folder, low.name) if low else None
            self.studio = Studio.open(files[0], second, *files[1:])
            if self.settings.preset == "fast":
                names = {lora.base: Path(folder, "loras", lora.name) for lora in family.LORAS}
                self.studio = self.studio.with_loras(names[high.name], names[family.T2V_LOW.name])

    def film(self, way: Way, thing: tuple[str, str, str, str], seed: int) -> tuple[np.ndarray, list[float]]:
        """Videos [SEEDS, F, H, W, 3] in 0..1, and the drift of each segment after the first.

        One by one in context windows, which do not take a batch.
        """
        if not way.windows:
            return self._film(way, thing, seed, SEEDS)
        videos, drifts = zip(*(self._film(way, thing, seed + k, 1) for k in range(SEEDS)), strict=True)
        return np.concatenate(videos), np.mean(drifts, axis=0).tolist()

    def _film(
        self, way: Way, thing: tuple[str, str, str, str], seed: int, batch: int
    ) -> tuple[np.ndarray, list[float]]:
        texts = [prompt_of(*thing), prompt_of(*thing[:2], BACK[thing[2]], thing[3])]
        frames = self.frames if not way.windows else self._whole(way)
        positive, negative, latent = self._start(texts[0], thing, frames, batch)
        pair = sampling.Pair.of(self.studio.high, self.studio.low)
        if way.windows:
            pair = replace(pair, high=self._windowed(pair.high), low=pair.low and self._windowed(pair.low))
        else:
            others = [texts[(k + 1) % 2 if way.turns else 0] for k in range(self.count - 1)]
            node = SimpleNamespace(hidden=SimpleNamespace(unique_id=None))
            options = ("\n---\n".join(others), self.count, way.overlap, "", way.limit, way.handover)
            made = WanCoreLongVideo.execute.__func__(
                node, positive, negative, latent, self.studio.vae, *options, clip=self.studio.clip
            )
            positive, negative, latent = made.result
        run = sampling.Run(seed)
        plan = sampling.plan(pair, self.settings, run)
        sampled, _ = clip_run.sample(plan, positive, negative, latent, run, None)
        _, images = decode_clips(sampled, self.studio.vae, None, with_images=True)
        assert images is not None
        return images.unflatten(0, (batch, -1)).numpy(), self._drift(sampled["samples"], way)

    def segments(self, way: Way) -> list[slice]:
        """The frames that each segment adds; windows are cut likewise."""
        new = self.frames - 1 - (way.overlap - 4)
        starts = [0, *(self.frames + k * new for k in range(self.count))]
        return [slice(first, last) for first, last in pairwise(starts)][: self.count]

    def _whole(self, way: Way) -> int:
        return self.segments(way)[-1].stop

    def _windowed(self, model: Any) -> Any:
        options = (self.frames, 12, "standard_static", 1, False, "pyramid", False)
        return WanContextWindowsManualNode.execute(model, *options).result[0]

    def _start(self, text: str, thing: tuple[str, str, str, str], frames: int, batch: int) -> tuple[Any, Any, Any]:
        positive, negative = (encode(self.studio.clip, words) for words in (text, NEGATIVE))
        if self.task == "t2v":
            return positive, negative, empty_latent(grid_of(self.studio.vae), self.size, frames, batch)
        moving = Thing(*thing[:2], "large", thing[2], "slow", 0.25, (0.5, 0.5), 0.2)
        picture = torch.from_numpy(clip(Scene((moving,), thing[3], "fixed", "day"), 17, *self.size)[:1])
        node = SimpleNamespace(hidden=SimpleNamespace(unique_id=None))
        options = (CUSTOM, 0.0, frames, batch, *self.size)
        made = WanCoreImageToVideo.execute.__func__(
            node, positive, negative, self.studio.vae, *options, start_image=picture
        )
        return made.result

    def _drift(self, latents: torch.Tensor, way: Way) -> list[float]:
        places = [slice(0 if s.start == 0 else (s.start + 3) // 4, (s.stop + 3) // 4) for s in self.segments(way)]
        parts = [statistics(latents[:, :, place]) for place in places]
        return [float(drift(part, parts[0]).mean()) for part in parts[1:]]


def speed(video: np.ndarray, color: str, heading: tuple[float, float]) -> float:
    """Motion along the heading, in shares of the frame."""
    path = path_of(regions(video, color))
    return 0.0 if path is None else float(np.dot(path, heading))


def measured(director: Director, way: Way, things: int) -> tuple[dict[str, str], np.ndarray]:
    """One row of the table, and a picture [H, W, 3] with a strip of frames of each thing."""
    colors, moves, directions, drifts, seams, strips = [], [], [], [], [], []
    began = time.monotonic()
    for number, thing in enumerate(THINGS[:things]):
        _, color, direction, _ = thing
        videos, far = director.film(way, thing, 100 * number)
        drifts.append(far)
        for video in videos:
            parts = [video[place] for place in director.segments(way)]
            asked = [BACK[direction] if way.turns and k % 2 else direction for k in range(director.count)]
            seen = [judge(part) for part in parts]
            colors.append([one.color == color for one in seen])
            directions.append([one.direction == told for one, told in zip(seen, asked, strict=True)])
            moves.append([speed(part, color, HEADINGS[told]) for part, told in zip(parts, asked, strict=True)])
            meter = SeamMeter([place.start for place in director.segments(way)[1:]])
            meter.add(torch.from_numpy(video))
            seams += meter.finish()
        chosen = [frame for place in director.segments(way) for frame in videos[0][place][[2, -3]]]
        strips.append(np.concatenate(chosen, axis=1))

    def each(values: list[list[float]], form: str) -> str:
        return " ".join(form.format(value) for value in np.mean(np.asarray(values, dtype=float), axis=0))

    row = {
        "": way.name,
        "colour, %": each([[100 * v for v in row] for row in colors], "{:.0f}"),
        "direction, %": each([[100 * v for v in row] for row in directions], "{:.0f}"),
        "motion": each(moves, "{:.2f}"),
        "drift": each(drifts, "{:.2f}"),
        "seams, median (worst)": f"{np.median(seams):.2f} ({np.max(seams):.2f})",
        "s": f"{time.monotonic() - began:.0f}",
    }
    return row, np.concatenate(strips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--preset", default="", help="of Wan KSampler; fast is with the 4-step LoRAs")
    parser.add_argument("--ways", default="", help="only those whose name matches this regular expression")
    parser.add_argument("--things", type=int, default=len(THINGS), help="how many of them to film")
    parser.add_argument("--sheets", type=Path, help="folder for a picture of each way: two frames of every segment")
    args = parser.parse_args()
    torch.set_num_threads(1)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    with torch.inference_mode():
        director = Director(args.task, args.segments, args.preset)
        for number, way in enumerate(way for way in WAYS if re.search(args.ways, way.name)):
            row, sheet = measured(director, way, args.things)
            if not number:
                print(f"| {' | '.join(row)} |\n|{'---|' * len(row)}", flush=True)
            print(f"| {' | '.join(row.values())} |", flush=True)
            if args.sheets:
                args.sheets.mkdir(parents=True, exist_ok=True)
                Image.fromarray((sheet * 255).round().astype(np.uint8)).save(
                    args.sheets / f"{args.task} {way.name}.png"
                )


if __name__ == "__main__":
    main()
