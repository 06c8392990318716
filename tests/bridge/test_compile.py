"""ComfyUI's own torch.compile on our MODEL: one graph, whatever the step and the number of steps."""

from __future__ import annotations

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.sample
from comfy_api.torch_helpers import set_torch_compile_wrapper
from safetensors.torch import save_file
from wancore.nodes.bridge.model import load_model

from .native_wan import noise, prompts, relative, weights

nodes_torch_compile = pytest.importorskip("comfy_extras.nodes_torch_compile")
POSITIVE, NEGATIVE = prompts(tokens=512)


def sample(model, steps=2, frames=3):
    start = noise()[:, :, :1].repeat(1, 1, frames, 1, 1)
    given = (POSITIVE, NEGATIVE, torch.zeros_like(start))
    return comfy.sample.sample(model, start, steps, 1.0, "euler", "simple", *given, disable_pbar=True, seed=1)


def test_one_graph_for_each_shape(tmp_path) -> None:
    save_file(weights(1), tmp_path / "wan.safetensors")
    graphs = []

    def backend(graph, inputs, **options):
        graphs.append(graph)
        return graph.forward

    guards = getattr(nodes_torch_compile, "skip_torch_compile_dict", None)  # what the node passes on
    with torch.inference_mode():
        plain = load_model(str(tmp_path / "wan.safetensors"), dtype=torch.float32)
        compiled = plain.clone()
        torch._dynamo.reset()
        set_torch_compile_wrapper(compiled, backend=backend, options={"guard_filter_fn": guards} if guards else None)
        for steps in (2, 3):
            assert relative(sample(compiled, steps), sample(plain, steps)) < 1e-6
            assert len(graphs) == 1
        assert relative(sample(compiled, frames=5), sample(plain, frames=5)) < 1e-6
        assert len(graphs) == 2
