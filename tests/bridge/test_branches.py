"""LoRA on quantised weights: the effective weight is the stored one plus the exact delta, whatever loads it how."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..comfy_host import import_comfy

import_comfy()

import comfy.hooks
import comfy.model_management as management
import comfy.quant_ops
import comfy.sd
import comfy.utils
from comfy.model_patcher import LowVramPatch
from comfy.quant_ops import QuantizedTensor
from wancore.nodes.bridge.branches import BranchedLinear
from wancore.nodes.bridge.model import load_model
from wancore.wan_core.errors import InputError

from .quantised_files import FORMATS, NATIVE, family, is_known, weights, write_format

LAYER = "blocks.1.ffn.0"
CPU = torch.device("cpu")
ALLOWED = 0.02  # error of the effective weight over the LoRA's own delta


pytestmark = pytest.mark.usefixtures("no_room", "inference")


@pytest.fixture(scope="module", params=FORMATS)
def path(request, tmp_path_factory) -> str:
    if not is_known(request.param):
        pytest.skip("this ComfyUI has no such weights")
    return write_format(tmp_path_factory.mktemp("files") / "wan2.2_t2v_high_noise_14B", request.param)


def pairs(*, rank: int = 8, size: float = 0.02, extra: bool = False) -> dict[str, Tensor]:
    """A LoRA of the native spelling whose delta is a few percent of each weight."""
    generator = torch.Generator().manual_seed(4)
    out: dict[str, Tensor] = {}
    for name, weight in weights().items():
        if name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2:
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            out[f"{layer}.lora_down.weight"] = torch.randn(rank, weight.shape[1], generator=generator)
            up = torch.randn(weight.shape[0], rank, generator=generator)
            out[f"{layer}.lora_up.weight"] = up * size * weight.float().std() / rank**0.5
            out[f"{layer}.alpha"] = torch.tensor(rank // 2)
            if extra:
                out[f"{layer}.diff_b"] = 0.1 * torch.randn(weight.shape[0], generator=generator)
    return out


def delta(lora: dict[str, Tensor], strength: float = 1.0) -> Tensor:
    layer = f"diffusion_model.{LAYER}"
    down, up = lora[f"{layer}.lora_down.weight"], lora[f"{layer}.lora_up.weight"]
    return strength * 0.5 * up @ down


def with_lora(patcher, lora, strength: float = 1.0):
    """What the node LoraLoaderModelOnly does."""
    return comfy.sd.load_lora_for_models(patcher, None, lora, strength, 0)[0]


def layer_of(patcher) -> BranchedLinear:
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, LAYER)
    assert isinstance(layer, BranchedLinear) and layer.is_quantised
    return layer


def effective(patcher) -> Tensor:
    """The layer's answer to the unit vectors, without its bias: its transposed weight, in float32."""
    layer = layer_of(patcher)
    x = torch.eye(layer.in_features)
    return (layer(x) - layer(torch.zeros_like(x))).t()


def stored(patcher) -> list[Tensor]:
    weight = layer_of(patcher).weight
    return [weight._qdata.clone() if isinstance(weight, QuantizedTensor) else weight.view(torch.uint8).clone()]


def load(patcher, how: str) -> None:
    """complete: all weights resident. partial: none of the large ones, as with too little memory."""
    if how == "complete":
        management.load_models_gpu([patcher], force_full_load=True)
    else:
        patcher.patch_model(CPU, lowvram_model_memory=1)


def test_plain_float8_keeps_what_the_file_has_in_more_bits(tmp_path):
    """Dynamic VRAM casts to the type that a parameter says it has; a bias in float8 would lose most of itself."""
    patcher = load_model(write_format(tmp_path / "wan2.2_t2v_high_noise_14B", "fp8 plain"))
    layer = layer_of(patcher)
    assert (layer.weight.dtype, layer.weight_comfy_model_dtype) == (torch.float8_e4m3fn, torch.float8_e4m3fn)
    assert layer.bias.dtype.itemsize >= 2 and layer.bias_comfy_model_dtype == layer.bias.dtype


@pytest.mark.parametrize("kind", [*NATIVE, "LightX2V nvfp4"])
def test_native_formats_hold_what_the_file_holds(kind, tmp_path):
    if not is_known(kind):
        pytest.skip("this ComfyUI has no such weights")
    name = "nvfp4" if kind == "LightX2V nvfp4" else kind
    layout = comfy.quant_ops.QUANT_ALGOS[name.partition(" ")[0]]["comfy_tensor_layout"]
    weight = weights()[f"{LAYER}.weight"].float()
    expected = QuantizedTensor.from_float(weight, layout, **NATIVE[name]).dequantize()
    found = layer_of(load_model(write_format(tmp_path / "wan2.2_t2v_high_noise_14B", kind))).weight.dequantize()
    assert torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=1e-6)  # in bfloat16
    assert (found.float() - weight).norm() < 0.2 * weight.norm()


@pytest.mark.parametrize("how", ["complete", "partial"])
def test_native_lora_nodes_add_their_exact_delta(path, how):
    lora, base = pairs(extra=True), load_model(path)
    load(base, how)
    plain, bits = effective(base), stored(base)
    base.detach()
    patched = with_lora(base, lora, 0.7)
    load(patched, how)
    exact = delta(lora, 0.7)
    error = float((effective(patched) - plain - exact).norm() / exact.norm())
    assert error <= ALLOWED
    assert all(map(torch.equal, stored(patched), bits)), "the stored weight has changed"
    bias = lora[f"diffusion_model.{LAYER}.diff_b"]
    zeros = torch.zeros(1, layer_of(patched).in_features)
    assert torch.allclose(layer_of(patched)(zeros)[0] - weights()[f"{LAYER}.bias"].float(), 0.7 * bias, atol=2e-3)
    patched.detach()
    load(base, how)
    assert torch.equal(effective(base), plain), "the LoRA has left something behind"


def predict(patcher) -> Tensor:
    management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(0)
    noise, text = (torch.randn(size, generator=generator) for size in ((1, 16, 3, 8, 8), (1, 512, family.TEXT_DIM)))
    return patcher.model.apply_model(noise, torch.tensor([0.9]), c_crossattn=text)


def test_clone_unload_reload_are_bit_equal(path):
    base = load_model(path)
    patched = with_lora(base, pairs(extra=True))
    plain, changed = predict(base), predict(patched)
    assert not torch.equal(plain, changed)
    management.unload_all_models()
    assert torch.equal(predict(patched.clone()), changed)
    assert torch.equal(predict(base), plain)
    assert torch.equal(predict(with_lora(base, pairs(extra=True))), changed)


def test_partial_load_gives_what_a_complete_one_gives(path):
    lora = pairs(extra=True)
    whole = with_lora(load_model(path), lora)
    load(whole, "complete")
    expected = effective(whole)
    whole.partially_unload(CPU, 1e12)
    assert torch.allclose(effective(whole), expected, atol=1e-6)
    whole.partially_load(CPU, 1e12)
    assert torch.allclose(effective(whole), expected, atol=1e-6)
    assert layer_of(whole).resident is not None and not layer_of(whole).weight_function


@pytest.mark.parametrize("how", ["complete", "partial"])
@pytest.mark.parametrize("kind", ["diff", "dora", "both", "scaled", "set"])
def test_other_patches_are_added_in_floating_point(path, how, kind):
    base = load_model(path)
    load(base, how)
    plain = effective(base)
    base.detach()
    name, lora = f"diffusion_model.{LAYER}", pairs()
    lora = {key: tensor for key, tensor in lora.items() if key.startswith(name + ".")}
    difference = 1e-3 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(8))
    clone = base
    expected = plain.clone()
    if kind in ("diff", "both"):
        clone = with_lora(clone, {f"{name}.diff": difference})
        expected += difference
    if kind == "both":
        clone = with_lora(clone, lora, 0.5)
        expected += delta(lora, 0.5)
    if kind == "dora":
        magnitude = 1.1 * plain.norm(dim=1, keepdim=True)
        clone = with_lora(clone, {**lora, f"{name}.dora_scale": magnitude})
        expected = (plain + delta(lora)) * magnitude / plain.norm(dim=1, keepdim=True)
    if kind == "scaled":
        clone = base.clone()
        clone.add_patches({f"{name}.weight": (difference,)}, 1.0, 0.5)
        expected = 0.5 * plain + difference
    if kind == "set":
        clone = with_lora(clone, {f"{name}.set_weight": difference})
        expected = difference
    load(clone, how)
    assert (effective(clone) - expected).norm() / expected.norm() < 1e-4


def test_float_weights_are_merged_as_ever(tmp_path):
    file = tmp_path / "wan2.2_t2v_high_noise_14B.safetensors"
    save_file(weights(), file, metadata=family.T2V_HIGH.metadata)
    patched = with_lora(load_model(str(file), dtype=torch.float32), pairs())
    load(patched, "complete")
    layer = comfy.utils.get_attr(patched.model.diffusion_model, LAYER)
    assert layer.resident is None
    exact = weights()[f"{LAYER}.weight"].float() + delta(pairs())
    assert torch.allclose(layer.weight, exact, atol=1e-5)


def test_dynamic_patcher_functions_leave_the_weight_alone(path):
    """The attribute by which the dynamic patcher hands over its patches; its memory needs a GPU."""
    lora, base = pairs(), load_model(path)
    load(base, "complete")
    plain = effective(base)
    clone, layer = with_lora(base, lora), layer_of(base)
    key = f"diffusion_model.{LAYER}.weight"
    function = LowVramPatch(key, clone.patches)
    layer.weight_lowvram_function = function
    try:
        assert torch.allclose(effective(base) - plain, delta(lora), atol=1e-6)
        assert layer.weight_lowvram_function is function
    finally:
        layer.weight_lowvram_function = None
    assert torch.equal(effective(base), plain)


@pytest.mark.skipif(
    not hasattr(QuantizedTensor, "requantize_from_float"), reason="this ComfyUI never writes quantised weights back"
)
def test_a_hook_on_gguf_is_refused_with_a_remedy(tmp_path):
    patcher = load_model(write_format(tmp_path / "wan2.2_t2v_high_noise_14B", "Q8_0"))
    hooks = comfy.hooks.create_hook_lora(pairs(), 1.0, 0.0)
    patcher.register_all_hook_patches(hooks, comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model))
    load(patcher, "complete")
    with pytest.raises(InputError) as error:
        patcher.patch_hooks(hooks)
    assert "hook" in error.value.where and error.value.remedy
