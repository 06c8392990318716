"""ComfyUI's own torch.compile on our MODEL: one graph, whatever the step and the number of steps, or none."""

from __future__ import annotations

import logging

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy.sample
from comfy_api.torch_helpers import set_torch_compile_wrapper
from safetensors.torch import save_file
from torch._dynamo.utils import counters
from wancore.nodes.bridge.model import load_model
from wancore.wan_core.errors import InputError

from .native_wan import noise, prompts, relative, weights
from .quantised_files import family, is_known, write_format

nodes_torch_compile = pytest.importorskip("comfy_extras.nodes_torch_compile")
POSITIVE, NEGATIVE = prompts(tokens=512)


def sample(model, steps=2, frames=3, texts=(POSITIVE, NEGATIVE)):
    start = noise()[:, :, :1].repeat(1, 1, frames, 1, 1)
    given = (*texts, torch.zeros_like(start))
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


# Quantised weights. What ComfyUI does with them cannot be traced.
KINDS = ("fp8 scaled", "fp8 plain", "Q4_K", "Q8_0", "convrot_w4a4")
TEXTS = tuple([[text[..., : family.TEXT_DIM], rest] for text, rest in given] for given in (POSITIVE, NEGATIVE))


def by_node(model):
    """ComfyUI's TorchCompileModel."""
    return nodes_torch_compile.TorchCompileModel.execute(model, "inductor").args[0]


def by_blocks(model):
    """What nodes of other packs do: each block is compiled by itself."""
    compiled = model.clone()
    keys = [f"diffusion_model.blocks.{index}" for index in range(len(model.model.diffusion_model.blocks))]
    set_torch_compile_wrapper(compiled, backend="inductor", keys=keys)
    return compiled


def by_functions(model):
    """The blocks' functions, in their places."""
    compiled = model.clone()
    for index, block in enumerate(model.model.diffusion_model.blocks):
        compiled.add_object_patch(f"diffusion_model.blocks.{index}.forward", torch.compile(block.forward))
    return compiled


@pytest.mark.parametrize("way", [by_node, by_blocks, by_functions])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if is_known(kind)])
def test_quantised_models_are_left_as_they_are(
    kind, way, tmp_path, inference, no_room, float8_card, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plain = load_model(write_format(tmp_path / "high_noise", kind))
    compiled = way(plain)
    torch._dynamo.reset()
    counters.clear()
    for frames in (3, 5):
        answer = sample(compiled, frames=frames, texts=TEXTS)
        management.unload_all_models()  # weights that a graph refers to could not be moved
        assert torch.equal(answer, sample(plain, frames=frames, texts=TEXTS))
    assert not counters["frames"]  # none was traced
    assert len([line for line in caplog.messages if "without torch.compile" in line]) == 1


def test_what_cannot_be_left_out_is_refused(tmp_path, inference, no_room, monkeypatch) -> None:
    monkeypatch.delattr(torch.compiler, "set_stance")  # as PyTorch before 2.6
    plain = load_model(write_format(tmp_path / "high_noise", "Q8_0"))
    sample(plain, texts=TEXTS)
    with pytest.raises(InputError, match=r"TorchCompileModel.*Take that node out of the workflow"):
        sample(by_node(plain), texts=TEXTS)
