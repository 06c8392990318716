"""LoRA by both kinds of nodes on the forms of weights that test_branches.py leaves out, layer by layer."""

from __future__ import annotations

import pytest
import torch

from .every_layer import NODES, errors, lora_files, management
from .quantised_files import OTHER_GGUF, OTHER_LAYOUTS, is_known, write_format

NAMES = ["blocks.1.ffn.0", "blocks.0.cross_attn.k"]  # the others are alike; tools/measure_lora.py takes all


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    return lora_files(tmp_path_factory.mktemp("loras"))


@pytest.mark.parametrize("kind", [*OTHER_LAYOUTS, *OTHER_GGUF])
def test_both_nodes_add_their_exact_delta(kind, loras, tmp_path, monkeypatch):
    if not is_known(kind):
        pytest.skip("this ComfyUI has no such weights")
    monkeypatch.setattr(management, "maximum_vram_for_weights", lambda device=None: 0)
    path = write_format(tmp_path / "wan2.2_t2v_high_noise_14B", kind)
    for node in NODES:
        with torch.inference_mode():
            found = errors(path, loras, node, NAMES)
        assert max(found["weight"], found["again"]) < 1e-4, node  # 0.02 is asked for
        assert found["bias"] < 0.01 and found["first"] == 0, node  # a bias in bfloat16 rounds what is merged into it
        assert found["kept"], node
