"""Image to video: against the native nodes and models where the semantics agree, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.clip_vision
import comfy.model_management
import comfy.sd
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent, WanFirstLastFrameToVideo, WanImageToVideo
from wancore.nodes.bridge.images import encode_keyframes
from wancore.nodes.bridge.model import load_model
from wancore.nodes.images import SIZES, WanCoreImageToVideo
from wancore.wan_core.errors import InputError, WrongModelError
from wancore.wan_core.image_conditioning import Keyframe

from ..bridge.tiny_models import write_tiny
from .clips import HEIGHT, NATIVE, WIDTH, made_by, made_natively_by, picture, relative, sampled


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


def ours(vae: Any, **inputs: Any) -> tuple:
    return made_by(WanCoreImageToVideo, vae, **inputs)


@pytest.mark.parametrize(
    ("node", "pictures"),
    [
        (WanImageToVideo, {"start_image": picture()}),
        (WanImageToVideo, {"start_image": picture(5)}),
        (WanFirstLastFrameToVideo, {"start_image": picture(), "end_image": picture(seed=2)}),
        (WanFirstLastFrameToVideo, {"end_image": picture(3, seed=2)}),
    ],
)
def test_the_conditioning_is_the_native_one(vae21, native21, node: Any, pictures: dict):
    for mine, theirs in zip(ours(vae21, **pictures)[:2], made_natively_by(node, native21, **pictures)[:2], strict=True):
        mine, theirs = mine[0][1], theirs[0][1]
        assert relative(mine["concat_latent_image"], theirs["concat_latent_image"]) < 1e-5
        mask = theirs["concat_mask"]
        assert mine["concat_mask"].shape[1] == 4
        assert torch.equal(mine["concat_mask"], mask.expand(-1, 4, -1, -1, -1))


@pytest.mark.parametrize("seen", [("start",), ("end",), ("start", "end")])
def test_what_clip_saw_is_the_native_one(vae21, native21, seen: tuple[str, ...]):
    """Of one picture, or of a first and a last one, one after the other."""
    inputs: dict[str, Any] = {"start_image": picture(), "end_image": picture(seed=2)}
    for place in seen:
        features = comfy.clip_vision.Output()
        features["penultimate_hidden_states"] = torch.rand(1, 257, 80)
        inputs[f"clip_vision_{place}_image"] = features
    mine, theirs = ours(vae21, **inputs)[:2], made_natively_by(WanFirstLastFrameToVideo, native21, **inputs)[:2]
    for one, other in zip(mine, theirs, strict=True):
        one, other = (cond[0][1]["clip_vision_output"].penultimate_hidden_states for cond in (one, other))
        assert one.shape == (1, 257 * len(seen), 80) and torch.equal(one, other)


def test_of_several_pictures_clip_saw_the_first(vae21):
    seen = []
    for count in (3, 1):
        features = comfy.clip_vision.Output()
        features["penultimate_hidden_states"] = torch.rand(count, 257, 80, generator=torch.Generator().manual_seed(1))
        seen.append(features)
    pictures = {"start_image": picture(3), "end_image": picture(seed=2)}
    made = ours(vae21, **pictures, clip_vision_start_image=seen[0], clip_vision_end_image=seen[1])
    joined = made[0][0][1]["clip_vision_output"].penultimate_hidden_states
    assert torch.equal(joined, torch.cat([features.penultimate_hidden_states[:1] for features in seen], dim=1))


@pytest.mark.parametrize("end", [False, True], ids=["start", "start and end"])
def test_native_and_our_nodes_feed_native_and_our_models(vae21, native21, tmp_path: Path, end: bool):
    path = write_tiny(tmp_path / "wan2.2_i2v_high_noise_14B.safetensors", "i2v_A14B_expert")
    pictures = {"start_image": picture(), **({"end_image": picture(seed=2)} if end else {})}
    theirs = made_natively_by(WanFirstLastFrameToVideo if end else WanImageToVideo, native21, **pictures)
    in_native = sampled(comfy.sd.load_diffusion_model(path), *ours(vae21, **pictures))
    in_ours = sampled(load_model(path), *theirs)
    assert relative(in_ours, in_native) < 1e-5
    without = sampled(load_model(path), *ours(vae21, start_image=picture(seed=9)))
    assert relative(without, in_native) > 1e-3


@pytest.mark.parametrize(("shapes", "pictures"), [("wan21_i2v_14B", 1), ("wan21_flf2v_14B", 2)])
def test_models_of_wan_21_see_the_pictures_through_clip(vae21, native21, tmp_path: Path, shapes: str, pictures: int):
    class Seen:
        def __init__(self, seed: int) -> None:
            generator = torch.Generator().manual_seed(seed)
            self.penultimate_hidden_states = torch.randn(1, 257, 1280, generator=generator)

    path = write_tiny(tmp_path / f"{shapes}.safetensors", shapes)
    inputs = {"start_image": picture(), "clip_vision_start_image": Seen(1)}
    if pictures == 2:
        inputs |= {"end_image": picture(seed=2), "clip_vision_end_image": Seen(2)}
    theirs = made_natively_by(WanFirstLastFrameToVideo, native21, **inputs)
    in_native = sampled(comfy.sd.load_diffusion_model(path), *ours(vae21, **inputs))
    model = load_model(path)
    assert relative(sampled(model, *theirs), in_native) < 1e-5
    other = {**inputs, "clip_vision_start_image": Seen(3)}
    assert relative(sampled(model, *ours(vae21, **other)), in_native) > 1e-4


def test_the_5b_starts_from_a_clean_picture_as_natively(vae22, tmp_path: Path):
    path = write_tiny(tmp_path / "wan2.2_ti2v_5B.safetensors", "ti2v_5B")
    positive, negative, latent = ours(vae22, start_image=picture(), batch_size=2)
    (theirs,) = Wan22ImageToVideoLatent.execute(vae22, start_image=picture(), **{**NATIVE, "batch_size": 2}).result
    assert relative(latent["samples"], theirs["samples"]) < 1e-5
    assert torch.equal(latent["noise_mask"], theirs["noise_mask"])
    assert latent["wan_frame_rate"] == 24
    assert not positive[0][1]
    assert not negative[0][1]
    in_native = sampled(comfy.sd.load_diffusion_model(path), positive, negative, latent)
    in_ours = sampled(load_model(path), positive, negative, theirs)
    assert relative(in_ours, in_native) < 1e-5
    assert relative(in_ours[:, :, :1], latent["samples"][:, :, :1]) < 1e-5  # clean throughout
    assert relative(in_ours[:, :, 1:], latent["samples"][:, :, 1:]) > 0.1


def test_the_5b_makes_a_clip_from_text_alone(vae22):
    latent = ours(vae22)[2]
    assert latent["samples"].shape == (1, 48, 3, 4, 6)
    assert "noise_mask" not in latent


def test_81_frames_are_encoded_in_part_and_equal_the_whole_clip(vae21, native21):
    """The grey frames between and after two pictures, against the native encoder on all 81."""
    size = (32, 16)
    first, last = (picture(1, *size, seed=seed)[..., :3].movedim(-1, 1) * 2 - 1 for seed in (1, 2))
    for keyframes in ([Keyframe(0, first)], [Keyframe(0, first), Keyframe(80, last)], [Keyframe(33, first)]):
        clip = torch.full((81, 16, 32, 3), 0.5)
        for keyframe in keyframes:
            clip[keyframe.index] = (keyframe.pictures[0].movedim(0, -1) + 1) / 2
        assert relative(encode_keyframes(vae21, keyframes, 81, size), native21.encode(clip)) < 1e-5
        assert relative(encode_keyframes(native21, keyframes, 81, size), native21.encode(clip)) < 1e-5


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("480p at the image's aspect", (624, 624)),
        ("720p at the image's aspect", (960, 960)),
        ("480p 16:9 (832x480)", (832, 480)),
    ],
)
def test_sizes_of_the_14b(vae21, size: str, expected: tuple[int, int]):
    latent = ours(vae21, size=size, length=1, start_image=picture(1, 64, 64))[2]["samples"]
    assert (latent.shape[-1] * 8, latent.shape[-2] * 8) == expected


@pytest.mark.parametrize(
    ("size", "pictures", "expected"),
    [
        ("720p at the image's aspect", {}, (1280, 704)),
        ("720p at the image's aspect", {"start_image": picture(1, 64, 64)}, (960, 928)),
        ("480p at the image's aspect", {}, (832, 480)),
    ],
)
def test_sizes_of_the_5b(vae22, size: str, pictures: dict, expected: tuple[int, int]):
    latent = ours(vae22, size=size, length=1, **pictures)[2]["samples"]
    assert (latent.shape[-1] * 16, latent.shape[-2] * 16) == expected


def test_refusals_before_anything_is_loaded(vae21, vae22, monkeypatch: pytest.MonkeyPatch):
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("loads a model")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loads)
    with pytest.raises(InputError) as caught:
        ours(vae22, end_image=picture())
    assert caught.value.where == "end_image"
    with pytest.raises(InputError) as caught:
        ours(vae21)
    assert caught.value.where == "start_image"
    with pytest.raises(InputError) as caught:
        ours(vae21, start_image=picture(), length=10)
    assert caught.value.remedy == "Set length to 9 or 13"
    with pytest.raises(InputError) as caught:
        ours(vae22, start_image=picture(), width=80)
    assert caught.value.remedy == "Set width to 64 or 96"
    with pytest.raises(InputError) as caught:
        ours(vae21, start_image=picture(6), end_image=picture(5))
    assert (caught.value.where, caught.value.found) == ("end_image", "frame 4")
    with pytest.raises(WrongModelError):
        ours(None, start_image=picture())
    assert WanCoreImageToVideo.validate_inputs(size="custom", length=10, width=96, height=64).endswith("9 or 13.")
    assert WanCoreImageToVideo.validate_inputs(size=next(iter(SIZES)), length=0, width=96, height=64) is True


def test_other_sizes_and_transparency_are_fitted(vae21):
    wide = torch.cat((picture(1, 200, 50), torch.zeros(1, 50, 200, 1)), dim=-1)
    conditioning = ours(vae21, start_image=wide, end_image=picture(1, 30, 90))[0][0][1]
    assert conditioning["concat_latent_image"].shape == (1, 16, 3, HEIGHT // 8, WIDTH // 8)


def test_every_input_and_output_is_explained():
    schema = WanCoreImageToVideo.define_schema()
    assert schema.description
    assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])
    page = Path(__file__).parents[2] / "web" / "docs" / "WanCoreImageToVideo.md"
    assert all(item.id in page.read_text() for item in schema.inputs)
