"""A newcomer's first clip: open the template, press Run with no widget touched, see the video, drop it back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from setup.server import Server

from .conftest import Editor, host_of, workflow_of

TITLE = "Wan 2.2 Text to Video"
TIMEOUT = 1_800_000  # milliseconds for a clip of the full size on two slow cores
ENDED = "() => document.querySelector('video')?.readyState >= 2 || app.lastExecutionError || app.lastNodeErrors"
STATE = """() => { const video = document.querySelector('video')
    return video && [video.videoWidth, video.videoHeight, video.duration] }"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(browser: Browser, with_models: Server, artefacts: Path) -> Iterator[Editor]:
    """The editor after the run."""
    context = browser.new_context(viewport={"width": 1680, "height": 1000})
    editor = Editor(context.new_page(), with_models)
    editor.open_template(TITLE)
    editor.page.get_by_test_id("queue-button").click()
    editor.page.wait_for_function(ENDED, timeout=TIMEOUT)
    editor.page.wait_for_timeout(1000)  # the player lays itself out
    editor.page.screenshot(path=artefacts / "text-to-video-after-run.png")
    yield editor
    context.close()


def test_the_video_shows_on_the_save_node(finished: Editor) -> None:
    state = finished.page.evaluate(STATE)
    assert state, finished.page.evaluate("() => app.lastExecutionError?.exception_message ?? app.lastNodeErrors")
    assert state[:2] == [832, 480]
    assert state[2] == pytest.approx(81 / 16, abs=0.01)


def test_dropping_the_clip_restores_the_graph(finished: Editor, with_models: Server, page: Page) -> None:
    address = finished.page.evaluate("() => document.querySelector('video').src")
    editor = Editor(page, with_models)
    page.evaluate("() => app.rootGraph.clear()")
    editor.drop(address)
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'WanCoreSaveVideo')")
    restored, file = editor.graph(), workflow_of(TITLE)
    assert editor.missing_nodes() == []
    assert [node["type"] for node in restored["nodes"]] == [node["type"] for node in file["nodes"]]
    assert host_of(restored)["widgets_values"] == host_of(file)["widgets_values"]  # the seed of that run too
