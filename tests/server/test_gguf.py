"""The bundled GGUF workflow on the real server, with miniature files in the place of the published ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from pocket_gguf import HIGH, LOW, TEXT_ENCODER, write_family
from setup.client import Client
from workflow_api import to_prompt

TITLE = "Wan 2.2 Text to Video GGUF"


@pytest.fixture(scope="module")
def files(base: Path) -> Iterator[None]:
    """Put there while the server runs: ComfyUI lists new files when the page is refreshed."""
    written = write_family(base / "models")
    yield
    for path in written:  # with a second text encoder, auto could not decide in the tests after these
        path.unlink()


def test_note_has_link_size_and_folder_of_every_file(workflows: dict[str, Any]) -> None:
    """The front end downloads no GGUF files."""
    (note,) = (node for node in workflows[TITLE]["nodes"] if node["type"] == "MarkdownNote")
    text = note["widgets_values"][0]
    places = {HIGH: "diffusion_models", LOW: "diffusion_models", TEXT_ENCODER: "text_encoders"}
    for name, folder in places.items():
        (line,) = (line for line in text.splitlines() if name in line)
        assert re.fullmatch(rf"- \[{re.escape(name)}\]\(https://\S+/{re.escape(name)}\) \(\d+\.\d GB\)", line)
        headings = [line for line in text[: text.index(name)].splitlines() if line.startswith("**models/")]
        assert headings[-1] == f"**models/{folder}**"
    assert "fp8_scaled" not in str(workflows[TITLE])


def test_a_few_frames(files: None, client: Client, workflows: dict[str, Any], base: Path) -> None:
    prompt = to_prompt(workflows[TITLE], client.get("/object_info"))
    (latent,) = (node for node in prompt.values() if node["class_type"] == "WanCoreTextToVideo")
    latent["inputs"] |= {"length": 5, "size": "custom", "width": 64, "height": 64}
    result = client.run(prompt, workflow=workflows[TITLE])
    (saved,) = result.files()
    with av.open(str(base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 5 and frames[0].std() > 0


def test_swapping_a_quantised_file_is_a_change_of_one_widget(
    files: None, client: Client, workflows: dict[str, Any]
) -> None:
    prompt = to_prompt(workflows["Wan 2.2 Text to Video"], client.get("/object_info"))
    (loader,) = (node for node in prompt.values() if node["class_type"] == "WanCoreLoadModels")
    (latent,) = (node for node in prompt.values() if node["class_type"] == "WanCoreTextToVideo")
    latent["inputs"] |= {"length": 5, "size": "custom", "width": 64, "height": 64}
    loader["inputs"]["text_encoder"] = TEXT_ENCODER
    assert client.run(prompt, workflow=workflows[TITLE]).files()
