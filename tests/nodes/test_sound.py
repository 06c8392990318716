"""Wan Sound to Video: the plan of clips, what each clip is sampled from, and how they become one video."""

from __future__ import annotations

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

from make_pocket import build, write
from wancore.nodes.bridge import clip_run, sampling
from wancore.nodes.bridge.audio_encoder import load_audio_encoder
from wancore.nodes.bridge.clips import CLIPS
from wancore.nodes.bridge.decode import decode_clips
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.sound import covered, trimmed
from wancore.nodes.bridge.vae import load_vae
from wancore.nodes.sound import WanCoreSoundToVideo
from wancore.pocket import family
from wancore.wan_core.audio.clips import LEAD_IN
from wancore.wan_core.errors import InputError, WrongModelError
from wancore.wan_core.sampling.presets import Settings

from .native import run

RATE = 8000


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    members = {"model": family.S2V, "vae": family.VAE, "ears": family.AUDIO_ENCODER}
    for member in members.values():
        write(build(member, fp8=True), folder / member.name, member.metadata)
    return {name: str(folder / member.name) for name, member in members.items()}


def sound(seconds: float) -> dict:
    return {"waveform": 0.1 * noise(1, 2, round(seconds * RATE)), "sample_rate": RATE}


def run_node(paths, **inputs):
    vae = load_vae(paths["vae"])
    text = [[noise(1, 512, family.TEXT_DIM, seed=8), {}]]
    given = {
        "positive": text, "negative": text, "vae": vae, "audio_encoder": load_audio_encoder(paths["ears"]),
        "audio": sound(0.8), "ref_image": noise(1, 64, 64, 3).sigmoid(), "size": "custom", "seconds": 0.0,
        "clip_frames": 8, "width": 64, "height": 64, **inputs,
    }  # fmt: skip
    return vae, run(WanCoreSoundToVideo, **given).args


@torch.inference_mode()
def test_each_clip_gets_its_sound_and_what_came_before(paths):
    vae, (positive, negative, latent, audio) = run_node(paths)
    model, seen = load_model(paths["model"]), []

    def look(apply, args):
        seen.append({name: args["c"].get(name) for name in ("audio_embed", "reference_motion", "reference_latent")})
        return apply(args["input"], args["timestep"], **args["c"])

    model.set_model_unet_function_wrapper(look)
    plan = sampling.plan(sampling.Pair.of(model, None), Settings(steps=1, guidance_high=1.0), sampling.Run(1))
    out, _ = clip_run.sample(plan, positive, negative, latent, sampling.Run(1), None)
    lengths = [clip.latents for clip in latent[CLIPS].clips]
    assert lengths == [2, 2] and out["samples"].shape[2] == 4 and len(seen) == 2
    whole = latent[CLIPS].sound
    assert torch.equal(torch.cat([values["audio_embed"] for values in seen], dim=3).float(), whole.float())
    assert whole.abs().sum() > 0 and not negative[0][1]["audio_embed"].any()
    assert seen[0]["reference_motion"] is None and seen[1]["reference_motion"].shape == (1, 16, 19, 8, 8)
    assert torch.equal(seen[0]["reference_latent"], seen[1]["reference_latent"])
    (video,), images = decode_clips(out, vae, audio, with_images=True)
    assert len(images) == 13 == video.get_frame_count()
    assert audio["waveform"].shape[-1] / RATE == pytest.approx(13 / 16, abs=1 / 16)
    first, _ = decode_clips({**out, "samples": out["samples"][:, :, :2]}, vae, None, with_images=False)
    assert first[0].get_frame_count() == 5


@torch.inference_mode()
def test_poses_follow_the_sound_and_end_in_black(paths):
    _, (positive, _, latent, _) = run_node(paths, pose_video=torch.ones(4, 40, 90, 3))
    poses = latent[CLIPS].poses
    assert [tuple(pose.shape) for pose in poses] == [(1, 16, 2, 8, 8)] * 2
    assert torch.equal(positive[0][1]["control_video"], poses[0])
    assert not torch.equal(poses[0], poses[1])


@torch.inference_mode()
def test_the_lead_in_takes_no_clip_of_its_own(paths):
    """Nine frames are one clip of twelve, seventeen are two: all are decoded, and none is left without its sound."""
    model = load_model(paths["model"])
    plan = sampling.plan(sampling.Pair.of(model, None), Settings(steps=1, guidance_high=1.0), sampling.Run(1))
    for frames, latents in ((9, [3]), (17, [3, 2])):
        vae, (positive, negative, latent, audio) = run_node(paths, audio=sound(frames / 16))
        clips = latent[CLIPS]
        assert [clip.latents for clip in clips.clips] == latents and latent["samples"].shape[2] == 3
        heard = clips.sound[0].abs().sum((0, 1))
        assert len(heard) >= frames + LEAD_IN and heard[: frames + LEAD_IN - 1].all()
        out, _ = clip_run.sample(plan, positive, negative, latent, sampling.Run(1), None)
        (video,), _ = decode_clips(out, vae, audio, with_images=False)
        assert out["samples"].shape[2] == sum(latents) and video.get_frame_count() == frames


def test_a_sound_is_cut_to_its_video():
    audio, frames = trimmed(sound(3.0), 1.0)
    assert (frames, audio["waveform"].shape[-1]) == (16, RATE)
    assert trimmed(sound(3.0), 0.0)[1] == trimmed(sound(3.0), 99.0)[1] == 48


def test_pictures_are_cut_in_the_middle():
    picture = torch.zeros(1, 64, 192, 3)
    picture[:, :, 64:128] = 1
    assert covered(picture, (64, 64)).mean() > 0.95
    assert covered(picture, (128, 64)).shape == (1, 64, 128, 3)


def test_what_no_clip_can_be_is_refused_before_anything_runs():
    sound = {"size": "custom", "width": 832, "height": 448, "clip_frames": 80}
    assert WanCoreSoundToVideo.validate_inputs(**sound) is True
    assert WanCoreSoundToVideo.validate_inputs(**dict.fromkeys(sound)) is True
    for change, words in (({"width": 840}, "width"), ({"clip_frames": 81}, "Set clip_frames to 80")):
        assert words in WanCoreSoundToVideo.validate_inputs(**{**sound, **change})


@torch.inference_mode()
def test_what_cannot_be_is_refused(paths):
    with pytest.raises(InputError, match="no sound"):
        run_node(paths, audio={"waveform": torch.zeros(1, 1, 0), "sample_rate": RATE})
    with pytest.raises(InputError, match="multiple of 64"):
        run_node(paths, width=100)
    with pytest.raises(WrongModelError) as caught:
        load_audio_encoder(paths["vae"])
    assert family.VAE.name in caught.value.where and "models/audio_encoders" in caught.value.remedy
