"""Pictures and masks of every kind that other nodes make, through every input that takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management
from wancore.nodes import sound
from wancore.nodes.animate import WanCoreAnimateToVideo
from wancore.nodes.fun import WanCoreFunCameraToVideo, WanCoreFunControlToVideo, WanCoreInpaintToVideo
from wancore.nodes.images import WanCoreImageToVideo
from wancore.nodes.keyframes import WanCoreKeyframesToVideo
from wancore.nodes.pictures import masks_of, rgb
from wancore.nodes.vace import WanCoreVaceToVideo
from wancore.wan_core.errors import InputError

from .clips import HEIGHT, LENGTH, WIDTH, made_by, picture, prompts
from .native import run

ANIMATE = {
    "size": "custom", "seconds": 0.0, "clip_frames": LENGTH, "overlap": 1, "width": WIDTH, "height": HEIGHT,
    "reference_image": picture(), "pose_video": picture(),
}  # fmt: skip
CAMERA = {"camera_pose": "Zoom In", "speed": 1.0}
KEYFRAMES = {"frames": "", "strengths": "1"}
SOUND = {
    "audio": {"waveform": torch.zeros(1, 1, 800), "sample_rate": 8000}, "audio_encoder": None, "ref_image": picture(),
    "size": "custom", "seconds": 0.0, "clip_frames": 8, "width": 64, "height": 64,
}  # fmt: skip


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


def animate(vae: Any, **inputs: Any) -> Any:
    positive, negative = prompts()
    return run(WanCoreAnimateToVideo, positive=positive, negative=negative, vae=vae, **{**ANIMATE, **inputs}).result


def speak(vae: Any, **inputs: Any) -> Any:
    positive, negative = prompts()
    given = {**SOUND, **inputs}
    return run(sound.WanCoreSoundToVideo, positive=positive, negative=negative, vae=vae, **given).result


def of(node: Any, **always: Any) -> Callable[..., tuple]:
    return lambda vae, **inputs: made_by(node, vae, **{**always, **inputs})


def keyframes(vae: Any, **inputs: Any) -> Any:
    return made_by(WanCoreKeyframesToVideo, vae, images={"image0": picture(), **inputs}, **KEYFRAMES)


VACE, CONTROL = of(WanCoreVaceToVideo, strength=1.0), of(WanCoreFunControlToVideo, control_video=picture())
IMAGES = [
    *((of(WanCoreImageToVideo), name) for name in ("start_image", "end_image")),
    (keyframes, "image1"),
    *((VACE, name) for name in ("control_video", "reference_image", "start_image", "end_image")),
    *((CONTROL, name) for name in ("control_video", "ref_image", "start_image", "end_image")),
    *((of(WanCoreFunCameraToVideo, **CAMERA), name) for name in ("start_image", "end_image")),
    *((of(WanCoreInpaintToVideo), name) for name in ("start_image", "end_image")),
    (of(WanCoreInpaintToVideo, masks=torch.ones(1, 8, 8)), "video"),
    *((animate, name) for name in ("reference_image", "pose_video", "face_video")),
    (lambda vae, **video: animate(vae, character_mask=torch.ones(1, 8, 8), **video), "background_video"),
    *((speak, name) for name in ("ref_image", "pose_video")),
]  # fmt: skip
MASKS = [
    (of(WanCoreVaceToVideo, strength=1.0, control_video=picture()), "control_masks"),
    (of(WanCoreInpaintToVideo, video=picture()), "masks"),
    (lambda vae, **mask: animate(vae, background_video=picture(), **mask), "character_mask"),
]


@pytest.mark.parametrize(("make", "name"), IMAGES + MASKS)
def test_what_is_no_picture_is_refused_by_its_name_before_anything_is_loaded(
    vae21, monkeypatch: pytest.MonkeyPatch, make: Any, name: str
):
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("loads a model")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loads)
    broken = picture()[..., 0] if "mask" in name else picture()
    broken[0, 5, 5] = float("nan")
    for value, found in ((broken, "NaN or infinity"), (broken[:0], f"0 frames of {WIDTH}x{HEIGHT}")):
        with pytest.raises(InputError) as caught:
            make(vae21, **{name: value})
        assert (caught.value.where, caught.value.found) == (name, found)


def test_grey_is_three_equal_colours_and_transparency_is_left_out():
    grey = picture()[..., :1]
    assert torch.equal(rgb(grey, "image"), grey.repeat(1, 1, 1, 3))
    assert torch.equal(rgb(torch.cat([picture(), grey], dim=-1), "image"), picture())
    assert rgb(None, "image") is masks_of(None, "masks") is None


def test_masks_of_two_and_four_dimensions_are_those_of_three():
    mask = torch.rand(1, 4, 6)
    for same in (mask[0], mask[:, None], mask):
        assert torch.equal(masks_of(same, "masks"), mask)
    assert masks_of(torch.rand(3, 1, 4, 6), "masks").shape == (3, 4, 6)
