"""The bundled workflows that start from pictures, on the real server, to the files that they save."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from setup.client import Client, PromptFailedError
from workflow_api import set_widget, to_prompt

IMAGE, ENDS, SMALL = "Wan 2.2 Image to Video", "Wan 2.2 First-Last Frame to Video", "Wan 2.2 5B Text and Image to Video"
LOAD_IMAGE = 4  # its number in the templates
SIZE = {"size": "custom", "width": 96, "height": 64}
BYPASS = 4  # a node's mode


@pytest.fixture(scope="module", autouse=True)
def example(base: Path) -> Iterator[None]:
    """The picture that the templates name, as ComfyUI brings one along."""
    path = base / "input" / "example.png"
    path.parent.mkdir(exist_ok=True)
    rows, columns = np.mgrid[0:240, 0:416]
    Image.fromarray(np.stack((rows, columns // 2, 255 - rows), axis=-1).astype(np.uint8)).save(path)
    yield
    path.unlink()


def run(
    client: Client, workflow: dict[str, Any], object_info: dict[str, Any], base: Path, **inputs: Any
) -> dict[str, Any]:
    """Size, rate, frames and steps of the one clip that it saves; `inputs` are others of Wan Image to Video."""
    shown: list[str] = []
    prompt = to_prompt(workflow, object_info)
    (sized,) = (node for node in prompt.values() if node["class_type"] == "WanCoreImageToVideo")
    sized["inputs"] |= inputs
    result = client.run(prompt, workflow=workflow, on_progress=lambda moment: shown.append(moment.text))
    (saved,) = result.files()
    with av.open(str(base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        size, rate = (stream.codec_context.width, stream.codec_context.height), stream.average_rate
    assert frames[0].std() > 0, "the first frame is flat"
    (steps,) = {line for text in shown for line in text.splitlines() if " cfg " in line}
    return {"size": size, "rate": rate, "frames": len(frames), "steps": steps}


@pytest.fixture
def edited(workflows: dict[str, Any], object_info: dict[str, Any]):
    """A copy of a template with other values in its widgets."""

    def edit(title: str, **widgets: Any) -> dict[str, Any]:
        workflow = copy.deepcopy(workflows[title])
        for name, value in widgets.items():
            set_widget(workflow, title, name, value, object_info)
        return workflow

    return edit


def models_of(workflow: dict[str, Any]) -> list[dict[str, str]]:
    graphs = [workflow, *workflow["definitions"]["subgraphs"]]
    return [model for graph in graphs for node in graph["nodes"] for model in node["properties"].get("models", [])]


@pytest.mark.parametrize(("title", "nodes", "files"), [(IMAGE, 4, 6), (ENDS, 5, 6), (SMALL, 4, 4)])
def test_templates_are_small_and_name_their_files(workflows: dict[str, Any], title: str, nodes: int, files: int):
    workflow = workflows[title]
    assert len(workflow["nodes"]) == nodes
    models = models_of(workflow)
    assert len({model["name"] for model in models}) == len(models) == files
    note = next(node for node in workflow["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    assert all(model["url"] in note and model["url"].endswith(model["name"]) for model in models)


@pytest.mark.slow
@pytest.mark.parametrize("title", [IMAGE, ENDS])
def test_one_and_two_pictures(client: Client, edited: Any, object_info: dict[str, Any], base: Path, title: str):
    clip = run(client, edited(title, seconds=1.0), object_info, base, **SIZE)
    steps = "4 steps: 2 high + 2 low, cfg 1, shift 5"
    assert clip == {"size": (96, 64), "rate": Fraction(16), "frames": 17, "steps": steps}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("picture", "fast"),
    [(False, True), (True, True), (False, False)],
    ids=["text", "text and picture", "text, LoRA bypassed"],
)
def test_the_5b(client: Client, edited: Any, object_info: dict[str, Any], base: Path, picture: bool, fast: bool):
    workflow = edited(SMALL, seconds=0.5)
    (graph,) = workflow["definitions"]["subgraphs"]
    load = next(node for node in workflow["nodes"] if node["id"] == LOAD_IMAGE)
    lora = next(node for node in graph["nodes"] if node["type"] == "WanCoreLoraPair")
    assert (load["mode"], lora["mode"]) == (BYPASS, 0)
    load["mode"], lora["mode"] = 0 if picture else BYPASS, 0 if fast else BYPASS
    clip = run(client, workflow, object_info, base, **SIZE)
    steps = "4 steps, cfg 1, shift 5" if fast else "50 steps, cfg 5, shift 5"
    assert clip == {"size": (96, 64), "rate": Fraction(24), "frames": 13, "steps": steps}


def test_a_missing_picture_is_refused_on_its_node(client: Client, edited: Any, object_info: dict[str, Any]):
    workflow = edited(IMAGE)
    next(node for node in workflow["nodes"] if node["id"] == LOAD_IMAGE)["mode"] = BYPASS
    with pytest.raises(PromptFailedError, match="no picture to make a clip from"):
        client.run(to_prompt(workflow, object_info))


def test_a_text_model_does_not_take_a_picture(client: Client, edited: Any, object_info: dict[str, Any]):
    workflow = edited(IMAGE, seconds=0.25, size="480p 1:1 (640x640)", vae="wan2.2_vae.safetensors")
    with pytest.raises(PromptFailedError, match=r"wan_2\.1_vae\.safetensors"):
        client.run(to_prompt(workflow, object_info))
