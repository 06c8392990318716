"""The bundled workflows that follow a video or a camera path, on the real server, to the files that they save."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from refresh_workflows import PROMPTS
from setup.client import Client, PromptFailedError
from template_media import write_media
from workflow_api import to_prompt

VACE, CONTROL, CAMERA = "Wan 2.2 VACE to Video", "Wan 2.2 Fun Control to Video", "Wan 2.2 Fun Camera to Video"
TASKS = {VACE: "WanCoreVaceToVideo", CONTROL: "WanCoreFunControlToVideo", CAMERA: "WanCoreFunCameraToVideo"}
NODES = {VACE: 5, CONTROL: 5, CAMERA: 4}  # at the top level, the note included
SMALL = {"size": "custom", "width": 96, "height": 64, "seconds": 0.5}
BYPASS = 4  # a node's mode


@pytest.fixture(scope="module", autouse=True)
def media(base: Path) -> None:
    write_media(base)


def small(prompt: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    """The prompt with a smaller and shorter clip; nothing else is changed."""
    (task,) = (node for node in prompt.values() if node["class_type"] in TASKS.values())
    task["inputs"] |= {**SMALL, **inputs}
    return prompt


def clip_of(client: Client, prompt: dict[str, Any], base: Path) -> tuple[tuple[int, int], Fraction | None, int]:
    """Size, rate and frames of the one clip that is saved."""
    (saved,) = client.run(prompt).files()
    with av.open(str(base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        size, rate = (stream.codec_context.width, stream.codec_context.height), stream.average_rate
    assert frames[0].std() > 0, "the first frame is flat"
    return size, rate, len(frames)


@pytest.mark.parametrize("title", TASKS)
def test_they_are_small_and_name_their_files(workflows: dict[str, Any], title: str) -> None:
    workflow = workflows[title]
    assert len(workflow["nodes"]) == NODES[title]
    graphs = [workflow, *workflow["definitions"]["subgraphs"]]
    models = [model for graph in graphs for node in graph["nodes"] for model in node["properties"].get("models", [])]
    assert len({model["name"] for model in models}) == len(models) == 6
    note = next(node for node in workflow["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    assert all(model["url"] in note and model["url"].endswith(model["name"]) for model in models)


@pytest.mark.slow
@pytest.mark.parametrize("title", TASKS)
def test_each_makes_a_clip(client: Client, base: Path, title: str) -> None:
    prompt = json.loads((PROMPTS / f"{title}.json").read_text(encoding="utf-8"))
    assert clip_of(client, small(prompt), base) == ((96, 64), Fraction(16), 9)


@pytest.mark.slow
def test_references_are_no_part_of_the_clip(
    client: Client, base: Path, workflows: dict[str, Any], object_info: dict[str, Any]
) -> None:
    workflow = json.loads(json.dumps(workflows[VACE]))
    for node in workflow["nodes"]:
        node["mode"] = 0 if node["mode"] == BYPASS else node["mode"]
    prompt = to_prompt(workflow, object_info)
    (task,) = (node for node in prompt.values() if node["class_type"] == TASKS[VACE])
    assert "reference_image" in task["inputs"]
    assert clip_of(client, small(prompt, seconds=0.0), base)[2] == 17  # 30 frames at 24 per second are 20 at 16


def test_another_tasks_model_is_refused(client: Client) -> None:
    prompt = small(json.loads((PROMPTS / f"{CAMERA}.json").read_text(encoding="utf-8")))
    for node in prompt.values():
        if node["class_type"] == "WanCoreLoadModels":
            node["inputs"] |= {
                f"{which}model": f"wan2.2_i2v_{expert}_noise_14B_fp8_scaled.safetensors"
                for which, expert in (("", "high"), ("low_", "low"))
            }
    with pytest.raises(PromptFailedError, match="does not take a camera path"):
        client.run(prompt)
