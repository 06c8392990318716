"""VACE to video: against the native node where the semantics agree, the official rules where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management
import comfy.sd
from comfy_extras.nodes_wan import TrimVideoLatent, WanVaceToVideo
from wancore.nodes.bridge.model import load_model
from wancore.nodes.decode import WanCoreVAEDecode
from wancore.nodes.vace import WanCoreVaceToVideo
from wancore.wan_core.errors import InputError, WrongModelError

from ..bridge.tiny_models import write_tiny
from .clips import HEIGHT, LENGTH, WIDTH, made_by, made_natively_by, picture, relative, sampled
from .native import run


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


def masks(count: int = LENGTH) -> torch.Tensor:
    return (torch.rand(count, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) > 0.5).float()


def ours(vae: Any, **inputs: Any) -> tuple:
    return made_by(WanCoreVaceToVideo, vae, **{"strength": 1.0, **inputs})


ALL = {"control_video": picture(LENGTH), "control_masks": masks(), "reference_image": picture(seed=2)}


@pytest.mark.parametrize(
    "names", [(), ("control_video",), ("control_video", "control_masks"), ("reference_image",), tuple(ALL)]
)
def test_the_conditioning_is_the_native_one(vae21, native21, names: tuple[str, ...]):
    inputs = {name: ALL[name] for name in names}
    *mine, latent, trim = ours(vae21, strength=0.75, **inputs)
    *theirs, native, native_trim = made_natively_by(WanVaceToVideo, native21, strength=0.75, **inputs)
    for one, other in zip(mine, theirs, strict=True):
        one, other = one[0][1], other[0][1]
        assert one.keys() == other.keys()
        assert relative(one["vace_frames"][0], other["vace_frames"][0]) < 1e-5
        assert torch.equal(one["vace_mask"][0], other["vace_mask"][0])
        assert one["vace_strength"] == other["vace_strength"] == [0.75]
    assert (trim, latent["samples"].shape) == (native_trim, native["samples"].shape)


@pytest.mark.parametrize("name", ["wan2.1_vace_14B", "wan2.2_fun_vace_high_noise_14B"])
def test_native_and_our_nodes_feed_native_and_our_models(vae21, native21, tmp_path, name: str):
    path = write_tiny(tmp_path / f"{name}.safetensors", "vace_14B")
    in_native = sampled(comfy.sd.load_diffusion_model(path), *ours(vae21, **ALL)[:3])
    theirs = made_natively_by(WanVaceToVideo, native21, strength=1.0, **ALL)[:3]
    assert relative(sampled(load_model(path), *theirs), in_native) < 1e-5
    weaker = ours(vae21, **ALL, strength=0.5)[:3]
    assert relative(sampled(load_model(path), *weaker), in_native) > 1e-3


def test_controls_add_up(vae21):
    positive, negative, *_ = ours(vae21, control_video=picture(LENGTH))
    widgets = {"strength": 0.5, "size": "custom", "seconds": 0.0, "length": LENGTH, "batch_size": 1}
    both = run(
        WanCoreVaceToVideo,
        positive=positive,
        negative=negative,
        vae=vae21,
        width=WIDTH,
        height=HEIGHT,
        control_video=picture(LENGTH, seed=3),
        **widgets,
    ).result[0][0][1]
    assert both["vace_strength"] == [1.0, 0.5] and len(both["vace_frames"]) == len(both["vace_mask"]) == 2


def test_grey_masks_are_cut_at_one_half_as_officially(vae21):
    soft = torch.full((1, HEIGHT, WIDTH), 0.6)
    hard = torch.ones(LENGTH, HEIGHT, WIDTH)
    given = [ours(vae21, control_video=picture(LENGTH), control_masks=mask)[0][0][1] for mask in (soft, hard)]
    assert torch.equal(given[0]["vace_frames"][0], given[1]["vace_frames"][0])
    assert torch.equal(given[0]["vace_mask"][0], given[1]["vace_mask"][0])


@pytest.mark.parametrize("count", [1, LENGTH])
def test_behind_the_end_of_the_video_everything_is_made_new(vae21, count: int):
    kept = torch.zeros(count, HEIGHT, WIDTH)
    mask = ours(vae21, control_video=picture(5), control_masks=kept)[0][0][1]["vace_mask"][0]
    assert mask.amax(dim=(1, 3, 4)).tolist() == [[0, 0, 1]] and mask.amin(dim=(1, 3, 4)).tolist() == [[0, 0, 1]]


def test_pictures_at_the_ends_are_kept(vae21, native21):
    """As a control video of grey frames whose mask spares the first and the last, built by hand for the native node."""
    first, last = picture(seed=5), picture(seed=6)
    video, mask = torch.full((LENGTH, HEIGHT, WIDTH, 3), 0.5), torch.ones(LENGTH, HEIGHT, WIDTH)
    video[0], video[-1], mask[0], mask[-1] = first[0], last[0], 0, 0
    mine = ours(vae21, start_image=first, end_image=last)[0][0][1]
    theirs = made_natively_by(WanVaceToVideo, native21, strength=1.0, control_video=video, control_masks=mask)[0][0][1]
    assert relative(mine["vace_frames"][0], theirs["vace_frames"][0]) < 1e-5
    assert torch.equal(mine["vace_mask"][0], theirs["vace_mask"][0])


def test_references_are_whole_on_white_and_any_number(vae21):
    wide = picture(2, WIDTH * 2, HEIGHT)
    positive, _, latent, trim = ours(vae21, reference_image=wide)
    assert trim == 2 and latent["samples"].shape[2] == 2 + 3
    frames = positive[0][1]["vace_frames"][0]
    bars = torch.ones(1, HEIGHT, WIDTH, 3)
    scaled = torch.nn.functional.interpolate(wide[1:].movedim(-1, 1), (HEIGHT // 2, WIDTH), mode="bilinear")
    bars[:, HEIGHT // 4 : -HEIGHT // 4] = scaled.movedim(1, -1)
    assert relative(frames[:, :16, 1:2], vae21.encode(bars)) < 1e-5


def test_decoding_leaves_the_references_out(vae21):
    latent = ours(vae21, reference_image=picture())[2]
    latent = {**latent, "samples": torch.randn_like(latent["samples"])}
    (trimmed,) = TrimVideoLatent.execute(latent, 1).result
    clips = [run(WanCoreVAEDecode, latent=each, vae=vae21).result[0][0].get_components() for each in (latent, trimmed)]
    assert [len(clip.images) for clip in clips] == [LENGTH, LENGTH]
    assert torch.equal(clips[0].images, clips[1].images)


def test_the_clip_is_as_long_and_as_wide_as_its_video(vae21):
    video = picture(LENGTH + 2, 64, 128)
    samples = ours(vae21, size="480p at the image's aspect", seconds=0.0, length=0, control_video=video[:1])[2][
        "samples"
    ]
    assert samples.shape[2:] == (1, 880 // 8, 432 // 8)
    assert ours(vae21, seconds=0.0, length=0, control_video=video)[2]["samples"].shape[2] == 3
    small = {"seconds": 0.0, "length": 0, "width": 16, "height": 16}
    assert ours(vae21, **small)[2]["samples"].shape[2] == 21
    assert ours(vae21, **small, control_video=picture(90, 16, 16))[2]["samples"].shape[2] == 21


def test_refusals_before_anything_is_loaded(vae21, vae22, monkeypatch: pytest.MonkeyPatch):
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("loads a model")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loads)
    with pytest.raises(InputError) as caught:
        ours(vae21, control_masks=masks())
    assert caught.value.where == "control_masks"
    with pytest.raises(InputError) as caught:
        ours(vae21, length=10)
    assert caught.value.remedy == "Set length to 9 or 13"
    with pytest.raises(WrongModelError) as wrong:
        ours(vae22)
    assert (wrong.value.found, wrong.value.expected) == ("48 latent channels", "16")
    assert WanCoreVaceToVideo.validate_inputs(size="custom", length=10, width=96, height=64).endswith("9 or 13.")
