"""Addresses of published files: those that the bundled workflows offer, for every file that they load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from wancore.wan_core.weights.downloads import HUB, address_of, with_address

WORKFLOWS = Path(__file__).parents[2] / "workflows"
LINK = re.compile(rf"{HUB}/[^\s\")\\]+\.(?:safetensors|gguf)")
LOADED = ("model", "low_model", "text_encoder", "vae", "lora_high", "lora_low", "clip_name", "audio_encoder_name")


def files_of(prompt: dict[str, Any]) -> set[str]:
    inputs = [node["inputs"] for node in prompt.values() if node["class_type"].startswith("WanCoreLo")]
    return {each[name] for each in inputs for name in LOADED if isinstance(each.get(name), str)} - {"auto", "none"}


@pytest.mark.parametrize("file", sorted(WORKFLOWS.glob("*.json")), ids=lambda file: file.stem)
def test_every_file_of_a_workflow_has_the_address_that_it_offers(file: Path) -> None:
    offered = {link.rpartition("/")[2]: link for link in LINK.findall(file.read_text(encoding="utf-8"))}
    loaded = files_of(json.loads((WORKFLOWS / "api" / file.name).read_text(encoding="utf-8")))
    assert loaded and loaded <= offered.keys()
    assert {name: address_of(name) for name in offered} == offered


def test_what_nobody_publishes_has_no_address() -> None:
    for name in ("wan2.2_vae.safetensors.part", "my_wan2.2_vae.safetensors", "style.safetensors", ""):
        assert address_of(name) is None and with_address(name) == name
    assert address_of("wan\\vae/wan2.2_vae.safetensors") == address_of("wan2.2_vae.safetensors")


def test_the_readme_s_files_have_an_address() -> None:
    """All rows of its table but those of names that are cut short."""
    text = (WORKFLOWS.parent / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"`(\w[\w.-]*\.(?:safetensors|gguf))`", text)
    assert len(names) > 10 and not [name for name in names if address_of(name) is None]
