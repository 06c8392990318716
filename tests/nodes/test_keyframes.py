"""Keyframes to video, and the text that says where they go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.sd
from wancore.nodes.bridge.model import load_model
from wancore.nodes.images import WanCoreImageToVideo
from wancore.nodes.keyframes import WanCoreKeyframesToVideo
from wancore.wan_core.errors import InputError, WrongModelError
from wancore.wan_core.keyframes import parse_frames, parse_strengths

from ..bridge.tiny_models import write_tiny
from .clips import LENGTH, made_by, picture, relative, sampled


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


def ours(vae: Any, *images: Any, frames: str = "", strengths: str = "1", **inputs: Any) -> tuple:
    named = {f"image{number}": image for number, image in enumerate(images)}
    return made_by(WanCoreKeyframesToVideo, vae, images=named, frames=frames, strengths=strengths, **inputs)


def test_two_keyframes_at_the_ends_are_a_first_and_a_last_picture(vae21):
    first, last = picture(), picture(seed=2)
    expected = made_by(WanCoreImageToVideo, vae21, start_image=first, end_image=last)[0][0][1]
    for frames in ("", "0, -1", f"0;{LENGTH - 1}"):
        values = ours(vae21, first, last, frames=frames)[0][0][1]
        assert relative(values["concat_latent_image"], expected["concat_latent_image"]) < 1e-6
        assert torch.equal(values["concat_mask"], expected["concat_mask"])


def test_a_picture_in_the_middle_with_a_strength(vae21, tmp_path):
    path = write_tiny(tmp_path / "wan2.2_i2v_high_noise_14B.safetensors", "i2v_A14B_expert")
    model, results = load_model(path), []
    for strengths in ("1", "1, 0.25, 1"):
        made = ours(vae21, picture(), picture(seed=2), picture(seed=3), frames="0, 3, -1", strengths=strengths)
        known = 1 - made[0][0][1]["concat_mask"][0, :, :, 0, 0].T.flatten()
        hold = float(strengths.split(",")[-2 if "," in strengths else 0])
        assert known.tolist() == [1, 1, 1, 1, 0, 0, hold, 0, 0, 0, 0, 1]
        results.append(sampled(model, *made))
    assert relative(results[1], results[0]) > 1e-3
    assert relative(results[1], sampled(comfy.sd.load_diffusion_model(path), *made)) < 1e-5


def test_pictures_of_any_size_and_several_in_a_row(vae21):
    made = ours(vae21, picture(1, 30, 90), picture(3, 120, 40), frames="0, 4")
    known = 1 - made[0][0][1]["concat_mask"][0, :, :, 0, 0].T.flatten()
    assert known.tolist() == [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0]


def test_where_pictures_go():
    assert parse_frames("", 3, 81) == [0, 40, 80]
    assert parse_frames("", 1, 81) == [0]
    assert parse_frames(" 0, 12 ,-1", 3, 81) == [0, 12, 80]
    assert parse_strengths("", 2) == [1, 1]
    assert parse_strengths("0.5", 3) == [0.5] * 3


@pytest.mark.parametrize(
    ("frames", "strengths", "where"),
    [
        ("0", "1", "frames"),
        ("0, 81", "1", "frames"),
        ("0, 1.5", "1", "frames"),
        ("0, nan", "1", "frames"),
        ("a, b", "1", "frames"),
        ("0, -82", "1", "frames"),
        ("0, 1", "1, 1, 1", "strengths"),
        ("0, 1", "2", "strengths"),
        ("0, 1", "x", "strengths"),
    ],
)
def test_what_is_no_place_or_strength(frames: str, strengths: str, where: str):
    with pytest.raises(InputError) as caught:
        parse_frames(frames, 2, 81)
        parse_strengths(strengths, 2)
    assert caught.value.where == where


def test_refusals(vae21, vae22):
    with pytest.raises(WrongModelError):
        ours(vae22, picture())
    with pytest.raises(InputError, match="Two pictures are for one frame") as caught:
        ours(vae21, picture(), picture(), frames="0, 0")
    assert caught.value.where == "frames"
