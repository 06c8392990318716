"""The Fun models' nodes: against the native ones where the semantics agree, the official rules where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ..comfy_host import import_comfy

import_comfy()

import comfy.latent_formats
import comfy.model_management
import comfy.ops
import comfy.sd
from comfy.ldm.wan.model import WanCamAdapter
from comfy_extras.nodes_camera_trajectory import WanCameraEmbedding
from comfy_extras.nodes_wan import (
    Wan22FunControlToVideo,
    WanCameraImageToVideo,
    WanFirstLastFrameToVideo,
    WanFunInpaintToVideo,
    WanImageToVideo,
)
from safetensors.torch import save_file
from wancore.nodes.bridge.model import load_model
from wancore.nodes.fun import WanCoreFunCameraToVideo, WanCoreFunControlToVideo, WanCoreInpaintToVideo
from wancore.pocket.family import TRANSFORMER_METADATA
from wancore.wan_core.camera import PATHS, camera_rays
from wancore.wan_core.errors import InputError
from wancore.wan_core.tasks import FUN_5B
from wancore.wan_core.weights import inspect

from ..bridge.tiny_models import tiny_weights, write_tiny
from .clips import HEIGHT, LENGTH, WIDTH, made_by, made_natively_by, picture, relative, sampled

CAMERA = {"camera_pose": "Pan Left", "speed": 1.0}


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


def saved(weights: dict[str, torch.Tensor], path: Path) -> str:
    save_file(weights, path, metadata=TRANSFORMER_METADATA)
    return str(path)


def test_control_is_the_native_one(vae21, native21):
    inputs = {"control_video": picture(LENGTH), "ref_image": picture(seed=2)}
    mine = made_by(WanCoreFunControlToVideo, vae21, **inputs)[0][0][1]
    theirs = made_natively_by(Wan22FunControlToVideo, native21, **inputs)[0][0][1]
    assert mine.keys() == theirs.keys()
    assert relative(mine["concat_latent_image"], theirs["concat_latent_image"]) < 1e-5
    assert torch.equal(mine["concat_mask"], theirs["concat_mask"].expand(-1, 4, -1, -1, -1))
    assert mine["concat_mask_index"] == theirs["concat_mask_index"] == 16
    assert relative(mine["reference_latents"][0], theirs["reference_latents"][0]) < 1e-5


def test_without_a_reference_the_model_gets_a_blank_one_as_officially(vae21):
    """Natively it gets none; VideoX-Fun gives it zeros, which the biases turn into tokens."""
    values = made_by(WanCoreFunControlToVideo, vae21, control_video=picture(LENGTH))[0][0][1]
    (blank,) = values["reference_latents"]
    assert comfy.latent_formats.Wan21().process_in(blank).abs().max() < 1e-6


def test_a_picture_in_a_control_clip_is_encoded_with_its_grey_frames_as_officially(vae21, native21):
    """Natively zeros stand in their place; VideoX-Fun encodes the whole masked clip, as image to video does."""
    start = {"start_image": picture(seed=7)}
    mine = made_by(WanCoreFunControlToVideo, vae21, control_video=picture(LENGTH), **start)[0][0][1]
    theirs = made_natively_by(WanImageToVideo, native21, **start)[0][0][1]
    assert relative(mine["concat_latent_image"][:, 16:], theirs["concat_latent_image"]) < 1e-5
    assert torch.equal(mine["concat_mask"], theirs["concat_mask"].expand(-1, 4, -1, -1, -1))


def test_control_that_ends_early_leaves_the_rest_open(vae21):
    values = made_by(WanCoreFunControlToVideo, vae21, control_video=picture(6))[0][0][1]
    whole = made_by(WanCoreFunControlToVideo, vae21, control_video=picture(LENGTH))[0][0][1]
    control, longer = (each["concat_latent_image"][:, :16] for each in (values, whole))
    assert relative(control[:, :, :2], longer[:, :, :2]) < 1e-5
    assert comfy.latent_formats.Wan21().process_in(control[:, :, 2:]).abs().max() < 1e-6


@pytest.mark.parametrize("start", [{}, {"start_image": picture(seed=7)}], ids=["control", "and a start picture"])
def test_control_feeds_native_and_our_models(vae21, native21, tmp_path, start: dict):
    path = write_tiny(tmp_path / "wan2.2_fun_control_high_noise_14B.safetensors", "fun_control_A14B")
    inputs = {"control_video": picture(LENGTH), "ref_image": picture(seed=2)}
    mine = made_by(WanCoreFunControlToVideo, vae21, **inputs, **start)
    in_native = sampled(comfy.sd.load_diffusion_model(path), *mine)
    model = load_model(path)
    assert relative(sampled(model, *mine), in_native) < 1e-5
    theirs = sampled(model, *made_natively_by(Wan22FunControlToVideo, native21, **inputs))
    assert (relative(theirs, in_native) < 1e-5) is not bool(start)


def test_control_of_the_5b(vae22, tmp_path):
    weights = tiny_weights("ti2v_5B")
    generator = torch.Generator().manual_seed(2)
    dim = weights["head.modulation"].shape[-1]
    weights["patch_embedding.weight"] = torch.randn(dim, 148, 1, 2, 2, generator=generator) / 592**0.5
    weights["ref_conv.weight"] = torch.randn(dim, 48, 2, 2, generator=generator) / 192**0.5
    weights["ref_conv.bias"] = 0.1 * torch.randn(dim, generator=generator)
    path = saved(weights, tmp_path / "wan2.2_fun_control_5B.safetensors")
    model, control = load_model(path), {"control_video": picture(LENGTH)}
    made = made_by(WanCoreFunControlToVideo, vae22, **control)
    assert relative(sampled(model, *made), sampled(comfy.sd.load_diffusion_model(path), *made)) < 1e-5
    # With a start picture the reference has the timestep of the noisy frames, as in VideoX-Fun; natively the timesteps
    # of all frames are shared out over the reference too, and slip.
    started = made_by(WanCoreFunControlToVideo, vae22, start_image=picture(seed=7), **control)
    known = started[2]["samples"][:, :, :1]
    assert relative(sampled(model, *started)[:, :, :1], known) < 1e-5  # clean throughout


def test_camera_of_the_5b(vae22, tmp_path):
    """ComfyUI has no such model: here its 5B, whose patches get what its camera adapter makes of 16 x 16 pixels."""
    weights, generator = tiny_weights("ti2v_5B"), torch.Generator().manual_seed(2)
    dim = weights["head.modulation"].shape[-1]
    weights["patch_embedding.weight"] = torch.randn(dim, 100, 1, 2, 2, generator=generator) / 400**0.5
    native = comfy.sd.load_diffusion_model(saved(weights, tmp_path / "wan2.2_fun_inpaint_5B.safetensors"))
    settings = {"operations": comfy.ops.disable_weight_init}
    adapter = WanCamAdapter(24 * 4, dim, kernel_size=2, stride=2, operation_settings=settings)
    adapter.pixel_unshuffle = torch.nn.PixelUnshuffle(16)
    adapter.load_state_dict(
        {
            name: torch.randn(weight.shape, generator=generator) / max(1, weight[0].numel()) ** 0.5
            for name, weight in adapter.state_dict().items()
        }
    )
    of_camera = {f"control_adapter.{name}": weight for name, weight in adapter.state_dict().items()}
    path = saved({**weights, **of_camera}, tmp_path / "wan2.2_fun_camera_5B.safetensors")
    assert inspect(path).task is FUN_5B
    rays = camera_rays(PATHS["Pan Left"], 1.0, LENGTH, (WIDTH, HEIGHT))
    native.model.diffusion_model.patch_embedding.register_forward_hook(lambda _layer, _x, out: out + adapter(rays))
    model, start = load_model(path), {"start_image": picture(seed=7)}
    for pictures in ({}, start):
        made = made_by(WanCoreFunCameraToVideo, vae22, **pictures, **CAMERA)
        assert relative(sampled(model, *made), sampled(native, *made)) < 1e-5
    known = made[2]["samples"][:, :, :1]
    assert relative(sampled(model, *made)[:, :, :1], known) < 1e-5  # clean throughout
    still = made_by(WanCoreFunCameraToVideo, vae22, **start, **{**CAMERA, "camera_pose": "Static"})
    assert relative(sampled(model, *still), sampled(model, *made)) > 1e-4


@pytest.mark.parametrize("pose", PATHS)
@pytest.mark.parametrize(("width", "height"), [(96, 64), (48, 96), (192, 64)])
def test_camera_rays_are_the_native_ones(pose: str, width: int, height: int):
    theirs = WanCameraEmbedding.execute(pose, width, height, LENGTH, speed=1.7).result[0]
    mine = camera_rays(PATHS[pose], 1.7, LENGTH, (width, height))
    assert mine.shape == theirs.shape and (mine - theirs).abs().max() < 1e-5


def test_camera_feeds_native_and_our_models(vae21, native21, tmp_path):
    path = write_tiny(tmp_path / "wan2.2_fun_camera_high_noise_14B.safetensors", "fun_camera_A14B")
    mine = made_by(WanCoreFunCameraToVideo, vae21, start_image=picture(), **CAMERA)
    values = mine[0][0][1]
    known = made_natively_by(WanImageToVideo, native21, start_image=picture())[0][0][1]
    assert relative(values["concat_latent_image"], known["concat_latent_image"]) < 1e-5
    model = load_model(path)
    in_ours = sampled(model, *mine)
    assert relative(in_ours, sampled(comfy.sd.load_diffusion_model(path), *mine)) < 1e-5
    native_rays = WanCameraEmbedding.execute("Pan Left", WIDTH, HEIGHT, LENGTH).result[0]
    linked = made_by(WanCoreFunCameraToVideo, vae21, start_image=picture(), camera_conditions=native_rays, **CAMERA)
    assert relative(sampled(model, *linked), in_ours) < 1e-5
    still = made_by(WanCoreFunCameraToVideo, vae21, start_image=picture(), **{**CAMERA, "camera_pose": "Static"})
    assert relative(sampled(model, *still), in_ours) > 1e-4
    alone = made_by(WanCoreFunCameraToVideo, vae21, **CAMERA)
    theirs = made_natively_by(WanCameraImageToVideo, native21, camera_conditions=native_rays)
    assert relative(sampled(model, *alone), sampled(model, *theirs)) < 1e-5


def test_inpainting_between_two_pictures_is_the_native_one(vae21, native21, tmp_path):
    path = write_tiny(tmp_path / "wan2.2_fun_inpaint_high_noise_14B.safetensors", "i2v_A14B_expert")
    pictures = {"start_image": picture(), "end_image": picture(seed=2)}
    mine = made_by(WanCoreInpaintToVideo, vae21, **pictures)
    theirs = made_natively_by(WanFunInpaintToVideo, native21, **pictures)
    model = load_model(path)
    assert relative(sampled(model, *mine), sampled(model, *theirs)) < 1e-5
    blank = made_by(WanCoreInpaintToVideo, vae21)
    assert relative(sampled(model, *blank), sampled(comfy.sd.load_diffusion_model(path), *blank)) < 1e-5
    assert comfy.latent_formats.Wan21().process_in(blank[0][0][1]["concat_latent_image"]).abs().max() < 1e-6


def test_inpainting_a_video_hides_what_the_mask_opens(vae21):
    video, mask = picture(LENGTH), torch.zeros(1, HEIGHT, WIDTH)
    mask[:, :, WIDTH // 2 :] = 1
    values = made_by(WanCoreInpaintToVideo, vae21, video=video, masks=mask)[0][0][1]
    hidden = video.clone()
    hidden[:, :, WIDTH // 2 :] = 0.5
    assert relative(values["concat_latent_image"], vae21.encode(hidden)) < 1e-5
    expected = F.interpolate(mask[None], (HEIGHT // 8, WIDTH // 8), mode="bilinear")[0, 0]
    assert torch.allclose(values["concat_mask"], expected.expand(1, 4, 3, -1, -1), atol=1e-6)


def test_a_mask_in_time_counts_the_first_frame_four_times(vae21, native21):
    mask = torch.ones(LENGTH, HEIGHT, WIDTH)
    mask[0], mask[-1] = 0, 0
    inputs = {"video": picture(LENGTH), "masks": mask}
    values = made_by(WanCoreInpaintToVideo, vae21, **inputs)[0][0][1]
    ends = {"start_image": inputs["video"][:1], "end_image": inputs["video"][-1:]}
    theirs = made_natively_by(WanFirstLastFrameToVideo, native21, **ends)[0][0][1]
    assert relative(values["concat_latent_image"], theirs["concat_latent_image"]) < 1e-5
    assert torch.allclose(values["concat_mask"], theirs["concat_mask"].expand(-1, 4, -1, -1, -1), atol=1e-6)


def test_refusals_before_anything_is_loaded(vae21, vae22, monkeypatch: pytest.MonkeyPatch):
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("loads a model")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loads)
    rays = camera_rays(PATHS["Static"], 1.0, LENGTH, (64, 64))
    with pytest.raises(InputError) as caught:
        made_by(WanCoreFunCameraToVideo, vae21, camera_conditions=rays, **CAMERA)
    assert (caught.value.found, caught.value.expected) == ("9 frames of 64x64", "9 of 96x64")
    for given, missing in (("video", "masks"), ("masks", "video")):
        value = picture(LENGTH) if given == "video" else torch.ones(LENGTH, HEIGHT, WIDTH)
        with pytest.raises(InputError) as caught:
            made_by(WanCoreInpaintToVideo, vae21, **{given: value})
        assert caught.value.where == missing
    with pytest.raises(InputError) as caught:
        made_by(WanCoreFunControlToVideo, vae22, control_video=picture(LENGTH), width=80)
    assert caught.value.remedy == "Set width to 64 or 96"
    for node in (WanCoreFunControlToVideo, WanCoreFunCameraToVideo, WanCoreInpaintToVideo):
        assert node.validate_inputs(size="custom", length=10, width=96, height=64).endswith("9 or 13.")
