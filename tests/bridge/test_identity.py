"""What tells one MODEL from another, in any process."""

from __future__ import annotations

import asyncio
import copy
import json
import os

import pytest
import torch
import wancore

from ..comfy_host import import_comfy

import_comfy()

import folder_paths
from safetensors.torch import save_file
from wancore.nodes.bridge.identity import PAIRED, graph_digest, model_identity
from wancore.nodes.bridge.model import load_model

from .native_wan import native_model, weights

GRAPH = {
    "1": {"class_type": "Load", "inputs": {"name": "wan.safetensors"}},
    "2": {"class_type": "Lora", "inputs": {"model": ["1", 0], "name": "a", "strength": 1.0}},
    "3": {"class_type": "Sampler", "inputs": {"high": ["2", 0], "low": ["1", 1], "steps": 4}},
}


def digests(change=None):
    graph = copy.deepcopy(GRAPH)
    if change:
        node, name, value = change
        graph[node]["inputs"][name] = value
    return graph_digest(graph, "3", "high"), graph_digest(graph, "3", "low")


@pytest.mark.parametrize(
    ("change", "high", "low"),
    [
        (("3", "steps", 5), True, True),
        (("2", "strength", 0.5), False, True),
        (("1", "name", "other"), False, False),
        (("3", "low", ["1", 0]), True, False),
        (("3", "high", ["1", 0]), False, True),
    ],
)
def test_only_what_is_above_an_input_counts(change, high, low):
    before, after = digests(), digests(change)
    assert (before[0] == after[0], before[1] == after[1]) == (high, low)


PAIRS = {
    "1": {"class_type": "WanCoreLoadModels", "inputs": {"model": "h", "low_model": "l", "vae": "v"}},
    "2": {"class_type": "Lora", "inputs": {"model": ["1", 1], "strength": 1.0}},
    "3": {
        "class_type": "WanCoreLoraPair",
        "inputs": {"high": ["1", 0], "low": ["2", 0], "strength_high": 1.0, "strength_low": 1.0, "merge": "auto"},
    },
    "4": {"class_type": "Sampler", "inputs": {"high": ["3", 0], "low": ["3", 1]}},
}


@pytest.mark.parametrize(
    ("node", "name", "high", "low"),
    [
        ("1", "low_model", True, False),
        ("2", "strength", True, False),
        ("3", "strength_low", True, False),
        ("3", "strength_high", False, True),
        ("3", "merge", False, False),
        ("1", "vae", False, False),
    ],
)
def test_what_a_node_of_pairs_does_to_one_expert_counts_for_that_one(node, name, high, low):
    changed = copy.deepcopy(PAIRS)
    changed[node]["inputs"][name] = "changed"
    same = [graph_digest(PAIRS, "4", side) == graph_digest(changed, "4", side) for side in ("high", "low")]
    assert same == [high, low]


def test_every_node_of_pairs_is_known():
    nodes = asyncio.run(asyncio.run(wancore.comfy_entrypoint()).get_node_list())
    schemas = [node.GET_SCHEMA() for node in nodes]
    assert {schema.node_id for schema in schemas if [out.id for out in schema.outputs][:2] == ["high", "low"]} == PAIRED


def test_node_numbers_do_not_count():
    renamed = {"9": GRAPH["1"], "2": {**GRAPH["2"], "inputs": {**GRAPH["2"]["inputs"], "model": ["9", 0]}}}
    renamed["3"] = {"class_type": "Sampler", "inputs": {"high": ["2", 0]}}
    assert graph_digest(renamed, "3", "high") == digests()[0]


def test_a_changed_file_of_the_same_name_counts(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    without = digests()[0]
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = digests()[0]
    os.utime(file, (1, 1))
    assert len({without, first, digests()[0]}) == 3


def test_a_changed_part_of_a_model_in_several_files_counts(tmp_path):
    parts = [f"wan-0000{number}-of-00002.safetensors" for number in (1, 2)]
    tensors, index = weights(1), {}
    for number, part in enumerate(parts):
        names = sorted(tensors)[number::2]
        save_file({name: tensors[name] for name in names}, tmp_path / part)
        index |= dict.fromkeys(names, part)
    (tmp_path / "wan.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    model = load_model(str(tmp_path))
    before = model_identity(model)
    assert model_identity(model) == before
    os.utime(tmp_path / parts[1], (1, 1))
    assert model_identity(model) != before


def test_an_unknown_graph_is_said():
    for prompt in (None, {}, {"4": GRAPH["3"]}):
        with pytest.raises(LookupError):
            graph_digest(prompt, "3", "high")


def test_patches_count():
    model = native_model(1)
    key = "diffusion_model.blocks.0.ffn.0.weight"
    clones = [model.clone() for _ in range(3)]
    for clone, value in zip(clones, (1.0, 1.0, 2.0), strict=True):
        clone.add_patches({key: (torch.full((64, 128), value),)})
    one, same, other = map(model_identity, clones)
    assert one == same and len({one, other, model_identity(model)}) == 3
