"""Decoding: frames equal the native node's, the rate is the model's, and memory stays at the size of the bytes."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from make_pocket import build, write

from ..comfy_host import import_comfy

import_comfy()

import comfy.sd
import comfy.utils
from comfy_api.latest import io
from wancore.nodes.bridge.decode import decode_clips
from wancore.nodes.bridge.vae import load_vae
from wancore.nodes.decode import WanCoreVAEDecode
from wancore.nodes.loaders import WanCoreLoadDiffusionModel
from wancore.pocket import family
from wancore.wan_core.errors import InputError, WrongModelError

import nodes as native_nodes

from .native import LargestFloat, native_vae_on_meta, run

FRAMES, HEIGHT, WIDTH = 9, 32, 48  # of latent_of(3, 4, 6)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / family.VAE.name
    write(build(family.VAE, fp8=False), path, {})
    return path


@pytest.fixture(scope="module")
def ours(path):
    return load_vae(path, dtype=torch.float32)


@pytest.fixture(scope="module")
def native(path):
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)), dtype=torch.float32)


@pytest.fixture(params=["ours", "native"])
def vae(request):
    return request.getfixturevalue(request.param)


def latent_of(frames=3, rows=4, columns=6, batch=1, **entries):
    samples = torch.randn(batch, 16, frames, rows, columns, generator=torch.Generator().manual_seed(3))
    return {"samples": samples, **entries}


def decode(latent, vae, **inputs):
    """Runs the node outside of a server, where every output counts as linked."""
    return run(WanCoreVAEDecode, hidden={io.Hidden.unique_id: "1"}, latent=latent, vae=vae, **inputs).result


def test_images_equal_the_native_nodes(vae, native):
    (video,), images = decode(latent_of(), vae)
    (expected,) = native_nodes.VAEDecode().decode(native, latent_of())
    assert images.shape == expected.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert images.dtype == expected.dtype
    torch.testing.assert_close(images, expected, atol=2e-5, rtol=0)
    assert (video.frames.float() - images * 255).abs().max() <= 0.5 + 1e-3, "bytes are the nearest value"


@pytest.mark.parametrize("entries, rate", [({}, 16), ({"wan_frame_rate": 30}, 30), ({"wan_frame_rate": 23.976}, None)])
def test_the_frame_rate_is_the_latents_or_the_models(entries, rate, ours):
    (video,), _ = decode(latent_of(1, **entries), ours)
    assert video.get_frame_rate() == (Fraction(2997, 125) if rate is None else rate)


def test_a_batch_is_one_video_each_and_all_images(vae):
    videos, images = decode(latent_of(2, batch=3), vae)
    assert [video.get_frame_count() for video in videos] == [5, 5, 5]
    assert images.shape[0] == 15
    for index, video in enumerate(videos):
        assert torch.equal(video.frames, (images[index * 5 :][:5] * 255).round().to(torch.uint8))


def test_a_picture_is_a_video_of_one_frame(vae):
    (video,), images = decode(latent_of(1), vae)
    assert video.get_frame_count() == images.shape[0] == 1
    flat = latent_of(1)
    flat["samples"] = flat["samples"][:, :, 0]  # as a native image latent
    assert torch.equal(decode(flat, vae)[1], images)


def test_sound_goes_along(ours):
    audio = {"waveform": torch.zeros(1, 2, 48_000), "sample_rate": 48_000}
    assert decode(latent_of(1), ours, audio=audio)[0][0].get_components().audio is audio


def test_the_input_is_not_changed(vae):
    latent = latent_of(2)
    before = latent["samples"].clone()
    decode(latent, vae)
    assert torch.equal(latent["samples"], before) and latent.keys() == {"samples"}


def test_without_images_the_clip_is_never_whole_in_float(ours):
    sizes = {}
    for with_images in (False, True):
        with LargestFloat() as seen:
            (video,), images = decode_clips(latent_of(26, 4, 4), ours, None, with_images=with_images)
        sizes[with_images] = seen.largest
        assert video.get_frame_count() == 101
        assert (images is None) is not with_images
    whole = 101 * 32 * 32 * 3
    assert sizes[False] < whole <= sizes[True]
    with LargestFloat() as chunk:
        decode_clips(latent_of(3, 4, 4), ours, None, with_images=False)
    assert sizes[False] == chunk.largest, "a clip nine times as long takes no larger tensor"


def test_values_that_are_not_numbers_are_named(ours):
    latent = latent_of(2)
    latent["samples"][0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError) as caught:
        decode(latent, ours)
    assert caught.value.where == "latent"
    assert WanCoreLoadDiffusionModel.define_schema().display_name in caught.value.remedy, "it has weight_dtype"


def test_the_other_vae_is_refused_with_the_file_to_load(ours):
    with pytest.raises(WrongModelError) as caught:
        decode({"samples": torch.zeros(1, 48, 2, 4, 4)}, ours)
    assert "resolve/main/split_files/vae/wan2.2_vae.safetensors" in caught.value.remedy
    with pytest.raises(WrongModelError) as caught:
        decode(latent_of(1), native_vae_on_meta("vae22.json"))
    assert "resolve/main/split_files/vae/wan_2.1_vae.safetensors" in caught.value.remedy


def test_schema():
    schema = WanCoreVAEDecode.define_schema()
    assert [item.id for item in schema.inputs] == ["latent", "vae", "audio"]
    assert [item.io_type for item in schema.outputs] == ["VIDEO", "IMAGE"]
    assert schema.description and all(item.tooltip for item in [*schema.inputs, *schema.outputs])
