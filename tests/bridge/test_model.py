"""Our MODEL against ComfyUI's own on the same files, with everything that the ecosystem hangs onto a MODEL."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.latent_formats
import comfy.ldm.wan.model
import comfy.memory_management
import comfy.model_management as management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_easycache import EasyCacheNode
from wancore.nodes.bridge import lora as bridge_lora
from wancore.nodes.bridge import model as bridge_model
from wancore.nodes.bridge.facts import model_facts
from wancore.nodes.bridge.model import load_model
from wancore.wan_core.config import TransformerConfig
from wancore.wan_core.errors import InputError, WeightsFileError, WrongModelError
from wancore.wan_core.transformer import WanTransformer

from .tiny_models import LAYERS, SHAPES, text, tiny_weights, write_lora, write_tiny

SIGMAS = torch.tensor([0.83, 0.31])
CLOSE = 1e-5  # relative, float32
NATIVE_HAS_BLOCK_PATCHES = '"double_block" in patches' in inspect.getsource(comfy.ldm.wan.model.WanModel.forward_orig)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def t2v_file(folder):
    return write_tiny(folder / "wan2.2_t2v_high_noise_14B.safetensors", "t2v_A14B_expert")


@pytest.fixture(scope="module")
def t2v(t2v_file):
    return load_model(t2v_file), comfy.sd.load_diffusion_model(t2v_file)


def latent(channels=16, frames=3, rows=6, columns=7, batch=2, seed=1):
    """An odd width, so that padding to whole patches is part of every comparison."""
    return torch.randn(batch, channels, frames, rows, columns, generator=torch.Generator().manual_seed(seed))


def predict(patcher, x=None, sigma=SIGMAS, **conds):
    management.load_models_gpu([patcher])
    x = latent() if x is None else x
    options = comfy.utils.deepcopy_list_dict(patcher.model_options["transformer_options"])
    options["wrappers"] = patcher.wrappers
    conds.setdefault("c_crossattn", text(len(x)))
    return patcher.model.apply_model(x, sigma, transformer_options=options, **conds)


def difference(a, b):
    return ((a - b).norm() / b.norm()).item()


def assert_equal(pair, change=lambda patcher: None, *, plain=None, **inputs):
    """Both models, changed in the same way, agree; and the change changes something."""
    ours, native = (patcher.clone() for patcher in pair)
    for patcher in (ours, native):
        change(patcher)
    result = predict(ours, **inputs)
    assert difference(result, predict(native, **inputs)) < CLOSE
    if plain is not None:
        assert difference(result, plain) > 1e-3
    return result


def test_t2v(t2v):
    assert_equal(t2v)


def test_same_parameter_names(t2v):
    ours, native = t2v
    assert set(ours.model.state_dict()) == set(native.model.state_dict())
    assert ours.model.memory_usage_factor == native.model.memory_usage_factor
    assert type(ours) is type(native)


def test_prefixed_file(folder, t2v):
    path = write_tiny(folder / "prefixed.safetensors", "t2v_A14B_expert", prefix="model.diffusion_model.")
    assert difference(predict(load_model(path)), predict(t2v[1])) < CLOSE


def test_i2v_concatenates_picture_and_mask(folder):
    path = write_tiny(folder / "i2v.safetensors", "i2v_A14B_expert")
    pair = load_model(path), comfy.sd.load_diffusion_model(path)
    picture, mask = latent(seed=3), (latent(1, seed=4) > 0).float()
    outs = []
    for patcher in pair:
        arguments = {"noise": latent(), "device": torch.device("cpu"), "cross_attn": text(2), "concat_mask": mask}
        conds = patcher.model.extra_conds(concat_latent_image=picture.clone(), **arguments)
        outs.append(predict(patcher, **{name: cond.cond for name, cond in conds.items()}))
    assert difference(*outs) < CLOSE


@pytest.mark.parametrize(("shapes", "tokens"), [("wan21_i2v_14B", 257), ("wan21_flf2v_14B", 514)])
def test_picture_features(folder, shapes, tokens):
    path = write_tiny(folder / f"{shapes}.safetensors", shapes)
    pair = load_model(path), comfy.sd.load_diffusion_model(path)
    features = torch.randn(2, tokens, 1280, generator=torch.Generator().manual_seed(6))
    assert [patcher.model.image_to_video for patcher in pair] == [True, True]
    plain = assert_equal(pair, c_concat=latent(20, seed=2), clip_fea=features)
    assert_equal(pair, plain=plain, c_concat=latent(20, seed=2), clip_fea=features.flip(2))


def test_5b_has_a_timestep_per_latent_frame(folder):
    path = write_tiny(folder / "ti2v.safetensors", "ti2v_5B")
    pair = load_model(path), comfy.sd.load_diffusion_model(path)
    x = latent(48)
    mask = torch.ones_like(x)
    mask[:, :, :1] = 0
    plain = assert_equal(pair, x=x)
    assert_equal(pair, x=x, denoise_mask=mask, plain=plain)
    assert isinstance(pair[0].model.latent_format, comfy.latent_formats.Wan22)
    assert [model_facts(patcher).task.id for patcher in pair] == ["ti2v-5B", "ti2v-5B"]


def test_scaled_fp8(folder):
    path = write_scaled(folder / "fp8.safetensors", torch.float8_e4m3fn)
    assert_equal((load_model(path), comfy.sd.load_diffusion_model(path)))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("layout", ["marker", "metadata", "layers"])
def test_every_layout_of_scaled_fp8(folder, prefix, layout):
    """The old marker tensor, the table in the metadata, and one note per layer hold the same model."""
    plain = load_file(write_scaled(folder / "layouts.safetensors", torch.float8_e4m3fn))
    expected = predict(load_model(str(folder / "layouts.safetensors")))
    metadata = {"config": json.dumps({"transformer": {"text_dim": 256}})}
    weights = {prefix + name: weight for name, weight in plain.items()}
    if layout != "marker":
        weights.pop(prefix + "scaled_fp8")
        weights = {name.replace("scale_weight", "weight_scale"): weight for name, weight in weights.items()}
        scaled = [name.removesuffix(".weight_scale") for name in weights if name.endswith(".weight_scale")]
        note = {"format": "float8_e4m3fn"}
        if layout == "metadata":
            metadata["_quantization_metadata"] = json.dumps({"layers": dict.fromkeys(scaled, note)})
        else:
            code = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
            weights |= {f"{layer}.comfy_quant": code.clone() for layer in scaled}
    path = folder / f"layout_{layout}_{len(prefix)}.safetensors"
    save_file(weights, path, metadata=metadata)
    assert torch.equal(predict(load_model(str(path))), expected)


def test_scaled_fp8_e5m2_keeps_its_type(folder):
    """ComfyUI labels these e4m3; we compare with the weights that the file really holds."""
    path = write_scaled(folder / "e5m2.safetensors", torch.float8_e5m2)
    weights = load_file(path)
    weights.pop("scaled_fp8")
    for name in [name for name in weights if name.endswith("scale_weight")]:
        matrix = name.removesuffix("scale_weight") + "weight"
        weights[matrix] = weights[matrix].float() * weights.pop(name)
    plain = str(folder / "e5m2_plain.safetensors")
    save_file(weights, plain, metadata={"config": json.dumps({"transformer": {"text_dim": 256}})})
    assert difference(predict(load_model(path)), predict(load_model(plain))) < CLOSE


def test_scaled_fp8_e5m2_is_decoded_where_float8_is_multiplied(folder, monkeypatch):
    """No card multiplies e5m2 by e5m2; ComfyUI's layer would try it on all that have float8 units."""
    path = write_scaled(folder / "e5m2_units.safetensors", torch.float8_e5m2)
    decoded = predict(load_model(path))
    monkeypatch.setattr(management, "supports_fp8_compute", lambda device=None: True)
    assert torch.equal(predict(load_model(path)), decoded)


def write_scaled(path, dtype):
    weights = {"scaled_fp8": torch.zeros(0, dtype=dtype)}
    for name, weight in tiny_weights("t2v_A14B_expert").items():
        weights[name] = weight
        if name.startswith("blocks.") and weight.ndim == 2:
            scale = weight.abs().max() / torch.finfo(dtype).max
            weights[name] = (weight / scale).to(dtype)
            weights[name.removesuffix("weight") + "scale_weight"] = scale
    save_file(weights, path, metadata={"config": json.dumps({"transformer": {"text_dim": 256}})})
    return str(path)


MODELS = sorted(path.stem for path in SHAPES.glob("*.json") if "blocks.0.self_attn.q.weight" in path.read_text())


@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_that_a_file_must_have_are_those_of_the_whole_model(name):
    config = TransformerConfig.from_shapes(json.loads((SHAPES / f"{name}.json").read_text())["shapes"])
    weights, known = bridge_model._expected_shapes(config)
    whole = WanTransformer(config, device="meta")
    assert weights == {name: tuple(weight.shape) for name, weight in whole.state_dict().items()}
    assert set(known) == set(dict(whole.named_buffers()))


# Patches of the ecosystem


def test_attention_patches(t2v):
    plain = predict(t2v[0])
    seen = []

    def patch(args):
        seen.append((tuple(args["q"].shape), args["transformer_options"]["block_index"]))
        return args["x"] * 1.5 + args["q"].flatten(2) - args["k"].flatten(2)

    assert_equal(t2v, lambda patcher: patcher.set_model_attn1_patch(patch), plain=plain)
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :] and len({index for _, index in seen}) == LAYERS
    assert_equal(t2v, lambda patcher: patcher.set_model_attn2_patch(lambda args: args["x"].tanh()), plain=plain)


@pytest.mark.skipif(not NATIVE_HAS_BLOCK_PATCHES, reason="this ComfyUI's Wan has no double_block patches")
def test_double_block_patch_sees_what_native_shows(t2v):
    seen = []

    def patch(args):
        shapes = {name: tuple(args[name].shape) for name in ("img", "x", "vec")}
        seen.append((shapes, args["block_index"], args["img_offset"], tuple(args["transformer_options"]["grid_sizes"])))
        return {"img": args["img"].tanh() * (1 + args["block_index"]) + args["vec"] * args["x"].std()}

    assert_equal(t2v, lambda patcher: patcher.set_model_double_block_patch(patch), plain=predict(t2v[0]))
    assert len(seen) == 2 * LAYERS and seen[:LAYERS] == seen[LAYERS:]


def test_skipped_layer(t2v):
    """What SkipLayerGuidanceDiT does."""
    assert_equal(
        t2v,
        lambda patcher: patcher.set_model_patch_replace(lambda args, extra: args, "dit", "double_block", 1),
        plain=predict(t2v[0]),
    )


def test_replaced_block_may_change_every_argument(t2v):
    seen = []

    def patch(args, extra):
        seen.append({name: tuple(args[name].shape) for name in ("img", "txt", "vec", "pe")})
        options = {**args["transformer_options"], "patches": {"attn1_patch": [lambda inner: 2 * inner["x"]]}}
        changed = {**args, "txt": args["txt"] * 0.5, "vec": args["vec"] + 0.1, "transformer_options": options}
        turned = extra["original_block"]({**args, "pe": args["pe"].flip(1)})["img"]
        return {"img": args["img"] + turned + extra["original_block"](changed)["img"]}

    def change(patcher):
        patcher.set_model_patch_replace(patch, "dit", "double_block", 0)
        patcher.set_model_attn1_patch(lambda args: args["x"] * 0.9)

    assert_equal(t2v, change, plain=predict(t2v[0]))
    assert len(seen) == 2 and seen[0] == seen[1]


def test_rope_options(t2v):
    assert_equal(
        t2v, lambda patcher: patcher.set_model_rope_options(1.3, 2.0, 0.7, 1.0, 1.2, 3.0), plain=predict(t2v[0])
    )


def test_attention_override(t2v):
    calls = []

    def override(function, q, k, v, *args, heads, **options):
        calls.append((tuple(q.shape), tuple(k.shape), heads))
        return function(q, 0.5 * k, v, *args, heads=heads, **options)

    def change(patcher):
        patcher.model_options["transformer_options"]["optimized_attention_override"] = override

    assert_equal(t2v, change, plain=predict(t2v[0]))
    half = 2 * LAYERS  # self- and cross-attention
    assert len(calls) == 2 * half and calls[:half] == calls[half:]


def test_diffusion_model_wrappers_get_native_arguments(t2v):
    seen = []

    def wrapper(executor, *args, **kwargs):
        seen.append(([type(arg) for arg in args], sorted(kwargs)))
        return executor(args[0] * 0.9, *args[1:], **kwargs)

    def change(patcher):
        patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "test", wrapper)

    assert_equal(t2v, change, plain=predict(t2v[0]))
    assert len(seen) == 2 and seen[0] == seen[1]


def test_reference_frames_after_the_clip(t2v):
    assert_equal(t2v, plain=predict(t2v[0]), time_dim_concat=latent(frames=2, seed=8))


def test_in_context_references_are_refused(t2v):
    with pytest.raises(InputError):
        predict(t2v[0], context_latents=[latent(seed=8)])


def test_easycache_runs(t2v):
    x = latent(batch=1)
    results = []
    for patcher in t2v:
        node = EasyCacheNode.execute(patcher, 0.2, 0.0, 1.0, False)
        sigmas = torch.tensor([1.0, 0.9, 0.8, 0.0])
        sampler = comfy.samplers.sampler_object("euler")
        positive = [[text(), {}]]
        results.append(
            comfy.sample.sample_custom(
                node[0], x, 1.0, sampler, sigmas, positive, positive, torch.zeros_like(x), seed=1
            )
        )
    assert difference(*results) < 1e-4


# LoRA


def test_native_lora_equals_merged_weights(folder, t2v, t2v_file):
    path = write_lora(folder / "lora.safetensors", "t2v_A14B_expert")
    lora = load_file(path)
    lora.pop("diffusion_model.blocks.0.ffn.0.diff")  # ComfyUI lets it replace the pair on the same weight
    ours, native = (comfy.sd.load_lora_for_models(patcher, None, dict(lora), 0.7, 0)[0] for patcher in t2v)
    result = predict(ours)
    assert difference(result, predict(native)) < CLOSE
    assert difference(result, predict(load_model(merged(folder / "merged.safetensors", t2v_file, lora, 0.7)))) < CLOSE
    assert difference(result, predict(t2v[0])) > 1e-2


def merged(path, model, lora, strength):
    weights = load_file(model)
    for name in weights:
        layer = f"diffusion_model.{name.rpartition('.')[0]}"
        if name.endswith(".weight") and f"{layer}.lora_up.weight" in lora:
            rank = lora[f"{layer}.lora_down.weight"].shape[0]
            scale = strength * lora[f"{layer}.alpha"].item() / rank
            weights[name] += scale * lora[f"{layer}.lora_up.weight"] @ lora[f"{layer}.lora_down.weight"]
        if name.endswith(".weight") and f"{layer}.diff" in lora:
            weights[name] += strength * lora[f"{layer}.diff"]
        if name.endswith(".bias") and f"{layer}.diff_b" in lora:
            weights[name] += strength * lora[f"{layer}.diff_b"]
    save_file(weights, path, metadata={"config": json.dumps({"transformer": {"text_dim": 256}})})
    return str(path)


def test_our_lora_adds_pair_and_difference(folder, t2v, t2v_file):
    path = write_lora(folder / "wan_lightx2v_4steps_high.safetensors", "t2v_A14B_expert")
    lora = load_file(path)
    patched, match = bridge_lora.apply_lora(t2v[0], path, "wan_lightx2v_4steps_high.safetensors", 0.7)
    assert (match.applied, match.unknown, match.misfit) == (13 * LAYERS + 1, (), ())
    expected = predict(load_model(merged(folder / "both.safetensors", t2v_file, lora, 0.7)))
    assert difference(predict(patched), expected) < CLOSE
    assert model_facts(patched).distilled and not model_facts(t2v[0]).distilled
    assert model_facts(patched.clone()).distilled
    on_native, _ = bridge_lora.apply_lora(t2v[1], path, "wan_lightx2v_4steps_high.safetensors", 0.7)
    assert difference(predict(on_native), expected) < CLOSE and model_facts(on_native).distilled


def test_lora_on_scaled_fp8_is_exact(folder):
    path = write_scaled(folder / "fp8_lora.safetensors", torch.float8_e4m3fn)
    stored = load_file(path)
    decoded = {name: tensor for name, tensor in stored.items() if not name.endswith(("scaled_fp8", "scale_weight"))}
    for name in [name for name in stored if name.endswith(".scale_weight")]:
        weight = name.removesuffix("scale_weight") + "weight"
        decoded[weight] = stored[weight].float() * stored[name]
    save_file(decoded, folder / "decoded.safetensors")
    lora = load_file(write_lora(folder / "lora2.safetensors", "t2v_A14B_expert"))
    del lora["diffusion_model.blocks.0.ffn.0.diff"]  # ComfyUI's node would take it in the place of the pair
    expected = predict(load_model(merged(folder / "both8.safetensors", folder / "decoded.safetensors", lora, 1.0)))
    patched = predict(comfy.sd.load_lora_for_models(load_model(path), None, dict(lora), 1.0, 0)[0])
    assert difference(patched, expected) < CLOSE


def test_lora_that_does_not_fit_is_an_error(folder, t2v, t2v_file):
    strange = folder / "strange.safetensors"
    pair = {"x.lora_down.weight": torch.zeros(4, 8), "x.lora_up.weight": torch.zeros(8, 4)}
    save_file(pair, strange)
    with pytest.raises(WrongModelError) as caught:
        bridge_lora.apply_lora(t2v[0], str(strange), strange.name, 1.0)
    assert str(strange) in caught.value.where
    wide = folder / "wide.safetensors"
    save_file({f"diffusion_model.blocks.0.ffn.0.{name[2:]}": tensor for name, tensor in pair.items()}, wide)
    with pytest.raises(WrongModelError):
        bridge_lora.apply_lora(t2v[0], str(wide), wide.name, 1.0)
    with pytest.raises(WrongModelError):
        bridge_lora.apply_lora(t2v[0], t2v_file, "model.safetensors", 1.0)


def test_lora_for_another_width_of_patch_embedding_is_applied_but_for_that(folder, t2v):
    lora = load_file(write_lora(folder / "lora3.safetensors", "t2v_A14B_expert"))
    lora["diffusion_model.patch_embedding.diff"] = torch.zeros(256, 36, 1, 2, 2)
    lora["diffusion_model.img_emb.proj.1.diff_b"] = torch.zeros(4)
    path = folder / "from_i2v.safetensors"
    save_file(lora, path)
    patched, match = bridge_lora.apply_lora(t2v[0], str(path), path.name, 1.0)
    assert match.misfit == ("diffusion_model.patch_embedding",)
    assert match.unknown == ("diffusion_model.img_emb.proj.1",)
    assert f"{13 * LAYERS + 1} of {13 * LAYERS + 3} layers" in match.report()
    assert not any("patch_embedding" in key for key in patched.patches)


# Life of a patcher


def test_clone_unload_reload_are_bit_equal(folder, t2v_file):
    base = load_model(t2v_file)
    before = predict(base)
    lora = load_file(write_lora(folder / "lora4.safetensors", "t2v_A14B_expert"))
    patched = comfy.sd.load_lora_for_models(base, None, dict(lora), 1.0, 0)[0]
    with_lora = predict(patched)
    assert not torch.equal(with_lora, before)
    assert torch.equal(predict(base), before)
    management.unload_all_models()
    assert torch.equal(predict(patched), with_lora)
    management.unload_all_models()
    assert torch.equal(predict(base.clone()), before)
    factory, arguments = base.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    assert again.model is not base.model and torch.equal(predict(again), before)


def test_patcher_class_is_looked_up_at_call_time(t2v_file, monkeypatch):
    class Other(comfy.model_patcher.ModelPatcher):
        pass

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Other)
    assert type(load_model(t2v_file)) is Other
    assert type(load_model(t2v_file, disable_dynamic=True)) is comfy.model_patcher.ModelPatcher


def test_mapped_weights_stay_mapped_where_comfyui_maps_them(t2v_file, monkeypatch):
    """The dynamic patcher asks for assignment: every parameter is the tensor that was read, not a copy."""
    read = {}

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self):
            return True

    def load(*args, **kwargs):
        sd, metadata = original(*args, **kwargs)
        read.update({name: tensor.data_ptr() for name, tensor in sd.items()})
        return sd, metadata

    original = comfy.utils.load_torch_file
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    monkeypatch.setattr(comfy.utils, "load_torch_file", load)
    model = load_model(t2v_file).model.diffusion_model
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == read


def test_layers_that_have_no_weight_before_loading(folder, t2v, t2v_file, monkeypatch):
    """Under Dynamic VRAM ComfyUI builds linear layers empty; loading fills all of them, or says which it cannot."""
    path = write_tiny(folder / "with_hole.safetensors", "t2v_A14B_expert")
    read = comfy.utils.load_torch_file  # with the library, whose mapping needs no GPU
    for hole in (None, "blocks.1.ffn.2.weight"):
        sd, metadata = read(path, return_metadata=True)
        sd.pop(hole, None)
        monkeypatch.setattr(comfy.utils, "load_torch_file", lambda *args, got=(sd, metadata), **kwargs: got)
        with monkeypatch.context() as patch:
            patch.setattr(comfy.memory_management, "aimdo_enabled", True)
            if hole:
                with pytest.raises(WrongModelError) as caught:
                    load_model(path)
                assert hole in caught.value.found and path in caught.value.where
            else:
                patcher = load_model(path)
    assert difference(predict(patcher), predict(t2v[1])) < CLOSE


# Number types


@pytest.fixture
def gpu_types(monkeypatch):
    """A device that computes in float16 and bfloat16, as every recent GPU."""
    monkeypatch.setattr(management, "should_use_fp16", lambda *args, **kwargs: True)
    monkeypatch.setattr(management, "should_use_bf16", lambda *args, **kwargs: True)


@pytest.mark.parametrize(
    ("stored", "computed"),
    [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.bfloat16)],
)
def test_computes_in_the_type_of_the_file(folder, gpu_types, stored, computed):
    path = write_tiny(folder / f"{stored}.safetensors", "t2v_A14B_expert", dtype=stored)
    patcher = load_model(path)
    assert patcher.model.get_dtype_inference() == computed
    assert patcher.model.diffusion_model.blocks[0].ffn[0].weight.dtype == computed
    exact = predict(load_model(path, dtype=torch.float32))
    assert difference(predict(patcher), exact) < 2e-2


def test_quantised_files_compute_in_bfloat16(folder, gpu_types):
    path = write_scaled(folder / "fp8_types.safetensors", torch.float8_e4m3fn)
    assert load_model(path).model.get_dtype_inference() == torch.bfloat16
    assert load_model(path, dtype=torch.float32).model.get_dtype_inference() == torch.float32


# Facts and refusals


def test_facts(folder, t2v):
    for patcher in t2v:
        facts = model_facts(patcher)
        assert (facts.task.id, facts.expert, facts.in_dim, facts.latent_channels) == ("t2v-A14B", "high", 16, 16)
    assert [model_facts(patcher).is_native for patcher in t2v] == [False, True]
    named = write_tiny(folder / "wan2.2_i2v_A14b_low_noise_lightx2v_4step.safetensors", "i2v_A14B_expert")
    for patcher in (load_model(named), comfy.sd.load_diffusion_model(named)):
        facts = model_facts(patcher)
        assert (facts.task.id, facts.expert, facts.distilled) == ("i2v-A14B", "low", True)


def test_default_shift_is_the_tasks(t2v):
    assert t2v[0].model.model_sampling.shift == 12.0


def test_wrong_tensors_are_named_before_anything_is_read(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the file was read")

    monkeypatch.setattr(bridge_model.comfy.utils, "load_torch_file", refuse)
    good = tiny_weights("t2v_A14B_expert")
    wrong = {
        "missing": {name: weight for name, weight in good.items() if "blocks.1.cross_attn" not in name},
        "left over": {**good, "blocks.0.extra.weight": torch.zeros(3)},
        "of another shape": {**good, "blocks.1.self_attn.q.weight": torch.zeros(256, 128)},
    }
    for what, weights in wrong.items():
        path = folder / f"{what}.safetensors"
        save_file(weights, path)
        with pytest.raises(WrongModelError) as caught:
            load_model(str(path))
        assert what in caught.value.found and str(path) in caught.value.where
        assert caught.value.found.count("blocks.") <= 5
    cut = folder / "cut.safetensors"
    cut.write_bytes((folder / "left over.safetensors").read_bytes()[:-7])
    with pytest.raises(WeightsFileError):
        load_model(str(cut))


@pytest.mark.parametrize("shapes", ["s2v_14B", "animate_14B", "vae21", "umt5_xxl"])
def test_what_the_model_cannot_run_is_refused(folder, shapes):
    weights = {name: torch.zeros([min(axis, 8) for axis in shape]) for name, shape in _shapes(shapes).items()}
    path = folder / f"refused_{shapes}.safetensors"
    save_file(weights, path)
    with pytest.raises((WrongModelError, WeightsFileError)) as caught:
        load_model(str(path))
    assert str(path) in caught.value.where and caught.value.remedy


def _shapes(name):
    from .tiny_models import SHAPES

    return json.loads((SHAPES / f"{name}.json").read_text())["shapes"]


def test_two_prompts_are_thought_to_fit_where_one_does(t2v):
    """ComfyUI then computes them as one batch, and a small card fetches every block once for both."""
    (ours, native), shape = t2v, (16, 21, 60, 104)
    one, two, four = (ours.model.memory_required([batch, *shape]) for batch in (1, 2, 4))
    assert one == native.model.memory_required([1, *shape]) == two == four / 2
