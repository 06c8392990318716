"""Chromium from the system's packages, driven by Playwright, in front of real ComfyUI servers."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fast_vae import fast_vae
from playwright.sync_api import Browser, Page, TimeoutError, sync_playwright
from pocket_files import copy_pocket
from pocket_gguf import write_family
from setup.browser import BROWSERS, chromium
from setup.comfyui import DEFAULT_VERSION
from setup.places import ROOT, cache_folder
from setup.server import Launch, Server, link_pack, serve

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
LOST_AFTER = 15_000  # milliseconds without an answer to a click
# The front end opens a workflow of its own at its start: what is loaded before that is replaced by it.
READY = """() => window.app?.graph && app.extensionManager.spinner === false
    && app.extensionManager.workflow.activeWorkflow && Object.keys(LiteGraph.registered_node_types).length > 300"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Where screenshots and server logs are kept."""
    folder = ROOT / "tests" / "artefacts"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")  # Playwright keeps an event loop running in this thread: not beyond these tests
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed, and CHROMIUM does not name one")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def without_models(tmp_path_factory: pytest.TempPathFactory, artefacts: Path) -> Iterator[Server]:
    """A server whose models folder is empty."""
    with serve(_launch(tmp_path_factory.mktemp("empty")), artefacts / "browser-empty.log") as server:
        _settle(server)
        yield server


@pytest.fixture(scope="session")
def pocket_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base folder of `with_models`."""
    return tmp_path_factory.mktemp("pocket")


@pytest.fixture(scope="session")
def with_models(pocket_base: Path, artefacts: Path) -> Iterator[Server]:
    """A server with the miniature weights under their published names, safetensors and GGUF."""
    copy_pocket(pocket_base / "models")
    write_family(pocket_base / "models")
    with serve(_launch(pocket_base, *fast_vae()), artefacts / "browser-pocket.log") as server:
        _settle(server)
        yield server


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of a user who was never here before."""
    context = browser.new_context(viewport={"width": 1680, "height": 1000})
    yield context.new_page()
    context.close()


def workflow_of(title: str) -> dict[str, Any]:
    """A bundled workflow."""
    return json.loads((ROOT / "workflows" / f"{title}.json").read_text(encoding="utf-8"))


def host_of(graph: dict[str, Any]) -> dict[str, Any]:
    """The top-level node that holds the subgraph."""
    subgraphs = {entry["id"] for entry in graph["definitions"]["subgraphs"]}
    return next(node for node in graph["nodes"] if node["type"] in subgraphs)


def _launch(base: Path, *arguments: str) -> Launch:
    comfyui = Path(os.environ.get("COMFYUI_PATH") or cache_folder() / f"ComfyUI-{DEFAULT_VERSION}")
    link_pack(base)
    return Launch(comfyui, Path(sys.executable), base, ("--cpu", *arguments))


def _settle(server: Server) -> None:
    """Tells the front end that its tour was taken, so that no dialog opens by itself."""
    settings = json.dumps({"Comfy.TutorialCompleted": True}).encode()
    headers = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{server.address}/settings", settings, headers)).close()


class Editor:
    """The graph editor in a page, as a user handles it."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server
        page.goto(server.address)
        page.wait_for_function(READY, timeout=120_000)

    def open_template(self, title: str) -> None:
        """Opens a template of this pack from the Templates dialog."""
        self.page.get_by_role("button", name="Templates").first.click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_test_id("template-workflows-content").wait_for()
        dialog.get_by_text("WanCore").first.click()
        card = dialog.get_by_test_id(f"template-workflow-{title}")
        card.click()
        try:
            dialog.wait_for(state="hidden", timeout=LOST_AFTER)
        except TimeoutError:  # the front end lost the click on a busy machine, once in some hundred runs
            card.click()
            dialog.wait_for(state="hidden")
        self.page.wait_for_function("title => app.graph.nodes.some(node => node.subgraph?.name === title)", arg=title)

    def load(self, workflow: dict[str, Any]) -> None:
        """Loads a workflow as if its file was opened."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)

    def drop(self, file: str) -> None:
        """Drops a file of the server's output folder, given by its address, on the canvas."""
        self.page.evaluate(
            """async address => {
                const bytes = await (await fetch(address)).blob()
                const carried = new DataTransfer()
                carried.items.add(new File([bytes], 'clip.mp4', {type: 'video/mp4'}))
                const place = {clientX: 300, clientY: 800, bubbles: true, cancelable: true, dataTransfer: carried}
                document.querySelector('#graph-canvas').dispatchEvent(new DragEvent('drop', place))
            }""",
            file,
        )

    def prompt(self) -> dict[str, Any]:
        """What the front end would send now if Run were pressed."""
        return self.page.evaluate("async () => JSON.parse(JSON.stringify((await app.graphToPrompt()).output))")

    def graph(self) -> dict[str, Any]:
        """The workflow as the front end would save it."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.rootGraph.serialize()))")

    def missing_nodes(self) -> list[str]:
        """Types of nodes in the graph and its subgraphs that the front end does not know."""
        return self.page.evaluate(
            """() => [app.rootGraph, ...app.rootGraph.subgraphs.values()].flatMap(graph => graph.nodes)
                .map(node => node.type).filter(type => !(type in LiteGraph.registered_node_types))"""
        )
