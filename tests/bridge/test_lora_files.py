"""One LoRA in every spelling does the same; LoHa, LoKr and DoRA reach the model; what does not match is named."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy.utils
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.model import load_model
from wancore.wan_core.errors import WeightsFileError, WrongModelError

from ..core.test_lora_names import SPELLINGS
from .tiny_models import write_tiny

FIRST_FFN = "diffusion_model.blocks.1.ffn.0.weight"
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


def named(spelling, layer, down, up):
    """A low-rank pair under the names of a spelling."""
    name = SPELLINGS[spelling](layer)
    other = name.replace("down", "up").replace("lora_A", "lora_B")
    assert other != name
    return {name: down.contiguous(), other: up.contiguous()}


def alpha_name(spelling, layer):
    """Where trainers that write alpha put it."""
    return re.sub(r"[._]lora[._](down|A).*$", ".alpha", SPELLINGS[spelling](layer))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_does_the_same(spelling, model, tmp_path):
    lora = {}
    for layer, down, up, _ in parts(model):
        lora |= named(spelling, layer, down, up)
    save_file(lora, tmp_path / "a.safetensors")
    found, match = changes(model, tmp_path / "a.safetensors", 0.5)
    assert (match.applied, match.unknown, match.misfit) == (len(LAYERS), (), ())
    for layer, down, up, _ in parts(model):
        assert torch.allclose(found[layer], 0.5 * up @ down, atol=1e-5), layer


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_alpha_scales_in_every_spelling(spelling, model, tmp_path):
    lora = {}
    for layer, down, up, _ in parts(model):
        lora |= named(spelling, layer, down, up) | {alpha_name(spelling, layer): torch.tensor(12)}
    save_file(lora, tmp_path / "a.safetensors")
    found, match = changes(model, tmp_path / "a.safetensors")
    assert match.applied == len(LAYERS)
    for layer, down, up, _ in parts(model):
        assert torch.allclose(found[layer], 3 * up @ down, atol=1e-5), layer  # alpha 12, rank 4


def test_alphas_of_peft_that_differ_by_layer(model, tmp_path):
    """In the adapter_config.json beside the file, by the ends of the layers' names."""
    lora, own = {}, {"self_attn.q": 12, "blocks.1.ffn.0": 2}
    for layer, down, up, _ in parts(model):
        lora |= named("raw PEFT", layer, down, up)
    save_file(lora, tmp_path / "adapter_model.safetensors")
    config = {"lora_alpha": 4, "r": 4, "alpha_pattern": own}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    found, _ = changes(model, tmp_path / "adapter_model.safetensors")
    for layer, down, up, _ in parts(model):
        alpha = next((alpha for end, alpha in own.items() if layer.endswith(end)), 4)
        assert torch.allclose(found[layer], alpha / 4 * up @ down, atol=1e-5), layer


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_halves_of_another_rank_are_left_out(spelling, model, tmp_path):
    """ComfyUI would say so in its log alone, and go on without the layer."""
    lora, broken = {}, LAYERS[1]
    for layer, down, up, _ in parts(model):
        lora |= named(spelling, layer, down, up[:, :3] if layer == broken else up)
    save_file(lora, tmp_path / "a.safetensors")
    found, match = changes(model, tmp_path / "a.safetensors")
    assert (match.applied, match.unknown) == (len(LAYERS) - 1, ()) and not found[broken].any()
    assert f"1 of another shape: {broken}" in match.report()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_of_another_model_is_an_error(spelling, model, tmp_path):
    """Of another size: no layer fits. Of another architecture: none is known."""
    wide = {}
    for layer, _, _, weight in parts(model):
        wide |= named(spelling, layer, torch.ones(4, weight.shape[1] + 64), torch.ones(weight.shape[0] + 64, 4))
    strange = named(spelling, "double_blocks.0.img_attn.qkv", torch.ones(4, 8), torch.ones(8, 4))
    for lora, words in ((wide, f"{len(LAYERS)} layers of another shape"), (strange, "1 that the model does not have")):
        save_file(lora, tmp_path / "a.safetensors")
        with pytest.raises(WrongModelError) as error:
            apply_lora(model, str(tmp_path / "a.safetensors"), "a", 1.0)
        assert words in error.value.found and "a.safetensors" in error.value.where and error.value.remedy


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_part_of_a_lora_is_applied_and_the_rest_named(spelling, model, tmp_path):
    lora = {}
    for layer, down, up, _ in (*parts(model), ("blocks.77.ffn.0", torch.ones(4, 8), torch.ones(8, 4), None)):
        lora |= named(spelling, layer, down, up)
    save_file(lora, tmp_path / "a.safetensors")
    found, match = changes(model, tmp_path / "a.safetensors")
    assert all(found[layer].any() for layer in LAYERS)
    report = match.report()
    assert f"{len(LAYERS)} of {len(LAYERS) + 1} layers" in report and "1 unknown: " in report and "77" in report


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_lora_of_no_numbers_is_refused(spelling, model, tmp_path):
    lora = {}
    for layer, down, up, _ in parts(model):
        lora |= named(spelling, layer, down, up * float("nan") if layer == LAYERS[0] else up)
    save_file(lora, tmp_path / "a.safetensors")
    with pytest.raises(WeightsFileError) as error:
        apply_lora(model, str(tmp_path / "a.safetensors"), "a", 1.0)
    assert [name for name in lora if name in error.value.found] and "NaN" in error.value.found


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
def test_a_hundred_times_on_and_off_leaves_the_same_bits(merge, model, tmp_path):
    lora = {}
    for layer, down, up, _ in parts(model):
        lora |= named("PEFT", layer, down, up)
    save_file(lora, tmp_path / "a.safetensors")
    management.load_models_gpu([model])
    state = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    changed = 0
    for number in range(100):
        patched = apply_lora(model, str(tmp_path / "a.safetensors"), "a", 0.01 * (number + 1), merge=merge)[0]
        management.load_models_gpu([patched, *patched.get_nested_additional_models()])
        changed += not torch.equal(model.model.diffusion_model.blocks[1].ffn[0].weight, state[FIRST_FFN])
        management.load_models_gpu([model])
    assert changed == (100 if merge else 0)
    for name, tensor in model.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


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


@pytest.mark.parametrize("make", [loha, lokr])
def test_other_adapters_of_another_model_are_an_error(make, model, tmp_path):
    """ComfyUI would load them, say so in its log alone, and change nothing."""
    lora = {}
    for layer, down, up, weight in parts(model):
        tensors, _ = make(down, up, torch.zeros(weight.shape[0] + 64, weight.shape[1]))
        lora |= {f"diffusion_model.{layer}.{part}": tensor.clone() for part, tensor in tensors.items()}
    save_file(lora, tmp_path / "a.safetensors")
    with pytest.raises(WrongModelError) as error:
        apply_lora(model, str(tmp_path / "a.safetensors"), "a", 1.0)
    assert f"{len(LAYERS)} layers of another shape" in error.value.found


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
