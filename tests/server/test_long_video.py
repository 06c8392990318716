"""A long video on the real server: segments with their prompts, and a server that is killed in the second of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
import torch
from graphs import Nodes, Prompt, text_to_video
from setup.client import Client, Progress
from setup.server import Launch, serve
from workflow_api import to_prompt

from .test_resume import killed_after, latent_of

FRAMES, OVERLAP = 9, 4  # of a segment, and of what two of them share


def long_prompt(nodes: Nodes, prefix: str, **plan: Any) -> Prompt:
    """Three segments of 64 x 64 pixels."""
    prompt = text_to_video(nodes, prefix=prefix, steps=12, seed=5, sampler_name="dpmpp_2m", scheduler="simple")
    links = {"positive": ["text", 0], "negative": ["text", 1], "latent": ["size", 0], "vae": ["models", 3]}
    texts = "a red circle moves down\n---\na blue square moves up"
    prompt["plan"] = nodes(
        "WanCoreLongVideo", clip=["models", 2], **links, **{"next_prompts": texts, "overlap": OVERLAP, **plan}
    )
    sampler = prompt["sampler"]["inputs"]
    sampler |= {"positive": ["plan", 0], "negative": ["plan", 1], "latent": ["plan", 2]}
    return prompt


def as_latent(nodes: Nodes, prompt: Prompt) -> Prompt:
    kept = {name: node for name, node in prompt.items() if name not in ("decode", "save")}
    return {**kept, "save": nodes("SaveLatent", samples=["sampler", 0], filename_prefix="long")}


def test_a_video_of_three_segments(client: Client, nodes: Nodes, base: Path) -> None:
    """As many frames as the node says, with what was measured on the nodes."""
    texts: list[str] = []
    bar: list[tuple[float, float]] = []

    def follow(moment: Progress) -> None:
        if moment.text:
            texts.append(moment.text)
        elif moment.node_id == "sampler":
            bar.append((moment.value, moment.maximum))

    prompt = long_prompt(nodes, "long")
    (saved,) = client.run(prompt, on_progress=follow).files()
    with av.open(str(base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 25
    said = "\n".join(texts)
    assert f"3 segments of {FRAMES} frames, {OVERLAP} shared: 25 frames" in said
    assert "segment 2 of 3" in said and "drift from segment 1" in said and "seams" in said
    values = [value for value, total in bar if total == 36]  # a busy server leaves steps out
    assert values == sorted(set(values)), "one bar over all segments"
    assert {-(-value // 12) for value in values} == {1, 2, 3}


def test_a_server_killed_in_the_second_segment_resumes(
    launch: Launch, client: Client, nodes: Nodes, base: Path, tmp_path: Path
) -> None:
    folder = base / "user" / "wancore" / "segments"
    prompt = as_latent(nodes, long_prompt(nodes, "long", seeds="1: 31"))
    before = len(list(folder.glob("*.safetensors")))
    with serve(launch, tmp_path / "first.log") as first:
        killed_after(first, prompt, before + 1, folder)
    assert len(list(folder.glob("*.safetensors"))) == before + 1, "killed in the second segment"
    texts: list[str] = []
    resumed = latent_of(client, prompt, texts)  # another process, which never saw that run
    assert "segment 1 of 3: from the disk" in texts
    for file in folder.glob("*.safetensors"):
        file.unlink()
    prompt["save"]["inputs"]["filename_prefix"] = "whole"
    prompt["sampler"]["inputs"]["end_at_step"] = 9998
    assert torch.equal(resumed, latent_of(client, prompt))


@pytest.mark.slow
def test_the_template_makes_a_video(client: Client, base: Path, workflows: dict[str, Any], object_info: dict[str, Any]):
    """With its prompts, smaller and shorter."""
    prompt = to_prompt(workflows["Wan 2.2 Long Video"], object_info)
    (size,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "WanCoreTextToVideo")
    size |= {"size": "custom", "width": 64, "height": 64, "seconds": 1.0}
    (saved,) = client.run(prompt).files()
    with av.open(str(base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 17 + 2 * (16 - 12 + 4)
