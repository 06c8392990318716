"""The bundled templates in a real browser: what a newcomer sees without the files, and with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from setup.places import ROOT
from setup.server import Server

from .conftest import Editor

TITLES = ("Wan 2.2 Text to Video", "Wan 2.2 Text to Image")
RUN_TIMEOUT = 1_800_000  # milliseconds for a clip of the full size on two slow cores
ENDED = "() => document.querySelector('video')?.readyState >= 2 || app.lastExecutionError || app.lastNodeErrors"


def workflow_of(title: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{title}.json").read_text(encoding="utf-8"))


def models_of(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """Every file that the workflow says it needs."""
    graphs = [workflow, *workflow["definitions"]["subgraphs"]]
    return [model for graph in graphs for node in graph["nodes"] for model in node["properties"].get("models", [])]


def host_of(graph: dict[str, Any]) -> dict[str, Any]:
    subgraphs = {entry["id"] for entry in graph["definitions"]["subgraphs"]}
    return next(node for node in graph["nodes"] if node["type"] in subgraphs)


@pytest.mark.parametrize("title", TITLES)
def test_without_models_the_pane_lists_exactly_the_files(page: Page, without_models: Server, title: str) -> None:
    editor = Editor(page, without_models)
    editor.open_template(title)
    assert editor.missing_nodes() == []
    page.get_by_test_id("error-overlay-see-errors").click()
    rows = page.get_by_test_id("missing-model-importable-rows")
    rows.wait_for()
    assert page.locator("[data-testid^=error-group-missing-]").count() == 1  # models, and no nodes or media
    models = models_of(workflow_of(title))
    lines = [line.strip() for line in rows.inner_text().splitlines() if line.strip() not in ("", "Download")]
    assert sorted(lines) == sorted(text for model in models for text in (model["name"], model["directory"]))
    assert rows.get_by_test_id("missing-model-download").count() == len(models) == 6
    assert len({model["url"] for model in models}) == 6


@pytest.mark.parametrize("title", TITLES)
def test_with_models_nothing_is_missing(page: Page, with_models: Server, artefacts: Path, title: str) -> None:
    editor = Editor(page, with_models)
    editor.open_template(title)
    page.wait_for_timeout(1000)  # the pane would come up by now
    assert editor.missing_nodes() == []
    assert page.get_by_test_id("error-overlay").count() == 0
    page.screenshot(path=artefacts / f"{title}.png")


@pytest.mark.parametrize("title", TITLES)
def test_the_file_is_what_the_front_end_saves(page: Page, with_models: Server, title: str) -> None:
    editor = Editor(page, with_models)
    editor.open_template(title)
    saved, file = editor.graph(), workflow_of(title)
    assert [node["type"] for node in saved["nodes"]] == [node["type"] for node in file["nodes"]]
    assert len(saved["nodes"]) == 3
    assert host_of(saved)["widgets_values"] == host_of(file)["widgets_values"]
    inner = {node["id"]: node for node in saved["definitions"]["subgraphs"][0]["nodes"]}
    for node in file["definitions"]["subgraphs"][0]["nodes"]:
        assert inner[node["id"]]["widgets_values"] == node["widgets_values"], node["type"]
        assert inner[node["id"]]["size"] == node["size"], f"{node['type']} is too small for its widgets"


@pytest.mark.slow
class TestRun:
    """Press Run with no widget touched; drop the clip on an empty canvas afterwards."""

    @pytest.fixture(scope="class")
    def finished(self, browser: Browser, with_models: Server, artefacts: Path) -> Editor:
        """The editor after the run."""
        page = browser.new_page(viewport={"width": 1680, "height": 1000})
        editor = Editor(page, with_models)
        editor.open_template(TITLES[0])
        page.get_by_test_id("queue-button").click()
        page.wait_for_function(
            f"() => ({VIDEO})() || app.lastExecutionError || app.lastNodeErrors", timeout=RUN_TIMEOUT
        )
        page.wait_for_timeout(1000)  # the player lays itself out
        page.screenshot(path=artefacts / "text-to-video.png")
        return editor

    def test_the_video_shows_on_the_save_node(self, finished: Editor) -> None:
        state = finished.page.evaluate(
            """() => { const video = document.querySelector('video')
                return video && [video.videoWidth, video.videoHeight, video.duration] }"""
        )
        problem = finished.page.evaluate("() => app.lastExecutionError?.exception_message ?? app.lastNodeErrors")
        assert state, problem
        assert state[:2] == [832, 480]
        assert state[2] == pytest.approx(81 / 16, abs=0.01)

    def test_dropping_the_clip_restores_the_graph(self, finished: Editor, with_models: Server, page: Page) -> None:
        address = finished.page.evaluate("() => document.querySelector('video').src")
        editor = Editor(page, with_models)
        page.evaluate("() => app.rootGraph.clear()")
        editor.drop(address)
        page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'WanCoreSaveVideo')")
        file = workflow_of(TITLES[0])
        restored = editor.graph()
        assert editor.missing_nodes() == []
        assert [node["type"] for node in restored["nodes"]] == [node["type"] for node in file["nodes"]]
        assert host_of(restored)["widgets_values"] == host_of(file)["widgets_values"]  # the seed of that run too
