"""The bundled workflows, unedited, on the real server, to the files that they save."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from setup.client import Client, Result
from workflow_api import to_prompt

FRAMES, SIZE, RATE = 81, (832, 480), Fraction(16)  # what the template opens with
BT709 = 1  # the number of BT.709 in H.273, for primaries, transfer and matrix alike


@pytest.fixture(scope="module")
def video_run(client: Client, workflows: dict[str, Any], object_info: dict[str, Any]) -> Result:
    workflow = workflows["Wan 2.2 Text to Video"]
    return client.run(to_prompt(workflow, object_info), workflow=workflow)


@pytest.fixture(scope="module")
def video(video_run: Result, base: Path) -> Path:
    (saved,) = video_run.files()
    return base / saved["type"] / saved["subfolder"] / saved["filename"]


@pytest.mark.slow
def test_text_to_video_saves_one_whole_clip(video: Path) -> None:
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


@pytest.mark.slow
def test_text_to_video_has_the_right_colour_tags(video: Path) -> None:
    with av.open(str(video)) as container:
        context = container.streams.video[0].codec_context
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
    assert tuple(map(int, tags)) == (BT709, BT709, BT709, 1)  # range 1: limited (MPEG)


@pytest.mark.slow
def test_text_to_video_carries_prompt_and_workflow(
    video: Path, client: Client, workflows: dict[str, Any], object_info: dict[str, Any]
) -> None:
    workflow = workflows["Wan 2.2 Text to Video"]
    with av.open(str(video)) as container:
        metadata = container.metadata
    assert json.loads(metadata["workflow"]) == workflow
    saved = json.loads(metadata["prompt"])
    expected = to_prompt(workflow, object_info)
    assert {key: node["inputs"] for key, node in saved.items()} == {
        key: node["inputs"] for key, node in expected.items()
    }


@pytest.mark.slow
def test_text_to_video_is_served_to_the_browser(video_run: Result, client: Client, video: Path) -> None:
    (saved,) = video_run.files()
    assert client.view(saved) == video.read_bytes()


@pytest.mark.slow
def test_text_to_image_saves_a_picture(client: Client, workflows: dict[str, Any], object_info: dict[str, Any]) -> None:
    workflow = workflows["Wan 2.2 Text to Image"]
    result = client.run(to_prompt(workflow, object_info), workflow=workflow)
    (saved,) = result.files()
    image = Image.open(io.BytesIO(client.view(saved)))
    assert (image.format, image.size, image.mode) == ("PNG", (1024, 1024), "RGB")
    assert json.loads(image.info["workflow"]) == workflow
    low, high = image.convert("L").getextrema()
    assert high > low, "the picture is flat"
