"""Wan Animate to Video: against the native node where the semantics agree, the plan of clips, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.clip_vision
from comfy_extras.nodes_wan import WanAnimateToVideo
from make_pocket import build, write
from wancore.nodes.animate import WanCoreAnimateToVideo
from wancore.nodes.bridge import clip_run, sampling
from wancore.nodes.bridge.clip_vision import load_clip_vision
from wancore.nodes.bridge.clips import CLIPS
from wancore.nodes.bridge.decode import decode_clips
from wancore.nodes.bridge.latents import FRAME_RATE
from wancore.nodes.bridge.model import load_model
from wancore.pocket import family
from wancore.wan_core.errors import InputError, WrongModelError
from wancore.wan_core.sampling.presets import Settings

from ..bridge.tiny_models import write_tiny
from . import clips
from .clips import LENGTH, made_natively_by, prompts, relative
from .native import run

WIDTH, HEIGHT = 48, 32
CLIP = {"clip_frames": LENGTH, "overlap": 1, "seconds": 0.0}


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    members = {"model": family.ANIMATE, "sight": family.CLIP_VISION}
    for member in members.values():
        write(build(member, fp8=True), folder / member.name, member.metadata)
    return {name: str(folder / member.name) for name, member in members.items()}


def picture(count: int = 1, width: int = WIDTH, height: int = HEIGHT, seed: int = 1) -> torch.Tensor:
    return clips.picture(count, width, height, seed)


def masks(count: int) -> torch.Tensor:
    return (torch.rand(count, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) > 0.5).float()


def scene(frames: int = LENGTH, face: int = 32) -> dict[str, Any]:
    return {
        "reference_image": picture(seed=5),
        "pose_video": picture(frames, seed=6),
        "face_video": picture(frames, face, face, seed=7),
    }


def ours(vae: Any, **inputs: Any) -> tuple:
    given = {"size": "custom", "width": WIDTH, "height": HEIGHT, **CLIP, **inputs}
    positive, negative = prompts()
    return run(WanCoreAnimateToVideo, positive=positive, negative=negative, vae=vae, **given).result


def natively(vae: Any, **inputs: Any) -> tuple:
    return made_natively_by(
        WanAnimateToVideo, vae, width=WIDTH, height=HEIGHT, continue_motion_max_frames=5, video_frame_offset=0, **inputs
    )


def test_the_conditioning_is_the_native_one(vae21, native21):
    output = comfy.clip_vision.Output()
    inputs = {**scene(face=512), "clip_vision_output": output}
    mine, theirs = ours(vae21, **inputs), natively(native21, **inputs)
    for one, other in zip(mine[:2], theirs[:2], strict=True):
        one, other = one[0][1], other[0][1]
        assert one.keys() == other.keys()
        for name in ("concat_latent_image", "pose_video_latent", "face_video_pixels"):
            assert relative(one[name], other[name]) < 1e-5, name
        assert torch.equal(one["concat_mask"], other["concat_mask"])
        assert one["clip_vision_output"] is other["clip_vision_output"] is output
    assert mine[2]["samples"].shape == theirs[2]["samples"].shape and mine[2][FRAME_RATE] == 30


def test_a_mask_is_the_native_one_three_frames_later(vae21, native21):
    """As official: the first frame counts four times. ComfyUI's node takes the mask from the first channel on."""
    inputs = {**scene(), "background_video": picture(LENGTH, seed=8), "character_mask": masks(LENGTH)}
    mine, theirs = (make(vae, **inputs)[0][0][1] for make, vae in ((ours, vae21), (natively, native21)))
    assert relative(mine["concat_latent_image"], theirs["concat_latent_image"]) < 1e-5
    mask, native = (values["concat_mask"][0, :, 1:].transpose(0, 1).flatten(0, 1) for values in (mine, theirs))
    small = torch.nn.functional.interpolate(masks(LENGTH)[None], size=mask.shape[1:], mode="nearest")[0]
    assert torch.equal(mask, torch.cat([small[:1].expand(3, -1, -1), small]))
    nearby = torch.nn.functional.interpolate(masks(LENGTH)[None], size=mask.shape[1:], mode="nearest-exact")[0]
    assert torch.equal(native[:LENGTH], nearby) and native[LENGTH:].min() == 1


def sampled(paths, vae, *, really: bool = False, **inputs) -> tuple[dict, list[dict], Any]:
    """The latent of all clips after one step, and what the model was given for each; it answers nothing by itself."""
    positive, negative, latent = ours(vae, **inputs)
    model, seen = load_model(paths["model"]), []

    def look(apply, args):
        seen.append(args["c"])
        return apply(args["input"], args["timestep"], **args["c"]) if really else 0.1 * args["input"]

    model.set_model_unet_function_wrapper(look)
    plan = sampling.plan(sampling.Pair.of(model, None), Settings(steps=1, guidance_high=1.0), sampling.Run(1))
    return clip_run.sample(plan, positive, negative, latent, sampling.Run(1), None)[0], seen, latent


@pytest.mark.parametrize("overlap", [1, 5])
def test_each_clip_goes_on_from_the_one_before(paths, vae21, overlap):
    frames = 2 * LENGTH - overlap + 2  # two whole clips and a little of a third
    out, seen, latent = sampled(paths, vae21, **scene(frames), overlap=overlap)
    assert [clip.start for clip in latent[CLIPS].clips] == [0, LENGTH - overlap, 2 * (LENGTH - overlap)]
    assert out["samples"].shape[2] == 3 * 4 and len(seen) == 3
    known = [values["c_concat"][:, :4, :, 0, 0] for values in seen]  # 1 where it is known
    assert all((mask[:, :, 0] == 1).all() for mask in known)
    assert [int(mask[:, :, 1:].sum()) for mask in known] == [0, overlap + 3, overlap + 3]
    (video,), images = decode_clips(out, vae21, None, with_images=True)
    assert len(images) == frames == video.get_frame_count() and float(video.get_frame_rate()) == 30
    carried = torch.cat([images[LENGTH - overlap : LENGTH], torch.full((LENGTH - overlap, HEIGHT, WIDTH, 3), 0.5)])
    normalised = load_model(paths["model"]).model.process_latent_in(vae21.encode(carried))
    assert relative(seen[1]["c_concat"][:, 4:, 1:], normalised) < 1e-2  # the frames were bytes in between
    assert not torch.equal(seen[0]["pose_latents"], seen[1]["pose_latents"])


def test_a_short_video_is_one_clip_and_seconds_cut_a_long_one(paths, vae21):
    out, _, latent = sampled(paths, vae21, really=True, **scene(6), clip_frames=77)
    assert [(clip.frames, clip.overlap) for clip in latent[CLIPS].clips] == [(9, 0)]
    assert decode_clips(out, vae21, None, with_images=False)[0][0].get_frame_count() == 6
    cut = ours(vae21, **scene(40), seconds=0.5)[2][CLIPS]
    assert cut.frames == 15


def test_the_native_sampler_makes_the_first_clip(paths, vae21):
    out, _, _ = sampled(paths, vae21, **scene(2 * LENGTH))
    first = {**out, "samples": out["samples"][:, :, :4]}
    assert decode_clips(first, vae21, None, with_images=False)[0][0].get_frame_count() == LENGTH


def test_background_stays_behind_what_is_carried_over(paths, vae21):
    frames = 2 * LENGTH - 1
    given = {**scene(frames), "background_video": picture(seed=8), "character_mask": masks(1)}
    _, seen, _ = sampled(paths, vae21, **given)
    small = 1 - torch.nn.functional.interpolate(masks(1)[None], size=(HEIGHT // 8, WIDTH // 8), mode="nearest")[0, 0]
    later = seen[1]["c_concat"][0, :4]
    assert (later[:, 1] == 1).all() and torch.equal(later[:, 2].float(), small.expand(4, -1, -1))
    assert torch.equal(seen[0]["c_concat"][0, 3, 1].float(), small)


def test_the_reference_is_shown_whole_and_seen_by_clip(paths, vae21):
    sight = load_clip_vision(paths["sight"])
    tall = torch.ones(1, 200, 50, 3)
    (positive, *_), _, _ = ours(vae21, **{**scene(), "reference_image": tall}, clip_vision=sight)
    features = positive[1]["clip_vision_output"].penultimate_hidden_states
    assert features.shape == (1, 257, family.SIGHT_DIM)
    bars = torch.zeros(1, HEIGHT, WIDTH, 3)
    bars[:, :, 20:28] = 1
    assert torch.allclose(features, sight.encode_image(bars, crop=False).penultimate_hidden_states, atol=1e-5)
    reference = positive[1]["concat_latent_image"][:, :, :1]
    assert relative(reference, vae21.encode(bars)) < 1e-5


def test_what_cannot_be_is_refused(paths, vae21, vae22):
    for change, where, what in (
        ({"character_mask": masks(LENGTH)}, "background_video", "only character_mask"),
        ({"background_video": picture(LENGTH)}, "character_mask", "only background_video"),
        ({"face_video": picture(LENGTH - 1)}, "face_video", f"{LENGTH - 1} frames"),
        ({"width": 100}, "width", "100 pixels"),
        ({"clip_frames": 76}, "clip_frames", "76 frames"),
        ({"overlap": 3}, "overlap", "3 frames"),
    ):
        with pytest.raises(InputError) as caught:
            ours(vae21, **{**scene(), **change})
        assert (caught.value.where, caught.value.found) == (where, what)
    sight = load_clip_vision(paths["sight"])
    with pytest.raises(InputError, match="given twice"):
        ours(vae21, **scene(), clip_vision=sight, clip_vision_output=sight.encode_image(picture()))
    with pytest.raises(WrongModelError, match="latent channels"):
        ours(vae22, **scene())
    fitting = {"size": "custom", "width": 96, "height": 64, "clip_frames": 77, "overlap": 1}
    unknown = dict.fromkeys(fitting)  # as linked inputs are
    assert WanCoreAnimateToVideo.validate_inputs(**fitting) is WanCoreAnimateToVideo.validate_inputs(**unknown) is True
    for change, words in (({"width": 100}, "96 or 112."), ({"clip_frames": 76}, "best."), ({"overlap": 3}, "to 1.")):
        assert WanCoreAnimateToVideo.validate_inputs(**{**fitting, **change}).endswith(words)


def test_another_model_is_refused_before_it_is_loaded(vae21, tmp_path: Path):
    model = load_model(write_tiny(tmp_path / "wan2.2_i2v_high_noise_14B.safetensors", "i2v_A14B_expert"))
    plan = sampling.plan(sampling.Pair.of(model, None), Settings(steps=1), sampling.Run(1))
    positive, negative, latent = ours(vae21, **scene())
    with pytest.raises(WrongModelError, match="no poses and no face") as caught:
        clip_run.sample(plan, positive, negative, latent, sampling.Run(1), None)
    assert "/Wan22Animate/Wan2_2-Animate-14B_fp8_e4m3fn_scaled_KJ.safetensors" in caught.value.remedy


def test_every_input_and_output_is_explained():
    schema = WanCoreAnimateToVideo.define_schema()
    assert schema.description and all(item.tooltip for item in [*schema.inputs, *schema.outputs])
    page = Path(__file__).parents[2] / "web" / "docs" / "WanCoreAnimateToVideo.md"
    assert all(item.id in page.read_text() for item in schema.inputs)
