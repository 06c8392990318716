"""The subgraph blueprints hold the same graphs as the templates of the same name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))


def read(folder: str, name: str) -> dict[str, Any]:
    return json.loads((ROOT / folder / f"{name}.json").read_text(encoding="utf-8"))


def graph_of(workflow: dict[str, Any]) -> dict[str, Any]:
    (subgraph,) = workflow["definitions"]["subgraphs"]
    return {name: part for name, part in subgraph.items() if name not in ("id", "category")}


def host_of(workflow: dict[str, Any]) -> dict[str, Any]:
    (subgraph,) = workflow["definitions"]["subgraphs"]
    (host,) = (node for node in workflow["nodes"] if node["type"] == subgraph["id"])
    return host


@pytest.mark.parametrize("name", [file.stem for file in BLUEPRINTS])
def test_blueprint_is_the_graph_of_its_template(name: str) -> None:
    blueprint, template = read("subgraphs", name), read("workflows", name)
    assert graph_of(blueprint) == graph_of(template)
    assert host_of(blueprint)["widgets_values"] == host_of(template)["widgets_values"]
    assert host_of(blueprint)["type"] != host_of(template)["type"]  # both may be in one workflow
    assert len(blueprint["nodes"]) == 1 and blueprint["links"] == []


def test_every_template_has_one() -> None:
    templates = sorted(file.stem for file in (ROOT / "workflows").glob("*.json"))
    # The GGUF template is the text to video one with other file names: its blueprint would be a second of the same.
    assert [file.stem for file in BLUEPRINTS] == [title for title in templates if not title.endswith("GGUF")]
