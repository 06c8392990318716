"""Draws docs/screenshot.png: python3 tools/draw_screenshot.py --server ADDRESS

Opens the text to video template in the editor of a running ComfyUI with the miniature weights (tools/demo.py --serve
leaves one), has it make a clip of shapes that the miniature model knows, and writes what is seen. Needs playwright
(requirements-dev.txt) and a Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import urllib.request
from pathlib import Path
from typing import Any

from clip import WORKFLOW, configure
from draw_nodes import READY, chromium, without_tour
from PIL import Image
from setup.places import ROOT

PROMPT = "A large red circle moves to the right on a grey background."
VIEW, SEEN = {"width": 1680, "height": 1000}, (0, 0, 1680, 740)  # pixels of the page, and what is kept of it
ENDED = "() => document.querySelector('video')?.readyState >= 2 || app.lastExecutionError || app.lastNodeErrors"
MIDDLE = (
    "() => { const video = document.querySelector('video'); video.pause(); video.currentTime = video.duration / 2 }"
)


def workflow_of(server: str, seed: int) -> dict[str, Any]:
    """The template with a prompt and a size that the miniature model knows."""
    with urllib.request.urlopen(f"{server}/object_info") as answer:
        nodes = json.load(answer)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    configure(workflow, argparse.Namespace(prompt=PROMPT, size="160x96", seconds=1.0, seed=seed), nodes)
    return workflow


def draw(server: str, seed: int) -> Image.Image:
    """What the page shows half-way through the clip.

    Raises:
        RuntimeError: the prompt failed.
    """
    without_tour(server)
    with chromium() as browser:
        page = browser.new_context(viewport=VIEW).new_page()
        page.goto(server)
        page.wait_for_function(READY, timeout=120_000)
        page.evaluate(
            "graph => app.loadGraphData(graph, true, true, 'Wan 2.2 Text to Video')", workflow_of(server, seed)
        )
        page.get_by_test_id("queue-button").click()
        page.wait_for_function(ENDED, timeout=300_000)
        problem = page.evaluate("() => app.lastExecutionError?.exception_message ?? app.lastNodeErrors")
        if problem:
            raise RuntimeError(f"no clip: {problem}")
        page.evaluate("() => { app.canvas.ds.offset[1] += 40; app.canvas.setDirty(true, true) }")  # below the tool bar
        page.evaluate(MIDDLE)
        page.wait_for_timeout(2000)  # the player seeks, messages fade
        return Image.open(io.BytesIO(page.screenshot())).convert("RGB").crop(SEEN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="address of the running ComfyUI, http://127.0.0.1:8188")
    parser.add_argument("--seed", type=int, default=1, help="of the clip (default: 1)")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "screenshot.png")
    options = parser.parse_args()
    picture = draw(options.server.rstrip("/"), options.seed)
    picture.quantize(128).save(options.output, optimize=True)
    print(options.output)


if __name__ == "__main__":
    main()
