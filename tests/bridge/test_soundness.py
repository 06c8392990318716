"""Damaged numbers and files that change in use: refused with the file and the layer, and the process lives on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from make_pocket import build
from safetensors.torch import load_file, save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy.sample
import comfy.utils
from comfy.quant_ops import QuantizedTensor
from wancore.nodes.bridge import soundness
from wancore.nodes.bridge.audio_encoder import load_audio_encoder, sound_features
from wancore.nodes.bridge.clip_vision import load_clip_vision
from wancore.nodes.bridge.decode import decode_clips
from wancore.nodes.bridge.guider import DualExpertGuider
from wancore.nodes.bridge.images import encode_clip
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.schedule import sampler_object
from wancore.nodes.bridge.text_encoder import load_text_encoder
from wancore.nodes.bridge.vae import load_vae
from wancore.nodes.loaders import WanCoreLoadDiffusionModel
from wancore.wan_core.errors import InputError, WeightsFileError
from wancore.wan_core.weights.mapped import MappedFile

from .quantised_files import family, is_known, weights, write_format

LAYER = "blocks.1.ffn.0"
NAN, INFINITY = float("nan"), float("inf")


pytestmark = pytest.mark.usefixtures("no_room", "inference")


def written(folder: Path, kind: str) -> str:
    """A model in one of the formats, or in bf16."""
    if kind == "bf16":
        save_file(weights(), folder / "wan22_high_noise.safetensors", metadata=family.T2V_HIGH.metadata)
        return str(folder / "wan22_high_noise.safetensors")
    if not is_known(kind):
        pytest.skip("this ComfyUI has no such weights")
    return write_format(folder / "wan22_high_noise", kind)


def changed(path: str, change) -> str:
    """The same file with other tensors."""
    metadata = comfy.utils.load_torch_file(path, return_metadata=True)[1]
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata=metadata)
    return path


def predict(patcher, latent=0.0, text=0.0):
    management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
    seed = torch.Generator().manual_seed(0)
    noise, context = (torch.randn(size, generator=seed) for size in ((1, 16, 1, 8, 8), (1, 16, family.TEXT_DIM)))
    options = patcher.model_options.get("transformer_options", {})
    call = patcher.model.apply_model
    return call(noise + latent, torch.tensor([0.9]), c_crossattn=context + text, transformer_options=options)


def sampled(patcher):
    """A run of one step by ComfyUI's own sampler."""
    text = torch.randn(1, 16, family.TEXT_DIM, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    conditions = [[text, {}]]
    settings = (1, 1.0, "euler", "simple", conditions, conditions, torch.zeros_like(noise))
    return comfy.sample.sample(patcher, noise, *settings, disable_pbar=True)


SMALL = {  # kind of file: tensor, value, what is said
    "scale of nothing": ("fp8 scaled", f"{LAYER}.scale_weight", 0.0, "a scale of zero"),
    "scale that is NaN": ("fp8 scaled", f"{LAYER}.scale_weight", NAN, "NaN"),
    "scale that is infinite": ("fp8 comfy_quant", f"{LAYER}.weight_scale", INFINITY, "NaN"),
    "scale of a channel": ("LightX2V fp8", f"{LAYER}.weight_scale", NAN, "NaN"),
    "scale of a channel that is zero": ("LightX2V int8", f"{LAYER}.weight_scale", 0.0, "a scale of zero"),
    "scale of all blocks": ("nvfp4", f"{LAYER}.weight_scale_2", NAN, "NaN"),
    "bias": ("fp8 plain", f"{LAYER}.bias", NAN, "NaN"),
    "norm": ("int8_tensorwise", "blocks.0.norm3.weight", INFINITY, "NaN"),
}


@pytest.mark.parametrize("case", SMALL)
def test_small_tensors_are_looked_at_before_anything_is_computed(case, tmp_path):
    kind, name, value, words = SMALL[case]
    if not is_known(kind):
        pytest.skip("this ComfyUI has no such weights")
    path = changed(
        written(tmp_path, kind),
        lambda tensors: tensors[name].flatten()[:1].fill_(value),
    )
    with pytest.raises(WeightsFileError) as error:
        load_model(path)
    assert words in error.value.found and name in error.value.found and path in error.value.where


def test_a_layer_of_zeros_may_have_a_scale_of_zero(tmp_path):
    def change(tensors):
        tensors[f"{LAYER}.scale_weight"].fill_(0.0)
        tensors[f"{LAYER}.weight"].view(torch.uint8).fill_(0)

    assert (
        predict(load_model(changed(write_format(tmp_path / "wan2.2_high_noise", "fp8 scaled"), change)))
        .isfinite()
        .all()
    )


def broken_float8(tensors):
    tensors[f"{LAYER}.weight"].view(torch.uint8)[3, 5] = 0x7F


def broken_blocks(tensors):
    tensors[f"{LAYER}.weight_scale"].view(torch.uint8)[0, 0] = 0xFF


def broken_float(tensors):
    tensors[f"{LAYER}.weight"][3, 5] = NAN


@pytest.mark.parametrize(
    ("kind", "change"),
    [("fp8 scaled", broken_float8), ("fp8 plain", broken_float8), ("mxfp8", broken_blocks), ("bf16", broken_float)],
)
def test_matrices_are_named_once_an_answer_is_no_number(kind, change, tmp_path, monkeypatch):
    monkeypatch.setattr(soundness, "SMALL", 600)  # as far below these matrices as the real limit is below real ones
    path = changed(written(tmp_path, kind), change)
    patcher = load_model(path)
    with pytest.raises(WeightsFileError) as error:
        predict(patcher)
    assert f"NaN or infinity in {LAYER}.weight" == error.value.found and path in error.value.where


def both(high, low):
    """A run of three steps by the pair's own sampler: the low expert joins in the second one."""
    guider = DualExpertGuider(high, low, 0.875)
    prompts = ([[torch.randn(1, 16, family.TEXT_DIM, generator=torch.Generator().manual_seed(1)), {}]] for _ in "+-")
    guider.set_conds(*prompts)
    guider.set_cfg(1.0)
    noise = torch.randn(1, 16, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    sigmas = torch.tensor([1.0, 0.8, 0.5, 0.0])
    return guider.sample(noise, torch.zeros_like(noise), sampler_object("euler"), sigmas, disable_pbar=True, seed=1)


def test_an_expert_that_joins_a_run_is_looked_at_too(tmp_path, monkeypatch):
    """Once in a run each: the question waits for the GPU."""
    places = [tmp_path / name for name in ("high", "low")]
    for place in places:
        place.mkdir()
    files = [written(place, "bf16") for place in places]
    asked, check = [], soundness.check_answer
    monkeypatch.setattr(soundness, "check_answer", lambda *args, **kw: asked.append(args[2]) or check(*args, **kw))
    high, low = (load_model(file) for file in files)
    for _ in range(2):
        assert both(high, low).isfinite().all()
    assert asked == [repr(file) for file in files] * 2
    assert sampled(low).isfinite().all()  # and alone
    assert asked[4:] == [repr(files[1])]
    monkeypatch.setattr(soundness, "SMALL", 600)
    broken = load_model(changed(files[1], broken_float))
    with pytest.raises(WeightsFileError) as error:
        both(high, broken)
    assert f"NaN or infinity in {LAYER}.weight" == error.value.found and files[1] in error.value.where


def test_inputs_that_are_no_numbers_are_named(tmp_path):
    patcher = load_model(written(tmp_path, "Q8_0"))
    assert predict(patcher).isfinite().all()
    for name, values in (("latent", {"latent": NAN}), ("conditioning", {"text": NAN})):
        with pytest.raises(InputError) as error:
            predict(patcher, **values)
        assert error.value.where == name


def test_an_answer_that_nothing_explains_names_the_node_to_change():
    with pytest.raises(InputError) as error:
        soundness.check_answer(torch.tensor(NAN), torch.nn.Linear(1, 1), "a file", latent=torch.zeros(1))
    assert error.value.where == "a file"
    assert WanCoreLoadDiffusionModel.define_schema().display_name in error.value.remedy, "it has weight_dtype"


def test_a_broken_lora_is_refused_by_its_layer(tmp_path):
    patcher = load_model(written(tmp_path, "Q8_0"))
    width, inputs = weights()[f"{LAYER}.weight"].shape
    pair = {"lora_A.weight": torch.ones(2, inputs), "lora_B.weight": torch.full((width, 2), NAN)}
    save_file({f"diffusion_model.{LAYER}.{part}": tensor for part, tensor in pair.items()}, tmp_path / "a.safetensors")
    for merge in (True, False):
        with pytest.raises(WeightsFileError) as error:
            apply_lora(patcher, str(tmp_path / "a.safetensors"), "a", 1.0, merge=merge)
        assert f"{LAYER}.lora_B.weight" in error.value.found


def see(encoder):
    return encoder.encode_image(torch.rand(1, 64, 64, 3))


def hear(encoder):
    return sound_features(encoder, {"waveform": torch.rand(1, 1, 8000), "sample_rate": 16000}, 0.0)


def test_the_other_parts_are_named_too(tmp_path, monkeypatch):
    for member, change in (
        (family.TEXT_ENCODER, "encoder.block.0.layer.1.DenseReluDense.wo.weight"),
        (family.VAE, "decoder.conv1.weight"),
    ):
        tensors = build(member, fp8=False)
        tensors[change] = torch.full_like(tensors[change], NAN)
        save_file(tensors, tmp_path / member.name)
    with pytest.raises(WeightsFileError) as error:
        clip = load_text_encoder(tmp_path / family.TEXT_ENCODER.name)
        clip.encode_from_tokens(clip.tokenize("a red circle"))
    assert "wo.weight" in error.value.found and family.TEXT_ENCODER.name in error.value.where
    with pytest.raises(WeightsFileError) as error:
        vae = load_vae(tmp_path / family.VAE.name)
        decode_clips({"samples": torch.zeros(1, 16, 1, 8, 8)}, vae, None, with_images=False)
    assert "decoder.conv1.weight" in error.value.found and family.VAE.name in error.value.where
    monkeypatch.setattr(soundness, "SMALL", 600)  # as above
    tensors = build(family.VAE, fp8=False)
    tensors["encoder.conv1.weight"].fill_(INFINITY)
    save_file(tensors, tmp_path / family.VAE.name)
    vae = load_vae(tmp_path / family.VAE.name)
    with pytest.raises(WeightsFileError) as error:
        encode_clip(vae, torch.rand(1, 3, 1, 32, 32))
    assert "encoder.conv1.weight" in error.value.found and family.VAE.name in error.value.where
    vae.first_stage_model.encoder.conv1.weight.data.fill_(1e38)
    with pytest.raises(InputError) as error:
        encode_clip(vae, torch.rand(1, 3, 1, 32, 32))
    assert error.value.where == "vae" and "--fp32-vae" in error.value.remedy
    vision, sound = "vision_model.encoder.layers.0.mlp.fc1.weight", "encoder.layers.0.feed_forward.output_dense.weight"
    for member, load, answer, change, named in (
        (family.CLIP_VISION, load_clip_vision, see, vision, "transformer.0.mlp.0.weight"),
        (family.AUDIO_ENCODER, load_audio_encoder, hear, sound, sound),
    ):
        tensors = build(member, fp8=False)
        tensors[change] = torch.full_like(tensors[change], NAN)
        save_file(tensors, tmp_path / member.name)
        encoder = load(tmp_path / member.name)
        with pytest.raises(WeightsFileError) as error:
            answer(encoder)
        assert named in error.value.found and member.name in error.value.where


def style(folder: Path) -> str:
    """A LoRA of one layer."""
    width, inputs = weights()[f"{LAYER}.weight"].shape
    pair = {"lora_A.weight": torch.ones(64, inputs), "lora_B.weight": torch.full((width, 64), 1e-3)}
    path = folder / "style.safetensors"
    save_file({f"diffusion_model.{LAYER}.{part}": tensor for part, tensor in pair.items()}, path)
    return str(path)


def cut_off(path: str) -> None:
    os.truncate(path, 500)


def written_over(path: str) -> None:
    """In its place, by one that is as long, as a trainer does."""
    with open(path, "r+b") as file:
        file.write(os.urandom(os.path.getsize(path)))
    os.utime(path, ns=(0, 0))


@pytest.mark.parametrize(("change", "words"), [(cut_off, "cut off"), (written_over, "written over")])
def test_a_lora_that_changes_while_it_is_in_use_is_no_crash(change, words, tmp_path):
    base, path = load_model(written(tmp_path, "Q8_0")), style(tmp_path)
    patched = apply_lora(base, path, "style", 1.0, merge=False)[0]
    assert predict(patched).isfinite().all() and not torch.equal(predict(patched), predict(base))
    base.model.diffusion_model.blocks[0].register_forward_hook(lambda *_: change(path))
    with pytest.raises(WeightsFileError, match=words) as error:  # before the next block
        predict(patched)
    assert path in error.value.where
    with pytest.raises(WeightsFileError, match=words):  # before the next call
        predict(patched)
    merged = apply_lora(load_model(written(tmp_path, "bf16")), style(tmp_path), "style", 1.0)[0]
    change(path)
    with pytest.raises(WeightsFileError, match=words):  # before the next run merges it
        sampled(merged)


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "beside"])
def test_a_lora_that_is_replaced_or_deleted_keeps_its_content(merge, tmp_path):
    path = style(tmp_path)
    patched = apply_lora(load_model(written(tmp_path, "bf16")), path, "style", 1.0, merge=merge)[0]
    before = sampled(patched)
    (tmp_path / "new").write_bytes(b"short")
    os.replace(tmp_path / "new", path)
    assert torch.equal(sampled(patched), before)
    os.unlink(path)
    management.unload_all_models()
    assert torch.equal(sampled(patched), before)


@pytest.mark.parametrize("kind", ["fp8 plain", "Q8_0", "LightX2V fp8"])
def test_a_file_that_is_cut_off_while_it_is_in_use_is_no_crash(kind, tmp_path):
    """Without the question before it, reading a page behind the end would end the process."""
    path = written(tmp_path, kind)
    patcher = load_model(path)
    assert predict(patcher).isfinite().all()
    patcher.model.diffusion_model.blocks[0].register_forward_hook(lambda *_: os.truncate(path, 5000))
    with pytest.raises(WeightsFileError, match="cut off"):  # before the next block
        predict(patcher)
    with pytest.raises(WeightsFileError, match="cut off"):  # before the next run loads it
        patcher.memory_required((1, 16, 1, 8, 8))


def test_a_text_encoder_that_was_cut_off_is_refused_before_its_weights_are_touched(tmp_path, monkeypatch):
    path = tmp_path / family.TEXT_ENCODER.name
    save_file(build(family.TEXT_ENCODER, fp8=False), path)
    clip = load_text_encoder(path)
    clip.cond_stage_model.umt5xxl.transformer.files = (MappedFile.of(path),)  # as with Dynamic VRAM, on a GPU
    tokens = clip.tokenize("a red circle")
    clip.encode_from_tokens(tokens)
    os.truncate(path, 500)
    monkeypatch.setattr(management, "load_models_gpu", lambda *_, **__: pytest.fail("weights are loaded"))
    with pytest.raises(WeightsFileError, match="cut off") as error:
        clip.encode_from_tokens(tokens)
    assert str(path) in error.value.where


def mapped_vae(folder: Path):
    """A VAE and its file, which it would go on reading with Dynamic VRAM; that needs a GPU, so here it is told."""
    path = folder / family.VAE.name
    save_file(build(family.VAE, fp8=False), path)
    vae = load_vae(path)
    vae.first_stage_model.files = (MappedFile.of(path),)
    return vae, str(path)


PIXELS, LATENT, TILES = torch.rand(5, 64, 128, 3), torch.zeros(1, 16, 2, 8, 16), {"tile_x": 64, "tile_y": 64}
VAE_USES = {
    "our encoding": lambda vae: encode_clip(vae, PIXELS.movedim(-1, 0)[None]),
    "our decoding": lambda vae: decode_clips({"samples": LATENT}, vae, None, with_images=True),
    "VAE Encode": lambda vae: vae.encode(PIXELS),
    "VAE Decode": lambda vae: vae.decode(LATENT),
    "VAE Encode (Tiled)": lambda vae: vae.encode_tiled(PIXELS, overlap=16, **TILES),
    "VAE Decode (Tiled)": lambda vae: vae.decode_tiled(LATENT, tile_x=8, tile_y=8, overlap=2),
}


@pytest.mark.parametrize("use", VAE_USES)
def test_a_vae_that_was_cut_off_is_refused_before_its_weights_are_touched(use, tmp_path, monkeypatch):
    vae, path = mapped_vae(tmp_path)
    VAE_USES[use](vae)
    os.truncate(path, 500)
    monkeypatch.setattr(management, "load_models_gpu", lambda *_, **__: pytest.fail("weights are loaded"))
    with pytest.raises(WeightsFileError, match="cut off") as error:
        VAE_USES[use](vae)
    assert path in error.value.where


@pytest.mark.parametrize(("use", "half"), [("VAE Encode (Tiled)", "encoder"), ("VAE Decode (Tiled)", "decoder")])
def test_a_vae_that_is_cut_off_is_refused_before_the_next_tile(use, half, tmp_path):
    vae, path = mapped_vae(tmp_path)
    getattr(vae.first_stage_model, half).register_forward_hook(lambda *_: os.truncate(path, 500))
    with pytest.raises(WeightsFileError, match="cut off"):
        VAE_USES[use](vae)


def test_a_file_replaced_by_another_one_keeps_its_content(tmp_path):
    path = written(tmp_path, "fp8 plain")
    patcher = load_model(path)
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, LAYER)
    assert not isinstance(layer.weight, QuantizedTensor)
    bits = layer.weight.view(torch.uint8).clone()
    (tmp_path / "new").write_bytes(b"short")
    os.replace(tmp_path / "new", path)
    assert predict(patcher).isfinite().all() and torch.equal(layer.weight.view(torch.uint8), bits)
