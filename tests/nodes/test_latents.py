"""Empty latents: sized by the VAE, and refused with the nearest legal values."""

from __future__ import annotations

import asyncio

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.latent_formats
import comfy.sample
import comfy.sd
import execution
from wancore.nodes.latents import WanCoreTextToImage, WanCoreTextToVideo
from wancore.wan_core.errors import InputError, WrongModelError

import nodes as native_nodes

from .native import native_vae_on_meta, run

CUSTOM = {"size": "custom", "width": 848, "height": 496}
VIDEO = {"size": "480p 16:9 (832x480)", "seconds": 5.0, "length": 0, "batch_size": 1, "width": 832, "height": 480}
IMAGE = {"size": "1024x1024", "batch_size": 1, "width": 1024, "height": 1024}


@pytest.fixture(scope="module")
def vae21():
    return native_vae_on_meta("vae21.json")


@pytest.fixture(scope="module")
def vae22():
    return native_vae_on_meta("vae22.json")


def video(vae, **inputs):
    return run(WanCoreTextToVideo, vae=vae, **{**VIDEO, **inputs}).result[0]


def image(vae, **inputs):
    return run(WanCoreTextToImage, vae=vae, **{**IMAGE, **inputs}).result[0]


def test_the_14b_default_is_81_frames_of_832x480(vae21):
    latent = video(vae21)
    assert latent["samples"].shape == (1, 16, 21, 60, 104)
    assert torch.count_nonzero(latent["samples"]) == 0
    assert (latent["wan_frame_rate"], latent["downscale_ratio_spacial"]) == (16, 8)


def test_the_5b_gets_its_own_channels_rate_and_official_size(vae22):
    latent = video(vae22, size="720p 16:9 (1280x720)")
    assert latent["samples"].shape == (1, 48, 31, 44, 80)  # 121 frames of 1280x704
    assert (latent["wan_frame_rate"], latent["downscale_ratio_spacial"]) == (24, 16)


def test_length_wins_over_seconds(vae21):
    assert video(vae21, length=17, batch_size=3)["samples"].shape == (3, 16, 5, 60, 104)


def test_custom_size_is_taken_as_it_is(vae21):
    assert video(vae21, **CUSTOM)["samples"].shape[-2:] == (62, 106)
    assert image(vae21, **CUSTOM)["samples"].shape[-2:] == (62, 106)


def test_a_picture_is_one_latent_frame(vae21, vae22):
    assert image(vae21, batch_size=2)["samples"].shape == (2, 16, 1, 128, 128)
    assert image(vae22, size="1280x720")["samples"].shape == (1, 48, 1, 44, 80)


@pytest.mark.parametrize(
    "inputs, where, remedy",
    [
        ({"length": 80}, "length", "Set length to 77 or 81"),
        ({"size": "custom", "width": 1080}, "width", "Set width to 1072 or 1088"),
        ({"size": "custom", "height": 8}, "height", "Set height to 16"),
        ({"size": "8K"}, "size", "Choose one of these, or custom with width and height"),
    ],
)
def test_what_no_model_takes_is_refused_before_and_while_running(vae21, inputs, where, remedy):
    constants = {key: {**VIDEO, **inputs}[key] for key in ("size", "length", "width", "height")}
    assert WanCoreTextToVideo.validate_inputs(**constants).endswith(f"{remedy}.")
    with pytest.raises(InputError) as caught:
        video(vae21, **inputs)
    assert (caught.value.where, caught.value.remedy) == (where, remedy)


def test_what_only_the_5b_refuses_shows_when_its_vae_is_known(vae22):
    assert WanCoreTextToVideo.validate_inputs(size="custom", length=0, width=848, height=480) is True
    with pytest.raises(InputError) as caught:
        video(vae22, size="custom", width=848)
    assert caught.value.remedy == "Set width to 832 or 864"


def test_linked_inputs_are_checked_when_they_have_a_value():
    assert WanCoreTextToVideo.validate_inputs(size="custom", length=None, width=None, height=None) is True
    assert WanCoreTextToImage.validate_inputs(size=None, width=7, height=7) is True


def test_the_server_refuses_a_bad_length_on_the_node(monkeypatch):
    monkeypatch.setitem(native_nodes.NODE_CLASS_MAPPINGS, "WanCoreTextToVideo", WanCoreTextToVideo)
    prompt = {"7": {"class_type": "WanCoreTextToVideo", "inputs": {**VIDEO, "vae": ["8", 0], "length": 82}}}
    monkeypatch.setitem(native_nodes.NODE_CLASS_MAPPINGS, "VAELoader", native_nodes.VAELoader)
    prompt["8"] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}
    valid, errors, node = asyncio.run(execution.validate_inputs("prompt", prompt, "7", {}))
    assert (valid, node) == (False, "7")
    assert any("81 or 85" in error["details"] for error in errors)


def test_another_models_vae_is_refused():
    with pytest.raises(WrongModelError) as caught:
        video(None)
    assert caught.value.where == "vae"
    stable_diffusion = native_vae_on_meta("vae21.json")
    stable_diffusion.latent_channels, stable_diffusion.latent_dim = 4, 2
    with pytest.raises(WrongModelError):
        video(stable_diffusion)


def test_a_vae_of_another_family_is_refused_though_its_latents_have_wans_shape():
    with torch.device("meta"):
        hunyuan = comfy.sd.VAE(sd={
            "decoder.conv_in.conv.weight": torch.empty(512, 16, 3, 3, 3),
            "post_quant_conv.weight": torch.empty(16, 16, 1, 1, 1),
        })  # fmt: skip
    with pytest.raises(WrongModelError) as caught:
        video(hunyuan)
    assert (caught.value.where, caught.value.found) == ("vae", "AutoencoderKL")


def test_native_samplers_resize_an_empty_latent_of_the_other_vae(vae21):
    class Model:
        def get_model_object(self, name):
            return comfy.latent_formats.Wan22()

    latent = video(vae21, seconds=1.0)
    fixed = comfy.sample.fix_empty_latent_channels(
        Model(), latent["samples"], latent["downscale_ratio_spacial"], latent["downscale_ratio_temporal"]
    )
    assert fixed.shape == (1, 48, 5, 30, 52)


@pytest.mark.parametrize("node", [WanCoreTextToVideo, WanCoreTextToImage])
def test_every_input_and_output_is_explained(node):
    schema = node.define_schema()
    assert schema.description
    assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])


def test_inputs_keep_their_order():
    names = [[item.id for item in node.define_schema().inputs] for node in (WanCoreTextToVideo, WanCoreTextToImage)]
    assert names == [
        ["vae", "size", "seconds", "length", "batch_size", "width", "height"],
        ["vae", "size", "batch_size", "width", "height"],
    ]
