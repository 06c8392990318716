"""tools/workflow_api.py against the front end's own graphToPrompt, on our templates and on ComfyUI's for Wan."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import comfyui_workflow_templates_json
import pytest
from playwright.sync_api import Browser
from setup.places import ROOT
from setup.server import Server
from workflow_api import to_prompt

from .conftest import Editor

NATIVE = (
    "03_video_wan2_2_14B_i2v_subgraphed",
    "image_to_video_wan",
    "text_to_video_wan",
    "video_wan2_2_14B_animate",
    "video_wan2_2_14B_flf2v",
    "video_wan2_2_14B_fun_camera",
    "video_wan2_2_14B_fun_control",
    "video_wan2_2_14B_fun_inpaint",
    "video_wan2_2_14B_i2v",
    "video_wan2_2_14B_s2v",
    "video_wan2_2_14B_t2v",
    "video_wan2_2_5B_ti2v",
    "video_wan_vace_14B_t2v",
    "video_wanmove_480p",
)
NATIVE_FOLDER = Path(str(comfyui_workflow_templates_json.__file__)).parent / "templates"
FILES = [*sorted((ROOT / "workflows").glob("*.json")), *(NATIVE_FOLDER / f"{name}.json" for name in NATIVE)]
FILES = [file for file in FILES if file.is_file()]  # the set of native templates changes from release to release


@pytest.fixture(scope="module")
def editor(browser: Browser, without_models: Server) -> Editor:
    return Editor(browser.new_page(), without_models)


@pytest.fixture(scope="module")
def object_info(without_models: Server) -> dict[str, Any]:
    with urllib.request.urlopen(f"{without_models.address}/object_info") as answer:
        return json.load(answer)


def without_titles(prompt: dict[str, Any]) -> dict[str, Any]:
    """The front end translates the titles of native nodes; they mean nothing to the server."""
    return {key: {name: part for name, part in entry.items() if name != "_meta"} for key, entry in prompt.items()}


def without_versions(prompt: dict[str, Any]) -> dict[str, Any]:
    """Newer front ends say the pack of a node and its version, too."""
    return {key: {**entry, "_meta": {"title": entry["_meta"]["title"]}} for key, entry in prompt.items()}


def test_there_are_enough_native_templates() -> None:
    assert len(FILES) >= 12


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_equals_what_the_front_end_sends(editor: Editor, object_info: dict[str, Any], file: Path) -> None:
    workflow = json.loads(file.read_text(encoding="utf-8"))
    editor.load(workflow)
    sent = editor.prompt()
    made = to_prompt(workflow, object_info)
    assert without_titles(made) == without_titles(sent)
    made, sent = without_versions(made), without_versions(sent)
    ours = [key for key, entry in made.items() if entry["class_type"].startswith("WanCore")]
    assert {key: made[key] for key in ours} == {key: sent[key] for key in ours}


@pytest.mark.parametrize("mode", [2, 4], ids=["muted", "bypassed"])
def test_equals_it_with_the_lora_pair_switched_off(editor: Editor, object_info: dict[str, Any], mode: int) -> None:
    workflow = json.loads((ROOT / "workflows" / "Wan 2.2 Text to Video.json").read_text(encoding="utf-8"))
    pair = next(n for n in workflow["definitions"]["subgraphs"][0]["nodes"] if n["type"] == "WanCoreLoraPair")
    pair["mode"] = mode
    editor.load(workflow)
    made = to_prompt(workflow, object_info)
    assert without_versions(made) == without_versions(editor.prompt())
    sampler = next(entry for entry in made.values() if entry["class_type"] == "WanCoreKSampler")
    loader = next(key for key, entry in made.items() if entry["class_type"] == "WanCoreLoadModels")
    assert sampler["inputs"].get("low") == ([loader, 1] if mode == 4 else None)
