"""Draws docs/clips.jpg, real clips of the miniature family with their prompts: python3 tools/contact_sheet.py

Run it with the Python of `.venv`, which tools/demo.py makes. The clips are made by the pack's own loaders, sampler and
decoder, with the 4-step LoRAs that the bundled workflows switch on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from pack import ROOT
from PIL import Image, ImageDraw

sys.path.insert(0, str(ROOT / "tests"))
from comfy_host import import_comfy

import_comfy()

from make_pocket import make_pocket  # noqa: E402
from studio import Studio  # noqa: E402
from wancore.pocket import family  # noqa: E402
from wancore.wan_core.sampling.presets import Settings  # noqa: E402

PROMPTS = (
    "a red circle moves to the right",
    "A large blue square glides down on a beige background",
    "a small green triangle flies up quickly, night time",
    "An orange cross drifts to the left over a white floor",
    "Light from the left. A purple disc rolls from left to right",
    "A yellow box travels upwards, the camera zooms in",
)
FRAMES, SIZE = 17, (96, 96)
SHOWN, MARGIN, LINE = 5, 6, 16  # frames of a clip, and pixels
COLUMNS = 2


def draw_sheet(clips: np.ndarray, prompts: tuple[str, ...]) -> Image.Image:
    """Clips [N, F, H, W, 3] in 0..1 as strips of frames, first to last, each under its prompt."""
    count, frames, height, width, _ = clips.shape
    cell = SHOWN * width + MARGIN, height + LINE + MARGIN
    sheet = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, -(-count // COLUMNS) * cell[1] + MARGIN), "white")
    chosen = np.linspace(0, frames - 1, SHOWN).round().astype(int)
    for number, (clip, prompt) in enumerate(zip(clips, prompts, strict=True)):
        left, top = MARGIN + number % COLUMNS * cell[0], MARGIN + number // COLUMNS * cell[1]
        ImageDraw.Draw(sheet).text((left, top), prompt, fill="black")
        strip = np.concatenate(list(clip[chosen]), axis=1)
        sheet.paste(Image.fromarray((strip * 255).round().astype(np.uint8)), (left, top + LINE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "clips.jpg")
    parser.add_argument("--seed", type=int, default=4, help="seed of the noise (default: 4)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        make_pocket(models)
        parts = (family.T2V_HIGH, family.T2V_LOW, family.TEXT_ENCODER, family.VAE)
        studio = Studio.open(*(models / part.folder / part.name for part in parts))
        experts = (family.T2V_HIGH.name, family.T2V_LOW.name)
        loras = {lora.base: models / "loras" / lora.name for lora in family.LORAS}
        studio = studio.with_loras(*(loras[name] for name in experts))
        clips = studio.film(PROMPTS, Settings(), size=SIZE, frames=FRAMES, seed=options.seed)
    draw_sheet(clips, PROMPTS).save(options.output, quality=88)
    print(options.output)


if __name__ == "__main__":
    main()
