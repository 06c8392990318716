"""The bundled templates in a real browser: what a newcomer sees without the files, and with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from setup.places import ROOT
from setup.server import Server

from .conftest import Editor, host_of, workflow_of

TITLES = {  # nodes at the top level, files to download
    "Wan 2.2 Text to Video": (3, 6),
    "Wan 2.2 Text to Video GGUF": (3, 6),
    "Wan 2.2 Text to Image": (3, 6),
    "Wan 2.2 Image to Video": (4, 6),
    "Wan 2.2 First-Last Frame to Video": (5, 6),
    "Wan 2.2 5B Text and Image to Video": (4, 4),
    "Wan 2.2 Sound to Video": (5, 4),
    "Wan 2.2 VACE to Video": (5, 6),
    "Wan 2.2 Fun Control to Video": (5, 6),
    "Wan 2.2 Fun Camera to Video": (4, 6),
    "Wan 2.2 Long Video": (3, 6),
    "Wan 2.2 Animate": (6, 4),
}
MEDIA = ("LoadImage", "LoadAudio", "LoadVideo")  # nodes whose file a newcomer lacks, too


def models_of(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """Every file that the workflow says it needs."""
    graphs = [workflow, *workflow["definitions"]["subgraphs"]]
    return [model for graph in graphs for node in graph["nodes"] for model in node["properties"].get("models", [])]


@pytest.mark.parametrize("title", [title for title in TITLES if "GGUF" not in title])  # ComfyUI downloads no GGUF
def test_without_models_the_pane_lists_exactly_the_files(page: Page, without_models: Server, title: str) -> None:
    editor = Editor(page, without_models)
    editor.open_template(title)
    assert editor.missing_nodes() == []
    page.get_by_test_id("error-overlay-see-errors").click()
    rows = page.get_by_test_id("missing-model-importable-rows")
    rows.wait_for()
    workflow = workflow_of(title)
    media = any(node["type"] in MEDIA and node["mode"] == 0 for node in workflow["nodes"])
    assert page.locator("[data-testid^=error-group-missing-]").count() == 1 + media  # models, and no nodes
    models = models_of(workflow)
    lines = [line.strip() for line in rows.inner_text().splitlines() if line.strip() not in ("", "Download")]
    assert sorted(lines) == sorted(text for model in models for text in (model["name"], model["directory"]))
    assert rows.get_by_test_id("missing-model-download").count() == len(models) == TITLES[title][1]
    assert len({model["url"] for model in models}) == TITLES[title][1]


@pytest.fixture(scope="module")
def editor(browser: Browser, with_models: Server) -> Iterator[Editor]:
    """One page for all templates: opening it takes longer than all that is looked at."""
    context = browser.new_context(viewport={"width": 1680, "height": 1000})
    yield Editor(context.new_page(), with_models)
    context.close()


@pytest.mark.parametrize("title", TITLES)
def test_with_models_it_opens_as_it_was_saved(editor: Editor, artefacts: Path, title: str) -> None:
    """The template and its blueprint, one after the other."""
    page = editor.page
    editor.open_template(title)
    page.wait_for_timeout(1000)  # the pane would come up by now
    assert editor.missing_nodes() == []
    assert page.get_by_test_id("missing-model-importable-rows").count() == 0
    page.screenshot(path=artefacts / f"{title}.png")
    _is_what_the_front_end_saves(editor.graph(), title)
    if not (ROOT / "subgraphs" / f"{title}.json").is_file():  # the same subgraph with other files in it
        return
    editor.load(_blueprint(page, title))
    assert editor.missing_nodes() == []
    assert host_of(editor.graph())["widgets_values"] == host_of(workflow_of(title))["widgets_values"]


def _is_what_the_front_end_saves(saved: dict[str, Any], title: str) -> None:
    file = workflow_of(title)
    assert [node["type"] for node in saved["nodes"]] == [node["type"] for node in file["nodes"]]
    assert len(saved["nodes"]) == TITLES[title][0]
    assert host_of(saved)["widgets_values"] == host_of(file)["widgets_values"]
    inner = {node["id"]: node for node in saved["definitions"]["subgraphs"][0]["nodes"]}
    for node in file["definitions"]["subgraphs"][0]["nodes"]:
        assert inner[node["id"]].get("widgets_values", []) == node["widgets_values"], node["type"]
        assert inner[node["id"]]["size"] == node["size"], f"{node['type']} is too small for its widgets"


def _blueprint(page: Page, title: str) -> dict[str, Any]:
    """The subgraph of this name as the server lists it."""
    return page.evaluate(
        """async title => {
            const listed = Object.entries(await (await fetch('/global_subgraphs')).json())
            const [key] = listed.find(([, entry]) => entry.name === title)
            return JSON.parse((await (await fetch(`/global_subgraphs/${key}`)).json()).data)
        }""",
        title,
    )
