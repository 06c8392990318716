"""A newcomer's first clip: open the template, press Run with no widget touched, see the video, drop it back.

It is the one run of this template at its full size: what the saved file has to be is checked here, too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import av
import pytest
from playwright.sync_api import Browser, Page
from setup.client import Client
from setup.server import Server
from workflow_api import to_prompt

from .conftest import Editor, host_of, workflow_of

TITLE = "Wan 2.2 Text to Video"
FRAMES, SIZE, RATE = 81, (832, 480), Fraction(16)  # what the template opens with
TIMEOUT = 1800  # seconds for a clip of the full size on two slow cores
BT709 = 1  # the number of BT.709 in H.273, for primaries, transfer and matrix alike
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
    with editor.page.expect_response(lambda answer: answer.request.method == "POST" and answer.url.endswith("/prompt")):
        editor.page.get_by_test_id("queue-button").click()
    _wait_behind_another_page(editor)
    editor.page.wait_for_function(ENDED)
    editor.page.wait_for_timeout(1000)  # the player lays itself out
    editor.page.screenshot(path=artefacts / "text-to-video-after-run.png")
    yield editor
    context.close()


def _wait_behind_another_page(editor: Editor) -> None:
    """As a user waits for minutes. In front, the page of a running prompt draws 60 pictures a second: 0.3 of a core."""
    client, other = Client(editor.server.address), editor.page.context.new_page()
    other.bring_to_front()
    end = time.monotonic() + TIMEOUT
    while any(client.get("/queue").values()):
        assert time.monotonic() < end, "the clip did not end"
        other.wait_for_timeout(500)  # milliseconds
    other.close()
    editor.page.bring_to_front()


def test_the_video_shows_on_the_save_node(finished: Editor) -> None:
    state = finished.page.evaluate(STATE)
    assert state, finished.page.evaluate("() => app.lastExecutionError?.exception_message ?? app.lastNodeErrors")
    assert state[:2] == [*SIZE]
    assert state[2] == pytest.approx(FRAMES / RATE, abs=0.01)


@pytest.fixture(scope="module")
def saved(finished: Editor) -> dict[str, str]:
    """The file that the browser shows, as the server names it."""
    shown = parse_qs(urlsplit(finished.page.evaluate("() => document.querySelector('video').src")).query)
    return {name: shown.get(name, [""])[0] for name in ("filename", "subfolder", "type")}


@pytest.fixture(scope="module")
def video(saved: dict[str, str], pocket_base: Path) -> Path:
    return pocket_base / saved["type"] / saved["subfolder"] / saved["filename"]


def test_it_is_one_whole_clip(video: Path) -> None:
    assert video.suffix == ".mp4"
    assert [file.name for file in video.parent.iterdir() if file.name.startswith(".") or "partial" in file.name] == []
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert (stream.codec_context.width, stream.codec_context.height) == SIZE
        assert stream.average_rate == RATE
        assert stream.codec_context.pix_fmt == "yuv420p"
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(frames) == FRAMES
    assert frames[0].std() > 0, "the first frame is flat"


def test_it_has_the_right_colour_tags(video: Path) -> None:
    with av.open(str(video)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
    assert tuple(map(int, tags)) == (BT709, BT709, BT709, 1)  # range 1: limited (MPEG)


def test_it_carries_prompt_and_workflow(video: Path, with_models: Server) -> None:
    with av.open(str(video)) as container:
        metadata = container.metadata
    carried, workflow = json.loads(metadata["workflow"]), workflow_of(TITLE)
    assert [node["type"] for node in carried["nodes"]] == [node["type"] for node in workflow["nodes"]]
    assert host_of(carried)["widgets_values"] == host_of(workflow)["widgets_values"]
    object_info: dict[str, Any] = Client(with_models.address).get("/object_info")
    expected = to_prompt(workflow, object_info)
    sent = json.loads(metadata["prompt"])
    assert {key: node["inputs"] for key, node in sent.items()} == {
        key: node["inputs"] for key, node in expected.items()
    }


def test_it_is_served_to_the_browser(saved: dict[str, str], with_models: Server, video: Path) -> None:
    assert Client(with_models.address).view(saved) == video.read_bytes()


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
