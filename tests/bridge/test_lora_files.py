"""One LoRA in every spelling does the same; LoHa, LoKr and DoRA reach the model; what does not match is named."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy.utils
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.model import load_model
from wancore.wan_core.errors import WrongModelError

from ..core.test_lora_names import SPELLINGS
from .tiny_models import write_tiny

LAYERS = ("blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.1.cross_attn.o", "head.head", "time_projection.1")


pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    return load_model(write_tiny(folder / "wan2.2_t2v_high_noise_14B.safetensors", "t2v_A14B_expert"))


def parts(model):
    generator = torch.Generator().manual_seed(2)
    for layer in LAYERS:
        weight = comfy.utils.get_attr(model.model.diffusion_model, layer).weight
        down = torch.randn(4, weight.shape[1], generator=generator)
        yield layer, down, 0.02 * torch.randn(weight.shape[0], 4, generator=generator), weight


def changes(model, path, strength=1.0):
    """{layer: change of its weight}, and the report."""
    patched, match = apply_lora(model, str(path), path.name, strength)
    assert match is not None
    before = {layer: weight.clone() for layer, _, _, weight in parts(model)}
    management.load_models_gpu([patched])
    after = {layer: comfy.utils.get_attr(patched.model.diffusion_model, layer).weight.clone() for layer in LAYERS}
    patched.detach()
    return {layer: after[layer] - before[layer] for layer in LAYERS}, match


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_does_the_same(spelling, model, tmp_path):
    lora = {}
    for layer, down, up, _ in parts(model):
        name = SPELLINGS[spelling](layer)
        lora[name] = down
        for theirs, other in (("down", "up"), ("lora_A", "lora_B")):
            if theirs in name:
                lora[name.replace(theirs, other)] = up
    save_file(lora, tmp_path / "a.safetensors")
    found, match = changes(model, tmp_path / "a.safetensors", 0.5)
    assert (match.applied, match.unknown, match.misfit) == (len(LAYERS), (), ())
    for layer, down, up, _ in parts(model):
        assert torch.allclose(found[layer], 0.5 * up @ down, atol=1e-5), layer


def loha(down, up, weight):
    a, b = torch.randn(weight.shape[0], 2), torch.randn(2, weight.shape[1])
    tensors = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": 0.1 * a, "hada_w2_b": b, "alpha": torch.tensor(2)}
    return tensors, (a @ b) * (0.1 * a @ b)


def lokr(down, up, weight):
    small, large = 0.1 * torch.randn(4, 4), torch.randn(weight.shape[0] // 4, weight.shape[1] // 4)
    return {"lokr_w1": small, "lokr_w2": large}, torch.kron(small, large)


def dora(down, up, weight):
    magnitude = 1.2 * weight.norm(dim=1)
    tensors = {"lora_A.weight": down, "lora_B.weight": up, "lora_magnitude_vector": magnitude}
    return tensors, 1.2 * (weight + up @ down) - weight


def difference(down, up, weight):
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(8), "diff": up @ down}, 3 * up @ down


@pytest.mark.parametrize("make", [loha, lokr, dora, difference])
def test_other_adapters(make, model, tmp_path):
    lora, expected = {}, {}
    for layer, down, up, weight in parts(model):
        tensors, expected[layer] = make(down, up, weight)
        lora |= {f"diffusion_model.{layer}.{part}": tensor.clone() for part, tensor in tensors.items()}
    save_file(lora, tmp_path / "a.safetensors")
    found, match = changes(model, tmp_path / "a.safetensors")
    assert (match.applied, match.unknown, match.misfit) == (len(LAYERS), (), ())
    for layer in LAYERS:
        assert torch.allclose(found[layer], expected[layer], atol=1e-4), layer


def test_what_does_not_match_is_named_with_its_reason(model, tmp_path):
    lora = {}
    for layer in (*LAYERS, "blocks.0.cross_attn.k_img", "img_emb.proj.1", "blocks.77.ffn.0"):
        width = {name: weight.shape for name, _, _, weight in parts(model)}.get(layer, (256, 256))
        lora[f"{layer}.lora_A.weight"], lora[f"{layer}.lora_B.weight"] = (
            torch.ones(2, width[1]),
            torch.ones(width[0], 2),
        )
    save_file(lora, tmp_path / "a.safetensors")
    _, match = changes(model, tmp_path / "a.safetensors")
    report = match.report()
    assert f"{len(LAYERS)} of {len(LAYERS) + 3} layers" in report
    assert "2 unknown, harmless (picture features" in report and "1 unknown: blocks.77.ffn.0" in report


def test_nothing_matched_is_an_error(model, tmp_path):
    save_file({"double_blocks.0.img_attn.qkv.lora_A.weight": torch.ones(2, 2)}, tmp_path / "flux.safetensors")
    with pytest.raises(WrongModelError) as error:
        apply_lora(model, str(tmp_path / "flux.safetensors"), "flux", 1.0)
    assert "double_blocks.0.img_attn.qkv" in error.value.found
