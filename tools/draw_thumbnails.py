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

import thumbnail_films as films  # noqa: E402
from make_pocket import make_pocket  # noqa: E402

SIDE, EDGE = 400, 20  # pixels of a card, and of its border
TOP, GAP, SHOWN = 62, 4, 4  # where the frames begin, between them, and in a row
GROUND, WHITE, GREY, FRAME = "#16181d", "#ffffff", "#a0a4ac", "#ffd500"


@dataclass(frozen=True)
class Card:
    """One thumbnail: its template, the line under the title, its prompts, and who films them."""

    template: str
    line: str
    prompts: tuple[str, ...]  # of both clips, or of eight pictures
    film: Callable[[Path, tuple[str, ...]], films.Film]


CARDS = (
    Card(
        "Wan 2.2 Text to Video",
        "high + low expert, 4 steps",
        ("a red circle moves to the right", "a large blue square glides down on a white floor"),
        films.from_text,
    ),
    Card(
        "Wan 2.2 Text to Video GGUF",
        "quantised, for 12 GB cards",
        ("a green cross drifts to the left", "an orange triangle flies up on a beige background"),
        films.from_gguf,
    ),
    Card(
        "Wan 2.2 Image to Video",
        "high + low expert, from a picture",
        ("a purple square moves to the right", "a red triangle moves down"),
        films.from_picture,
    ),
    Card(
        "Wan 2.2 First-Last Frame to Video",
        "from one picture to another",
        ("a purple square moves to the right", "a red triangle moves down"),
        films.between_pictures,
    ),
    Card(
        "Wan 2.2 Text to Image",
        "single frames of the video models",
        (
            "a red circle on a white background",
            "a large green triangle on a beige background",
            "a yellow square on a black background",
            "a large red triangle on a white floor",
            "a green cross on a white background",
            "a large blue square on a beige background",
            "a yellow circle on a grey background",
            "a green triangle",
        ),
        films.pictures_from_text,
    ),
    Card(
        "Wan 2.2 VACE to Video",
        "follows a control video",
        ("a red cross moves on a beige background",),
        films.from_control,
    ),
    Card(
        "Wan 2.2 Animate",
        "a picture follows a pose",
        ("The thing in the picture moves.",),
        films.from_pose,
    ),
    Card(
        "Wan 2.2 5B Text and Image to Video",
        "one model, from text or a picture",
        ("a blue circle moves down", "a green triangle moves to the left"),
        films.from_text_or_picture,
    ),
    Card("Wan 2.2 Sound to Video", "opens as loud as its sound", (), films.from_sound),
    Card(
        "Wan 2.2 Long Video",
        "segments with their own prompts",
        (
            "a large red circle moves to the right slowly on a grey background---a large red circle moves to the left "
            "slowly on a grey background",
            "a large blue square moves down slowly on a white background---a large blue square moves up slowly on a "
            "white background",
        ),
        films.long_from_text,
    ),
)


def draw_card(card: Card, clips: np.ndarray, given: tuple[tuple[int, int], ...]) -> Image.Image:
    """The card of one template; `clips` are [2, F, H, W, 3] in 0..1, `given` frames get a border."""
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
            if (row, chosen[column]) in given:
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
    parser.add_argument("titles", nargs="*", metavar="WORKFLOW", help="whose picture is drawn (default: all of them)")
    parser.add_argument("--output", type=Path, default=ROOT / "workflows", help="folder of the pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        make_pocket(models)
        for card in CARDS:
            if options.titles and card.template not in options.titles:
                continue
            path = options.output / f"{card.template}.jpg"
            draw_card(card, *card.film(models, card.prompts)).save(path, quality=88)
            print(path)


if __name__ == "__main__":
    main()
