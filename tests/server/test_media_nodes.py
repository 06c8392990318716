"""Latent, decode and save nodes on the real server: caching, the native video nodes, and refusals on the right node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest
from setup.client import Client, PromptFailedError, PromptRefusedError

WORKFLOW = {"nodes": [{"id": 1, "title": "ü"}], "version": 0.4}
VAE = "wan_2.1_vae.safetensors"


@pytest.fixture
def graph(nodes) -> dict[str, Any]:
    """Two noiseless clips of one second, decoded and saved."""
    size = {"size": "custom", "width": 64, "height": 48, "seconds": 1.0}
    return {
        "1": nodes("VAELoader", vae_name=VAE),
        "2": nodes("WanCoreTextToVideo", vae=["1", 0], batch_size=2, **size),
        "3": nodes("WanCoreVAEDecode", latent=["2", 0], vae=["1", 0]),
        "4": nodes("WanCoreSaveVideo", video=["3", 0], filename_prefix="media/Wan"),
    }


def paths(base: Path, files: list[dict[str, str]]) -> list[Path]:
    return [base / file["type"] / file["subfolder"] / file["filename"] for file in files]


def test_a_batch_becomes_one_file_each(client: Client, graph, base):
    result = client.run(graph, workflow=WORKFLOW)
    files = paths(base, result.files())
    assert len(set(files)) == 2
    for path in files:
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == 17
            assert json.loads(container.metadata["workflow"]) == WORKFLOW
            assert json.loads(container.metadata["prompt"]).keys() == graph.keys()


def test_images_linked_after_a_run_are_there(client: Client, graph, nodes):
    client.run(graph)
    linked = {**graph, "5": nodes("PreviewImage", images=["3", 1])}
    assert len(client.run(linked).outputs["5"]["images"]) == 34
    again = client.run(linked)
    assert "3" not in again.seconds, "the decoded frames come from the cache"


def test_native_video_nodes_take_the_video(client: Client, graph, nodes, base):
    graph["4"] = nodes("SaveVideo", video=["3", 0], filename_prefix="native/Wan")
    graph["4"]["inputs"]["codec"] = "auto"
    graph["5"] = nodes("GetVideoComponents", video=["3", 0])
    graph["6"] = nodes("CreateVideo", images=["5", 0], fps=["5", 2])
    graph["7"] = nodes("WanCoreSaveVideo", video=["6", 0], filename_prefix="native/Again", format="vp9")
    files = paths(base, client.run(graph).files())
    assert sorted(path.suffix for path in files) == [".mp4", ".mp4", ".webm", ".webm"]
    for path in files:
        with av.open(str(path)) as container:
            assert container.streams.video[0].average_rate == 16
            assert len(list(container.decode(video=0))) == 17


@pytest.mark.parametrize(
    "node, inputs, remedy",
    [
        ("2", {"length": 80}, "Set length to 77 or 81"),
        ("2", {"width": 1080}, "Set width to 1072 or 1088"),
        ("4", {"filename_prefix": "../Wan"}, "Remove the drive, the leading slash or the .."),
    ],
)
def test_bad_input_is_refused_on_its_node_before_the_run(client: Client, graph, node, inputs, remedy):
    graph[node]["inputs"].update(inputs)
    with pytest.raises(PromptRefusedError) as caught:
        client.run(graph)
    assert list(caught.value.node_errors) == [node]
    assert remedy in str(caught.value)


def test_another_models_vae_is_refused_on_the_decode_node(client: Client, graph, nodes):
    graph["8"] = nodes("VAELoader", vae_name="pixel_space")
    graph["3"]["inputs"]["vae"] = ["8", 0]
    with pytest.raises(PromptFailedError) as caught:
        client.run(graph)
    assert caught.value.node_id == "3"
    assert caught.value.error_type.endswith("WrongModelError")


def test_every_node_has_a_help_page(client: Client, ours, launch):
    for name in ours:
        page = client.fetch(f"/extensions/ComfyUI-WanCore/docs/{name}.md").decode()
        assert page.startswith(f"# {ours[name]['display_name']}"), name
