"""Saved graphs to prompts, on small graphs; tests/browser compares with the real front end on real ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from workflow_api import WorkflowError, set_widget, to_prompt
from workflow_widgets import dynamic_prompt, read_widgets

NODES = {
    "Load": {
        "display_name": "Load a Model",
        "input": {"required": {"file": [["a.safetensors", "b.safetensors"], {}]}},
        "output": ["MODEL"],
    },
    "Patch": {
        "input": {"required": {"model": ["MODEL"], "strength": ["FLOAT", {"default": 1.0}]}},
        "output": ["MODEL"],
    },
    "Sample": {
        "display_name": "Sample",
        "input": {
            "required": {
                "steps": ["INT", {"default": 20}],
                "model": ["MODEL"],
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "text": ["STRING", {"dynamicPrompts": True}],
                "codec": ["COMFY_DYNAMICCOMBO_V3", {"options": [
                    {"key": "h264", "inputs": {"required": {"crf": ["INT", {"default": 23}]}}},
                    {"key": "png", "inputs": {}},
                ]}],
            },
            "optional": {"scale": ["FLOAT", {"default": 0.5}], "extra": ["MODEL"]},
        },
        "input_order": {"required": ["model", "seed", "steps", "text", "codec"], "optional": ["scale", "extra"]},
        "output": ["LATENT"],
    },
    "Save": {"input": {"required": {"latent": ["LATENT"], "sizes": ["COLORS", {}]}}, "output": []},
}  # fmt: skip
SAMPLE_VALUES = [7, "randomize", 4, "a fox", "h264", 18, 0.25]
SUBGRAPH = "11111111-2222-3333-4444-555555555555"


def node(identity: int, kind: str, links: dict[str, tuple[str, int | None]], values: list[Any], **more: Any) -> dict:
    widgets = {"file", "strength", "seed", "steps", "text", "value"}
    inputs = [
        {"name": name, "type": type_, "link": link, **({"widget": {"name": name}} if name in widgets else {})}
        for name, (type_, link) in links.items()
    ]
    outputs = [{"name": type_, "type": type_} for type_ in NODES.get(kind, {"output": ["*"]})["output"]]
    return {
        "id": identity,
        "type": kind,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "widgets_values": values,
    } | more


def inner_link(identity: int, origin: int, origin_slot: int, target: int, target_slot: int, type_: str) -> dict:
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, (identity, origin, origin_slot, target, target_slot, type_), strict=True))


@pytest.fixture
def flat() -> dict[str, Any]:
    """Load -> Patch -> Reroute -> Sample -> Save, and a note."""
    return {
        "last_node_id": 6,
        "nodes": [
            node(1, "Load", {}, ["b.safetensors"], title="My model"),
            node(2, "Patch", {"model": ("MODEL", 1)}, [0.8]),
            node(3, "Reroute", {"": ("*", 2)}, []),
            node(4, "Sample", {"model": ("MODEL", 3)}, SAMPLE_VALUES),
            node(5, "Save", {"latent": ("LATENT", 4)}, [["#ff0000", "#00ff00"]]),
            node(6, "MarkdownNote", {}, ["text"]),
        ],
        "links": [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "*"], [3, 3, 0, 4, 0, "*"], [4, 4, 0, 5, 0, "LATENT"]],
    }


@pytest.fixture
def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Load, Patch and Sample in a subgraph with text, seed and file promoted; Save outside."""
    load, patch, _, sample, save, note = flat["nodes"]
    load["inputs"] = [{"name": "file", "type": "COMBO", "widget": {"name": "file"}, "link": 13}]
    sample["inputs"] = [
        {"name": "model", "type": "MODEL", "link": 3},
        {"name": "seed", "type": "INT", "widget": {"name": "seed"}, "link": 12},
        {"name": "text", "type": "STRING", "widget": {"name": "text"}, "link": 11},
    ]
    borders = [
        {"name": "text", "label": "prompt", "type": "STRING", "linkIds": [11]},
        {"name": "seed", "type": "INT", "linkIds": [12]},
        {"name": "file", "type": "COMBO", "linkIds": [13]},
    ]
    links = [
        inner_link(1, 1, 0, 2, 0, "MODEL"),
        inner_link(3, 2, 0, 4, 0, "MODEL"),
        inner_link(11, -10, 0, 4, 2, "STRING"),
        inner_link(12, -10, 1, 4, 1, "INT"),
        inner_link(13, -10, 2, 1, 0, "COMBO"),
        inner_link(14, 4, 0, -20, 0, "LATENT"),
    ]
    ends = [{"name": "latent", "type": "LATENT", "linkIds": [14]}]
    subgraph = {"id": SUBGRAPH, "name": "Clip", "nodes": [load, patch, sample], "links": links}
    host = {"id": 9, "type": SUBGRAPH, "mode": 0, "inputs": [], "outputs": ends}
    host["widgets_values"] = ["a wolf", 99, "a.safetensors"]
    return {
        "last_node_id": 9,
        "nodes": [host, save, note],
        "links": [[4, 9, 0, 5, 0, "LATENT"]],
        "definitions": {"subgraphs": [subgraph | {"inputs": borders, "outputs": ends}]},
    }


def by_id(workflow: dict[str, Any], identity: int) -> dict[str, Any]:
    graphs = [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
    return next(entry for graph in graphs for entry in graph["nodes"] if entry["id"] == identity)


def test_widgets_are_read_by_the_order_of_the_definition(flat) -> None:
    assert to_prompt(flat, NODES)["4"] == {
        "class_type": "Sample",
        "_meta": {"title": "Sample"},
        "inputs": {
            "model": ["2", 0],
            "seed": 7,
            "steps": 4,
            "text": "a fox",
            "codec": "h264",
            "codec.crf": 18,
            "scale": 0.25,
        },
    }


def test_notes_and_reroutes_are_left_out_and_titles_kept(flat) -> None:
    prompt = to_prompt(flat, NODES)
    assert prompt.keys() == {"1", "2", "4", "5"}
    assert prompt["1"]["_meta"]["title"] == "My model"
    assert prompt["2"]["_meta"]["title"] == "Patch"


def test_a_list_that_is_a_value_is_wrapped(flat) -> None:
    assert to_prompt(flat, NODES)["5"]["inputs"]["sizes"] == {"__value__": ["#ff0000", "#00ff00"]}


def test_missing_values_are_the_defaults(flat) -> None:
    by_id(flat, 4)["widgets_values"] = [7]
    inputs = to_prompt(flat, NODES)["4"]["inputs"]
    assert (inputs["seed"], inputs["steps"], inputs["codec"], inputs["codec.crf"]) == (7, 20, "h264", 23)
    by_id(flat, 4)["widgets_values"] = [7, "fixed", 4, "", "png", 0.25]
    inputs = to_prompt(flat, NODES)["4"]["inputs"]
    assert "codec.crf" not in inputs and inputs["scale"] == 0.25


def test_a_bypassed_node_hands_its_input_on(flat) -> None:
    by_id(flat, 2)["mode"] = 4
    prompt = to_prompt(flat, NODES)
    assert "2" not in prompt and prompt["4"]["inputs"]["model"] == ["1", 0]


def test_a_muted_node_gives_nothing(flat) -> None:
    by_id(flat, 2)["mode"] = 2
    prompt = to_prompt(flat, NODES)
    assert "2" not in prompt and "model" not in prompt["4"]["inputs"]


def test_a_widget_whose_source_is_muted_keeps_its_own_value(flat) -> None:
    flat["nodes"].append(node(7, "Sample", {}, SAMPLE_VALUES, mode=2))
    by_id(flat, 4)["inputs"].append({"name": "steps", "type": "INT", "widget": {"name": "steps"}, "link": 5})
    flat["links"].append([5, 7, 0, 4, 1, "INT"])
    assert to_prompt(flat, NODES)["4"]["inputs"]["steps"] == 4


def test_a_primitive_gives_its_value_to_the_widget(flat) -> None:
    flat["nodes"].append(node(7, "PrimitiveNode", {}, [31, "fixed"]))
    by_id(flat, 4)["inputs"].append({"name": "steps", "type": "INT", "widget": {"name": "steps"}, "link": 5})
    flat["links"].append([5, 7, 0, 4, 1, "INT"])
    assert to_prompt(flat, NODES)["4"]["inputs"]["steps"] == 31


def test_a_subgraph_is_flattened_and_its_host_gives_the_values(nested) -> None:
    prompt = to_prompt(nested, NODES)
    assert prompt.keys() == {"9:1", "9:2", "9:4", "5"}
    assert prompt["9:1"]["inputs"] == {"file": "a.safetensors"}
    assert prompt["9:2"]["inputs"] == {"model": ["9:1", 0], "strength": 0.8}
    assert prompt["9:4"]["inputs"]["model"] == ["9:2", 0]
    assert (prompt["9:4"]["inputs"]["text"], prompt["9:4"]["inputs"]["seed"]) == ("a wolf", 99)
    assert prompt["5"]["inputs"]["latent"] == ["9:4", 0]


def test_a_promoted_widget_without_a_saved_value_shows_the_inner_one(nested) -> None:
    del by_id(nested, 9)["widgets_values"]
    inputs = to_prompt(nested, NODES)["9:4"]["inputs"]
    assert (inputs["text"], inputs["seed"]) == ("a fox", 7)


def test_a_bypassed_or_muted_subgraph_is_left_out(nested) -> None:
    for mode in (2, 4):
        by_id(nested, 9)["mode"] = mode
        assert to_prompt(nested, NODES) == {
            "5": {
                "class_type": "Save",
                "inputs": {"sizes": {"__value__": ["#ff0000", "#00ff00"]}},
                "_meta": {"title": "Save"},
            }
        }


def test_bypassing_a_node_inside_a_subgraph(nested) -> None:
    by_id(nested, 2)["mode"] = 4
    assert to_prompt(nested, NODES)["9:4"]["inputs"]["model"] == ["9:1", 0]


def test_older_files_promote_by_pairs(nested) -> None:
    host = by_id(nested, 9)
    host["properties"] = {"proxyWidgets": [["4", "steps"], ["4", "text"], ["2", "strength"]]}
    host["widgets_values"] = [12, "a bear", None]
    prompt = to_prompt(nested, NODES)
    assert prompt["9:4"]["inputs"]["steps"] == 12
    assert prompt["9:4"]["inputs"]["text"] == "a bear"
    assert prompt["9:2"]["inputs"]["strength"] == 0.8


def test_an_inner_node_with_the_id_of_an_outer_one_is_renumbered(nested) -> None:
    by_id(nested, 5)["id"] = 4
    nested["links"][0][3] = 4
    prompt = to_prompt(nested, NODES)
    assert prompt.keys() == {"9:1", "9:2", "9:10", "4"}
    assert prompt["9:10"]["inputs"]["model"] == ["9:2", 0]
    assert prompt["4"]["inputs"]["latent"] == ["9:10", 0]


def test_a_subgraph_can_be_used_twice(nested) -> None:
    second = copy.deepcopy(by_id(nested, 9)) | {"id": 10, "widgets_values": ["a bear", 5, "b.safetensors"]}
    nested["nodes"].append(second)
    prompt = to_prompt(nested, NODES)
    assert [prompt[key]["inputs"]["text"] for key in ("9:4", "10:4")] == ["a wolf", "a bear"]
    assert prompt["10:2"]["inputs"]["model"] == ["10:1", 0]


def test_the_workflow_is_not_changed(nested) -> None:
    before = json.dumps(nested)
    to_prompt(nested, NODES)
    assert json.dumps(nested) == before


def test_an_unknown_node_is_named(flat) -> None:
    flat["nodes"][0]["type"] = "GoneNode"
    with pytest.raises(WorkflowError, match="'GoneNode'"):
        to_prompt(flat, NODES)


def test_a_circle_of_links_is_an_error(flat) -> None:
    flat["links"][0] = [1, 2, 0, 2, 0, "MODEL"]
    by_id(flat, 2)["mode"] = 4
    with pytest.raises(WorkflowError, match="circle"):
        to_prompt(flat, NODES)


def test_set_widget_finds_a_promoted_widget_by_name_or_label(nested) -> None:
    set_widget(nested, "Clip", "prompt", "a hare")
    set_widget(nested, 9, "seed", 3)
    inputs = to_prompt(nested, NODES)["9:4"]["inputs"]
    assert (inputs["text"], inputs["seed"]) == ("a hare", 3)


def test_set_widget_of_a_plain_node_needs_its_definition(flat) -> None:
    set_widget(flat, "Sample", "steps", 9, NODES)
    assert to_prompt(flat, NODES)["4"]["inputs"]["steps"] == 9
    with pytest.raises(WorkflowError, match="definition"):
        set_widget(flat, "Sample", "steps", 9)
    with pytest.raises(WorkflowError, match="no saved widget 'step'"):
        set_widget(flat, "Sample", "step", 9, NODES)
    with pytest.raises(WorkflowError, match="No node 'Simple'"):
        set_widget(flat, "Simple", "step", 9, NODES)


def test_dynamic_prompts() -> None:
    assert dynamic_prompt("a {red|blue} // note\nfox /* or\nnot */", lambda choices: choices[1]) == "a blue \nfox "
    assert dynamic_prompt("{a|{b|c} d} \\{e|f\\}", lambda choices: choices[-1]) == "c d {e|f}"


def test_inputs_that_are_forced_to_be_sockets_have_no_widget() -> None:
    definition = {"input": {"required": {"a": ["INT", {"forceInput": True}], "b": ["INT", {"default": 2}]}}}
    assert read_widgets(definition, [5]).values == {"b": 5}


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "workflows").glob("*.json")), ids=lambda f: f.stem)
def test_set_widget_knows_what_the_templates_promote(file: Path) -> None:
    workflow = json.loads(file.read_text(encoding="utf-8"))
    set_widget(workflow, file.stem, "prompt", "a red circle")
    set_widget(workflow, file.stem, "seed", 5)
    host = next(entry for entry in workflow["nodes"] if entry["id"] == 2)
    assert host["widgets_values"][0] == "a red circle" and 5 in host["widgets_values"]
