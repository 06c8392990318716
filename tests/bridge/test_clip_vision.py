"""The picture encoder against ComfyUI's own class on the same weights, in both spellings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ..comfy_host import import_comfy

ROOT = import_comfy()

import comfy.clip_vision
import comfy.memory_management
import comfy.utils
from make_pocket import build, write
from wancore.nodes.bridge.clip_vision import load_clip_vision
from wancore.nodes.bridge.replay import digest
from wancore.pocket import family
from wancore.wan_core.errors import WrongModelError
from wancore.wan_core.vision.keys import official

import nodes

from .native_wan import relative

LIMIT = 1e-5


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip_vision") / family.CLIP_VISION.name
    write(build(family.CLIP_VISION, fp8=True), path, {})
    return path


@pytest.fixture(scope="module")
def native(path):
    """ComfyUI's class, which takes other sizes than its loader knows."""
    config = json.loads((ROOT / "comfy" / "clip_vision_config_h.json").read_text())
    widths = family.CLIP_VISION.widths
    sizes = {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1024}
    heads = {"num_attention_heads": widths[1280] // 80}
    model = comfy.clip_vision.ClipVisionModel(
        {**config, **{name: widths[size] for name, size in sizes.items()}, **heads}
    )
    assert model.load_sd(load_file(path)) == ([], [])
    return model


def square(seed: int = 1) -> torch.Tensor:
    """Of the encoder's size and in 8 bits, which both take as it is."""
    return torch.randint(0, 256, (1, 224, 224, 3), generator=torch.Generator().manual_seed(seed)).float() / 255


def test_equals_native_through_the_native_node(path, native):
    ours = load_clip_vision(path)
    for crop in ("none", "center"):
        mine, theirs = (nodes.CLIPVisionEncode().encode(vision, square(), crop)[0] for vision in (ours, native))
        for name in ("penultimate_hidden_states", "last_hidden_state", "image_embeds"):
            assert relative(mine[name], theirs[name]) < LIMIT, name
        assert mine["image_sizes"] == theirs["image_sizes"]


def test_the_whole_picture_or_its_middle(path):
    ours, wide = load_clip_vision(path), torch.zeros(1, 100, 300, 3)
    wide[:, :, 100:200] = 1
    white = ours.encode_image(torch.ones(1, 100, 100, 3))["image_embeds"]
    assert relative(ours.encode_image(wide, crop=True)["image_embeds"], white) < LIMIT
    assert relative(ours.encode_image(wide, crop=False)["image_embeds"], white) > 1e-3
    grey = torch.ones(1, 100, 100, 1)
    assert relative(ours.encode_image(grey)["image_embeds"], white) < LIMIT


def test_official_names_make_the_same_encoder(path, tmp_path):
    for prefix in ("", "visual."):
        weights = {prefix + name: tensor.contiguous() for name, tensor in official(load_file(path)).items()}
        save_file(weights, tmp_path / "official.safetensors")
        ours, other = load_clip_vision(path), load_clip_vision(tmp_path / "official.safetensors")
        assert all(torch.equal(tensor, other.get_sd()[name]) for name, tensor in ours.get_sd().items())


def test_layers_without_tensors_are_filled(path, monkeypatch):
    """As under Dynamic VRAM, whose layers get their tensors from the file alone."""
    expected, weights = load_clip_vision(path).get_sd(), load_file(path)
    monkeypatch.setattr(comfy.utils, "load_torch_file", lambda *args, **kwargs: weights)  # its own mapping needs a GPU
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True, raising=False)
    found = load_clip_vision(path).get_sd()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_finished_step_is_found_again_by_what_clip_saw(path):
    ours = load_clip_vision(path)
    one, same, another = (ours.encode_image(square(seed)) for seed in (1, 1, 2))
    assert digest(one) == digest(same) != digest(another)


def test_what_is_no_encoder_of_wan_is_refused(path, tmp_path):
    weights = load_file(path)
    large = {name: torch.zeros([64 if axis == 80 else axis for axis in t.shape]) for name, t in weights.items()}
    short = {name: tensor for name, tensor in weights.items() if "visual_projection" not in name}
    part = {name: tensor for name, tensor in weights.items() if "layers.3.mlp.fc1.bias" not in name}
    vae = build(family.VAE, fp8=True)
    for name, tensors in (("large", large), ("short", short), ("part", part), ("vae", vae)):
        file = tmp_path / f"{name}.safetensors"
        write(tensors, file, {})
        with pytest.raises(WrongModelError) as caught:
            load_clip_vision(file)
        assert name in caught.value.where and caught.value.remedy
