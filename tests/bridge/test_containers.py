"""The same weights from every container and spelling: the model and the text encoder answer the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from make_pocket import build
from pocket_gguf import is_block_matrix, write_umt5
from safetensors.torch import save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
from wancore.nodes.bridge.facts import model_facts
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.quantised import native_nvfp4
from wancore.nodes.bridge.text_encoder import load_text_encoder
from wancore.wan_core.errors import WeightsFileError, WrongModelError
from wancore.wan_core.weights import inspect
from wancore.wan_core.weights.keys import DIFFUSERS, DIFFUSERS_BLOCK

from .quantised_files import family, weights

META = family.T2V_HIGH.metadata


pytestmark = pytest.mark.usefixtures("inference")


def predict(path: Path) -> torch.Tensor:
    patcher = load_model(str(path))
    management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(0)
    noise, text = (torch.randn(size, generator=generator) for size in ((1, 16, 3, 8, 8), (1, 512, family.TEXT_DIM)))
    return patcher.model.apply_model(noise, torch.tensor([0.9]), c_crossattn=text)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "wan2.2_t2v_high_noise_14B.safetensors"
    save_file(weights(), path, metadata=META)
    with torch.inference_mode():
        return predict(path)


SHARD = "diffusion_pytorch_model-{:05}-of-{:05}.safetensors"


def in_shards(folder: Path, tensors: dict[str, torch.Tensor], shards: int = 3, name: str = SHARD) -> Path:
    folder.mkdir(parents=True)
    names, table = sorted(tensors), {}
    for number in range(shards):
        file = name.format(number + 1, shards)
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata=META)
        table |= dict.fromkeys(part, file)
    index = folder / f"{name.partition('-')[0]}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return folder


def diffusers_name(name: str) -> str:
    rows = DIFFUSERS_BLOCK if name.startswith("blocks.") else DIFFUSERS
    for theirs, ours in rows:
        if theirs not in ("to_out", "proj_in") and not (theirs == "proj_out" and name.startswith("blocks.")):
            name = f".{name}.".replace(f".{ours}.", f".{theirs}.")[1:-1]
    return name


def official_folder(folder: Path) -> Path:
    return in_shards(folder / "Wan2.2-T2V-A14B" / "high_noise_model", weights())


def diffusers_folder(folder: Path) -> Path:
    (folder / "transformer_2").mkdir()
    return in_shards(folder / "transformer", {diffusers_name(name): tensor for name, tensor in weights().items()})


def prefixed(folder: Path) -> Path:
    path = folder / "Wan2_2-T2V-A14B-HIGH_bf16.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in weights().items()}, path, metadata=META)
    return path


@pytest.mark.parametrize("write", [official_folder, diffusers_folder, prefixed], ids=lambda write: write.__name__)
def test_the_same_model_from_every_container(write, expected, tmp_path):
    path = write(tmp_path)
    assert inspect(path).expert == "high"
    assert torch.equal(predict(path), expected)


def test_a_diffusers_folder_alone_is_no_expert(tmp_path):
    alone, high = in_shards(tmp_path / "one" / "transformer", weights()), diffusers_folder(tmp_path)
    low = in_shards(tmp_path / "two" / "transformer_2", weights())
    assert [inspect(path).expert for path in (alone, high, low)] == [None, "high", "low"]
    assert [model_facts(load_model(str(path))).expert for path in (alone, high, low)] == [None, "high", "low"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("shape", ["column", "row", "one"])
def test_scales_without_a_mark(dtype, shape, tmp_path):
    """LightX2V: one scale for each output channel; others: one for the matrix."""
    top = 127.0 if dtype == torch.int8 else 448.0
    stored, plain = {}, {}
    for name, weight in weights().items():
        stored[name] = plain[name] = weight.float()
        if is_block_matrix(name, weight):
            peak = weight.float().abs().amax(dim=1, keepdim=True)
            scale = (peak.amax() if shape == "one" else peak) / top
            scaled = weight.float() / scale
            stored[name] = (scaled.round() if dtype == torch.int8 else scaled).to(dtype)
            stored[name.replace("weight", "weight_scale")] = (scale.flatten() if shape == "row" else scale).clone()
            plain[name] = stored[name].float() * scale
    save_file(stored, tmp_path / "lightx2v.safetensors", metadata=META)
    save_file(plain, tmp_path / "plain.safetensors", metadata=META)
    ours = predict(tmp_path / "lightx2v.safetensors")
    wanted = predict(tmp_path / "plain.safetensors")
    assert (ours - wanted).norm() / wanted.norm() < 1e-5


def test_both_ages_of_lightx2v_scales_say_the_same():
    weight = {"a.weight": torch.tensor([[0x12, 0xF0]], dtype=torch.uint8), "a.weight_scale": torch.ones(1)}
    new = native_nvfp4({**weight, "a.weight_global_scale": torch.tensor(2.0), "a.input_absmax": torch.tensor(26.88)})
    old = {**weight, "a.alpha": torch.tensor(0.005), "a.input_global_scale": torch.tensor(100.0)}
    assert new["a.weight"].tolist() == [[0x21, 0x0F]] and float(new["a.weight_scale_2"]) == 0.5
    found = native_nvfp4(old)
    assert found.keys() == new.keys() and all(torch.allclose(found[name].float(), new[name].float()) for name in new)


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = in_shards(tmp_path / "high_noise_model", weights())
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsFileError) as error:
        inspect(folder)
    assert "00002-of-00003" in error.value.found


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": 3}'])
def test_a_damaged_index_is_refused(text, tmp_path):
    (tmp_path / "x.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsFileError) as error:
        inspect(tmp_path)
    assert "index" in error.value.what


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises((WeightsFileError, WrongModelError)):
        inspect(tmp_path)


def text_encoder_by_channels(folder: Path, dtype: torch.dtype) -> tuple[Path, Path]:
    """As LightX2V's converter writes models_t5_umt5-xxl-enc-fp8 and -int8, and the same numbers decoded."""
    stored, plain = {}, {}
    for name, weight in build(family.TEXT_ENCODER, fp8=False).items():
        stored[name] = plain[name] = weight
        if ".SelfAttention." in name and weight.ndim == 2 and "bias" not in name:
            scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-5) / (127 if dtype == torch.int8 else 448)
            stored[name], stored[f"{name}_scale"] = _rounded(weight.float() / scale, dtype), scale
            plain[name] = (stored[name].float() * scale).to(weight.dtype)
    paths = folder / "stored.safetensors", folder / "plain.safetensors"
    for path, tensors in zip(paths, (stored, plain), strict=True):
        save_file(tensors, path)
    return paths


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_text_encoder_with_a_scale_for_each_channel(dtype, tmp_path):
    contexts = []
    for path in text_encoder_by_channels(tmp_path, dtype):
        clip = load_text_encoder(path)
        contexts.append(clip.encode_from_tokens(clip.tokenize("a red circle moves to the right")))
    assert (contexts[0] - contexts[1]).norm() / contexts[1].norm() < 2e-2  # one rounding to bfloat16 a layer


def _rounded(values, dtype):
    return values.round().to(dtype) if dtype == torch.int8 else values.to(dtype)


def test_gguf_text_encoder(tmp_path):
    packed, decoded = write_umt5(tmp_path)
    assert (inspect(packed).kind, inspect(packed).family.id) == ("text_encoder", "umt5")
    contexts = []
    for path in (packed, decoded):
        clip = load_text_encoder(path)
        tokens = clip.tokenize("a red circle moves to the right")
        contexts.append((tokens, clip.encode_from_tokens(tokens)))
    assert contexts[0][0] == contexts[1][0], "the rebuilt tokenizer cuts the text differently"
    error = (contexts[0][1] - contexts[1][1]).norm() / contexts[1][1].norm()
    assert error < 1e-4
