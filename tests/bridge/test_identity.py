"""What tells one MODEL from another, in any process."""

from __future__ import annotations

import copy
import os

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import folder_paths
from wancore.nodes.bridge.identity import graph_digest, model_identity

from .native_wan import native_model

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
