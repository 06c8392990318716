"""Draws the picture of every node for its page: python3 tools/draw_nodes.py --server ADDRESS [NODE ...].

Opens the editor of a running ComfyUI in Chromium, places each node of this pack by itself and writes what is seen to
web/docs/images. Needs playwright (requirements-dev.txt) and a Chromium; a server with the miniature weights of
tools/make_pocket.py shows the published file names.
"""

from __future__ import annotations

import argparse
import io
import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from setup import browser as installed
from setup.places import ROOT

IMAGES = ROOT / "web" / "docs" / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
READY = "() => window.app?.graph && window.app.canvas && Object.keys(LiteGraph.registered_node_types).length > 300"
WIDTH, MARGIN, COLOURS, LARGEST = 420, 14, 128, 15_000  # pixels, pixels, colours of a picture, bytes of a file
PLACE = """async ([type, width, left, top]) => {
    for (const other of [...app.graph.nodes]) app.graph.remove(other)  // a new number each: values are kept by number
    const node = LiteGraph.createNode(type)
    app.graph.add(node)
    node.pos = [0, 0]
    const height = node.computeSize()[1]
    node.setSize([width, Math.max(height, node.size[1])])
    app.canvas.ds.scale = 1
    app.canvas.ds.offset = [left, top]
    app.canvas.deselectAll?.()
    app.canvas.setDirty(true, true)
    await new Promise(done => setTimeout(done, 400))
    return node.size[1]
}"""


def without_tour(server: str) -> None:
    """Tells the front end that its tour was taken, so that no dialog opens by itself."""
    settings = json.dumps({"Comfy.TutorialCompleted": True}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server}/settings", settings, headers)).close()


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=installed.chromium(), args=FLAGS)
        yield browser
        browser.close()


def draw(server: str, wanted: list[str]) -> None:
    without_tour(server)
    with urllib.request.urlopen(f"{server}/object_info") as answer:
        nodes = [name for name in json.load(answer) if name.startswith("WanCore")]
    IMAGES.mkdir(exist_ok=True)
    with chromium() as browser:
        page = browser.new_context(viewport={"width": 1000, "height": 1300}).new_page()
        page.goto(server)
        page.wait_for_function(READY, timeout=120_000)
        for name in wanted or nodes:
            write(name, picture_of(page, name))


def picture_of(page: Any, name: str) -> Image.Image:
    """A screenshot of one node with its title."""
    left, top, title = 300, 200, 46  # the title and the badge above it
    height = page.evaluate(PLACE, [name, WIDTH, left, top])
    box = page.locator("#graph-canvas").bounding_box()
    place = {"x": box["x"] + left - MARGIN, "y": box["y"] + top - title - MARGIN}
    clip = {**place, "width": WIDTH + 2 * MARGIN, "height": height + title + 2 * MARGIN}
    return Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB")


def write(name: str, picture: Image.Image) -> None:
    """Writes a PNG of few colours, or fewer where the file would be too large."""
    for colours in (COLOURS, COLOURS // 2, COLOURS // 4):
        file = io.BytesIO()
        picture.quantize(colours, Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
        if file.tell() <= LARGEST:
            break
    (IMAGES / f"{name}.png").write_bytes(file.getvalue())
    print(f"{name}: {picture.width}x{picture.height}, {file.tell()} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a running ComfyUI with this pack")
    parser.add_argument("nodes", nargs="*", help="ids of nodes; none: all of this pack")
    args = parser.parse_args()
    draw(args.server.rstrip("/"), args.nodes)


if __name__ == "__main__":
    main()
