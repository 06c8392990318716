"""The world of S2V: voices, things that open and close, their judge; and what training computes in the pack's place."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_host import import_comfy

import_comfy()

from make_pocket import write
from wancore.nodes.bridge.audio_encoder import load_audio_encoder, sound_features
from wancore.pocket import family, models, speakers, voice
from wancore.pocket.judge import correlation, judge, openings_of, regions
from wancore.pocket.training import hearing, sound_model
from wancore.pocket.training.blocks import TEXT_ROWS, training_hooks
from wancore.pocket.training.sound_report import held_out_parts, true_clip
from wancore.wan_core.audio.buckets import FRAME_RATE, buckets
from wancore.wan_core.audio.clips import LEAD_IN
from wancore.wan_core.audio.conditioning import SoundInputs, sound_conditioning


def spoken(count: int, frames: int, seed: int = 0) -> tuple[voice.Score, np.ndarray]:
    rng = np.random.default_rng(seed)
    voices = voice.score([voice.draw_voice(rng, frames / FRAME_RATE) for _ in range(count)])
    return voices, rng.standard_normal((count, frames * voice.FRAME)).astype(np.float32)


def test_voices_are_the_same_in_numpy_and_torch():
    voices, noise = spoken(3, 24)
    tensors = voice.Score(*(torch.from_numpy(getattr(voices, field.name)) for field in fields(voice.Score)))
    expected, found = voice.speak(voices, noise), voice.speak(tensors, torch.from_numpy(noise), torch)
    assert np.abs(found.numpy() - expected).max() < 1e-4
    assert 0.05 < np.abs(expected).max() <= 1
    loud = voice.loudness(expected, 24)
    assert np.abs(voice.loudness(found, 24, torch).numpy() - loud).max() < 1e-4
    assert (loud.max(1) > 1).all() and (loud.min(1) < 0.3).all()


def test_held_out_voices_and_scenes_are_never_drawn_for_training():
    rng = np.random.default_rng(5)
    for held_out in (False, True):
        assert {voice.is_held_out(voice.draw_voice(rng, 2.0, held_out=held_out)) for _ in range(60)} == {held_out}
        drawn = [speakers.draw_speaker(rng, held_out=held_out) for _ in range(60)]
        assert {speakers.is_held_out(scene) for scene in drawn} == {held_out}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_judge_hears_what_the_generator_draws(seed: int):
    """Openings follow the loudness of their own sound, and not that of another; the colour is read as ever."""
    parts = held_out_parts(seed, 12, frames=45)
    clips = [true_clip(part) for part in parts]
    seen, heard = [openings_of(regions(clip)) for clip in clips], [part.loudness for part in parts]
    every = np.array([[correlation(one, other) for other in heard] for one in seen])
    own, others = np.diag(every), every[~np.eye(len(every), dtype=bool)]
    assert own.min() >= 0.95 and own.mean() >= 0.98, own
    assert abs(others.mean()) <= 0.1, others.mean()
    colors = [judge(clip).color == part.scene.things[0].color for part, clip in zip(parts, clips, strict=True)]
    assert np.mean(colors) >= 0.99


def test_ears_hear_as_the_audio_encoder_does(tmp_path: Path):
    """Two layers and 32 channels against the 24 and 512 of the file that stands for them, through the pack's loader."""
    torch.manual_seed(0)
    ears = hearing.Ears().half().float().requires_grad_(False)  # ComfyUI keeps it in half precision
    weights = models.completed(family.AUDIO_ENCODER, ears.state_dict())
    write(weights, tmp_path / "ears.safetensors", {})
    voices, noise = spoken(1, 20)
    heard = torch.from_numpy(voice.speak(voices, noise))
    audio = {"waveform": heard[None], "sample_rate": voice.RATE}
    with torch.inference_mode():
        layers = sound_features(load_audio_encoder(tmp_path / "ears.safetensors"), audio, LEAD_IN / FRAME_RATE)
    frames = 20 + LEAD_IN
    expected = buckets(layers, frames).features[:frames].permute(1, 2, 0)[None]
    found = hearing.features(ears, hearing.led_in(heard), frames)[:, hearing.layers_heard()]
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert (expected[:, 0] - expected[:, 2]).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("going_on", [False, True])
def test_training_hears_and_remembers_as_the_model_does(going_on: bool):
    """The trained form of S2V against the whole model of its completed weights, in float32."""
    torch.manual_seed(1)
    trained, whole = (
        sound_model.new_model().requires_grad_(False),
        models.new_transformer(family.S2V).requires_grad_(False),
    )
    for parameter in trained.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    whole.load_state_dict(models.completed(family.S2V, trained.state_dict()))
    hooks = training_hooks(trained, torch.device("cpu"))
    sound_model.lighten(trained, torch.device("cpu"))
    config, frames = whole.config, 3
    video = torch.randn(2, 16, frames, 8, 16)
    text = torch.zeros(2, TEXT_ROWS, family.TEXT_DIM)
    text[:, :9] = torch.randn(2, 9, family.TEXT_DIM)
    heard = torch.randn(2, config.audio_layers, config.audio_dim, 4 * frames)
    motion = torch.randn(2, 16, 19, 8, 16) if going_on else None
    given = SoundInputs(heard, torch.randn(2, 16, 1, 8, 16), motion)
    steps = torch.tensor([310.0, 820.0])
    expected = whole(video, steps, sound_conditioning(whole, video, text, given))
    found = trained(video, steps, sound_conditioning(trained, video, text, given), hooks)
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    silent = SoundInputs(torch.zeros_like(heard), given.reference, motion)
    changed = whole(video, steps, sound_conditioning(whole, video, text, silent))
    assert (changed - expected).norm() > 1e-3 * expected.norm()
