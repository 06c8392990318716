"""Sound to video: clips of a sound, sizes, and what the transformer makes of its inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from wancore.tools.golden_cases import read
from wancore.tools.golden_cases.s2v import model as golden_model
from wancore.wan_core.audio.buckets import FRAME_RATE, buckets, resampled
from wancore.wan_core.audio.clips import LEAD_IN, fitting_size, frames_of_sound, plan_clips
from wancore.wan_core.audio.conditioning import SoundInputs, sound_conditioning
from wancore.wan_core.errors import InputError, WrongModelError

GOLDEN = Path(__file__).parents[1] / "golden"


def test_sizes_are_the_official_ones():
    table = json.loads((GOLDEN / "geometry.json").read_text())["s2v_get_size_less_than_area(h,w)"]
    for case, (height, width) in table.items():
        size, area = case.split("@")
        rows, columns = map(int, size.split("x"))
        assert fitting_size(columns, rows, int(area)) == (width, height), case


@pytest.mark.parametrize("width, height", [(20, 4000), (1, 1), (5000, 4999), (64, 64)])
def test_every_picture_gets_a_legal_size(width, height):
    size = fitting_size(width, height, 832 * 480)
    assert min(size) >= 64 and not size[0] % 64 and not size[1] % 64


@pytest.mark.parametrize("clip_frames", [8, 16, 48, 80])
def test_clips_cover_the_video_without_gaps(clip_frames):
    for frames in range(1, 400):
        clips = plan_clips(frames, clip_frames)
        assert [clip.start for clip in clips] == [0, *accumulate(clip.frames for clip in clips[:-1])]
        assert all(clip.frames == clip_frames for clip in clips[1:-1])
        assert all(clip.frames % 4 == 0 for clip in clips)
        assert clips[0].frames <= clip_frames + 4 and all(clip.frames <= clip_frames for clip in clips[1:])
        assert sum(clip.kept for clip in clips) >= frames
        assert sum(clip.kept for clip in clips[:-1]) < frames
        assert clips[0].kept == clips[0].frames - LEAD_IN


@pytest.mark.parametrize(
    "seconds, frames",
    [
        (4.8, [80]),
        (5.0, [84]),
        (5.06, [84]),
        (5.1, [80, 48]),
        (10.0, [84, 80]),
        (15.0, [84, 80, 80]),
        (15.1, [80] * 3 + [48]),
    ],
)
def test_whole_fives_of_seconds_are_so_many_clips(seconds, frames):
    """The three frames that are thrown away do not ask for a clip of their own."""
    clips = plan_clips(frames_of_sound(seconds))
    assert [clip.frames for clip in clips] == frames


@pytest.mark.parametrize("clip_frames", [0, 4, 18, -8])
def test_impossible_clips_are_refused(clip_frames):
    with pytest.raises(InputError, match="clip_frames"):
        plan_clips(80, clip_frames)


@pytest.mark.parametrize("seconds", [0.01, 0.8, 5.0, 12.34])
def test_a_video_ends_with_its_sound(seconds):
    assert abs(frames_of_sound(seconds) / FRAME_RATE - seconds) <= 1 / FRAME_RATE


def test_features_of_a_frame_are_those_of_its_time():
    ramp = torch.arange(100.0)[None, :, None]  # its value is its index at 50 per second
    found = buckets(resampled(ramp), 16).features[:30, 0, 0]
    expected = torch.arange(30) / FRAME_RATE * 50
    assert (found - expected).abs().max() < 2


@pytest.fixture(scope="module")
def s2v():
    golden = read(GOLDEN / "wan_s2v.safetensors")
    given = golden.of("in", "with_motion")
    inputs = SoundInputs(given["audio_input"], given["ref_latents"], given["motion_latents"], given["cond_states"])
    return golden_model(golden), given["x"][None], given["t"], given["context"][None], inputs


@pytest.mark.parametrize("part", ["sound", "reference", "motion", "pose"])
def test_every_input_counts(s2v, part):
    model, video, step, text, inputs = s2v
    whole = model(video, step, sound_conditioning(model, video, text, inputs))
    without = model(video, step, sound_conditioning(model, video, text, replace(inputs, **{part: None})))
    assert (whole - without).norm() / whole.norm() > 1e-2


def test_a_pose_of_zeros_is_no_pose(s2v):
    model, video, _, text, inputs = s2v
    zeros = sound_conditioning(model, video, text, replace(inputs, pose=torch.zeros_like(inputs.pose)))
    none = sound_conditioning(model, video, text, replace(inputs, pose=None))
    assert torch.equal(zeros.token_bias, none.token_bias)


def test_sound_of_the_future_is_not_heard(s2v):
    """A latent frame hears up to its own fourth frame."""
    model, video, _, text, inputs = s2v
    later = inputs.sound.clone()
    later[..., 4:] += 1
    whole, changed = (
        sound_conditioning(model, video, text, replace(inputs, sound=sound)).adapters[0].whole
        for sound in (inputs.sound, later)
    )
    assert torch.equal(whole[:, 0], changed[:, 0]) and not torch.equal(whole[:, 1], changed[:, 1])


def test_samples_of_a_batch_do_not_mix(s2v):
    model, video, step, text, inputs = s2v
    other = SoundInputs(*(torch.flip(value, (-1,)) for value in vars(inputs).values()))
    both = SoundInputs(*(torch.cat(pair) for pair in zip(vars(inputs).values(), vars(other).values(), strict=True)))
    two = torch.cat([video, video])
    together = model(two, step.expand(2), sound_conditioning(model, two, torch.cat([text, text]), both))
    for index, single in enumerate((inputs, other)):
        alone = model(video, step, sound_conditioning(model, video, text, single))
        assert (together[index] - alone[0]).norm() / alone.norm() < 1e-6


def test_another_encoder_is_refused(s2v):
    model, video, _, text, inputs = s2v
    with pytest.raises(WrongModelError) as caught:
        sound_conditioning(model, video, text, replace(inputs, sound=inputs.sound[:, :13]))
    assert "13 layers" in caught.value.found and "25 layers" in caught.value.expected
