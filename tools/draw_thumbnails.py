"""Draws the thumbnails of workflows/ that show real clips of the miniature family: python3 tools/draw_thumbnails.py

Run it with the Python of `.venv`, which tools/demo.py makes. Each card is a template's name over frames of clips that
the pack's own loaders, sampler and decoder made from prompts, or from prompts and a first picture (the framed ones).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pack import ROOT
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(ROOT / "tests"))
from comfy_host import import_comfy

import_comfy()

import led  # noqa: E402
from make_pocket import make_pocket  # noqa: E402
from pocket_gguf import HIGH, LOW, TEXT_ENCODER, write_family  # noqa: E402
from studio import Studio  # noqa: E402
from wancore.pocket import drawings, family, world  # noqa: E402
from wancore.wan_core.sampling.presets import Settings  # noqa: E402

SIDE, EDGE = 400, 20  # pixels of a card, and of its border
TOP, GAP, SHOWN = 62, 4, 4  # where the frames begin, between them, and in a row
GROUND, WHITE, GREY, FRAME = "#16181d", "#ffffff", "#a0a4ac", "#ffd500"
FAST, OFFICIAL = Settings(), Settings(preset="official", steps=20)


@dataclass(frozen=True)
class Card:
    """One thumbnail: its template, the line under the title, two prompts, and who films them."""

    template: str
    line: str
    prompts: tuple[str, ...]
    film: Callable[
        [Path, tuple[str, ...]], tuple[np.ndarray, tuple[int, ...]]
    ]  # clips [2, F, H, W, 3]; rows whose frame 0 was given


def _open(models: Path, high: family.Member, low: family.Member) -> Studio:
    return Studio.open(*(models / part.folder / part.name for part in (high, low, family.TEXT_ENCODER, family.VAE)))


def _from_text(models: Path, prompts: tuple[str, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    studio = _open(models, family.T2V_HIGH, family.T2V_LOW)
    loras = {lora.base: models / "loras" / lora.name for lora in family.LORAS}
    studio = studio.with_loras(loras[family.T2V_HIGH.name], loras[family.T2V_LOW.name])
    return studio.film(prompts, FAST, seed=3), ()


def _from_gguf(models: Path, prompts: tuple[str, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    write_family(models)
    files = (models / "diffusion_models" / HIGH, models / "diffusion_models" / LOW)
    vae = models / family.VAE.folder / family.VAE.name
    return Studio.open(*files, models / "text_encoders" / TEXT_ENCODER, vae).film(prompts, OFFICIAL, seed=5), ()


def _pictures(prompts: tuple[str, ...]) -> np.ndarray:
    """First pictures [2, 96, 96, 3] for the prompts: the thing that each names, drawn where its way begins."""
    pictures = []
    for prompt in prompts:
        words = prompt.lower().replace(",", "").split()
        named = {
            part: next(value for value in values if value in words)
            for part, values in (("shape", world.SHAPES), ("color", world.COLORS), ("direction", world.DIRECTIONS))
        }
        thing = world.Thing(**named, size="large", speed="slow", radius=0.24, middle=(0.5, 0.5), travel=0.25)
        scene = world.Scene((thing,), "beige", "fixed", "day")
        pictures.append(world.clip(scene)[0])
    return np.stack(pictures)


def _from_picture(models: Path, prompts: tuple[str, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    studio = _open(models, family.I2V_HIGH, family.I2V_LOW)
    return studio.film(prompts, OFFICIAL, seed=7, pictures=_pictures(prompts)), (0, 1)


def _led(shape: str, color: str) -> tuple[world.Sheet, np.ndarray, tuple[np.ndarray, ...]]:
    """A thing, its places [1, F, 2] on a winding path, and the times, rows and columns of its clip."""
    thing = world.Thing(shape, color, "small", "right", "slow", 0.18, (0.5, 0.5), 0.0)
    turns = [np.array([pair], dtype=np.float32) for pair in ((0.5, 0.5), (0.2, 0.14), (0.5, 0.65), (0.0, 0.25))]
    axes = world.axes(17, 96, 96)
    return world.sheet([world.Scene((thing,), "beige", "fixed", "day")]), drawings.Paths(*turns).at(axes[0]), axes


def _from_control(models: Path, prompts: tuple[str, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    studio, (sheet, paths, axes) = _open(models, family.VACE_HIGH, family.VACE_LOW), _led("cross", "red")
    drawing = drawings.outline(sheet, paths, *axes[1:])
    return np.concatenate([drawing, studio.film_from(prompts, OFFICIAL, led.vace(studio, drawing), seed=2)]), ()


def _from_pose(models: Path, prompts: tuple[str, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    parts = family.ANIMATE, family.TEXT_ENCODER, family.VAE
    high, *rest = (models / part.folder / part.name for part in parts)
    studio, (sheet, paths, axes) = Studio.open(high, None, *rest), _led("triangle", "purple")
    picture = world.render(sheet, *axes)[:, 0]
    poses = drawings.pose(sheet.radius[:, 0], paths, *axes[1:])
    clips = studio.film_from(prompts, OFFICIAL, led.animate(studio, picture, poses), seed=2, batch=1)
    return np.concatenate([poses, np.concatenate([picture[:, None], clips[:, 1:]], axis=1)]), (1,)


CARDS = (
    Card(
        "Wan 2.2 Text to Video",
        "high + low expert, 4 steps",
        ("a red circle moves to the right", "a large blue square glides down on a white floor"),
        _from_text,
    ),
    Card(
        "Wan 2.2 Text to Video GGUF",
        "quantised, for 12 GB cards",
        ("a green cross drifts to the left", "an orange triangle flies up on a beige background"),
        _from_gguf,
    ),
    Card(
        "Wan 2.2 Image to Video",
        "high + low expert, from a picture",
        ("a purple square moves to the right", "a red triangle moves down"),
        _from_picture,
    ),
    Card(
        "Wan 2.2 VACE to Video",
        "follows a control video",
        ("a red cross moves on a beige background",),
        _from_control,
    ),
    Card(
        "Wan 2.2 Animate",
        "a picture follows a pose",
        ("The thing in the picture moves.",),
        _from_pose,
    ),
)


def draw_card(card: Card, clips: np.ndarray, given: tuple[int, ...]) -> Image.Image:
    """The card of one template; `clips` are [2, F, H, W, 3] in 0..1."""
    picture = Image.new("RGB", (SIDE, SIDE), GROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((EDGE, EDGE - 4), "Wan 2.2", WHITE, ImageFont.load_default(22))
    side = (SIDE - 2 * EDGE - (SHOWN - 1) * GAP) // SHOWN
    chosen = np.linspace(0, clips.shape[1] - 1, SHOWN).round().astype(int)
    for row, clip in enumerate(clips):
        for column, frame in enumerate(clip[chosen]):
            place = EDGE + column * (side + GAP), TOP + row * (side + GAP)
            shown = Image.fromarray((frame * 255).round().astype(np.uint8)).resize(
                (side, side), Image.Resampling.LANCZOS
            )
            picture.paste(shown, place)
            if row in given and column == 0:
                corner = place[0] + side - 1, place[1] + side - 1
                draw.rectangle((*place, *corner), outline=FRAME, width=3)
    title = card.template.removeprefix("Wan 2.2 ")
    size = next(
        size for size in range(40, 10, -1) if draw.textlength(title, ImageFont.load_default(size)) <= SIDE - 2 * EDGE
    )
    draw.text((EDGE, 310 - size // 2), title, WHITE, ImageFont.load_default(size))
    draw.text((EDGE, 346), card.line, GREY, ImageFont.load_default(20))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "workflows", help="folder of the pictures")
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        make_pocket(models)
        for card in CARDS:
            path = output / f"{card.template}.jpg"
            draw_card(card, *card.film(models, card.prompts)).save(path, quality=88)
            print(path)


if __name__ == "__main__":
    main()
