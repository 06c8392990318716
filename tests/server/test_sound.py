"""Sound to video on the real server: a sound and a picture go in, a clip as long as the sound comes out."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from graphs import T2V_HIGH, TEXT_ENCODER, VAE, Nodes, Prompt
from PIL import Image
from setup.client import Client, PromptFailedError
from workflow_api import to_prompt

S2V = "wan2.2_s2v_14B_fp8_scaled.safetensors"
WAV2VEC2 = "wav2vec2_large_english_fp16.safetensors"
RATE, FRAMES_PER_SECOND = 22050, 16


@pytest.fixture(scope="module")
def nodes(object_info: dict[str, Any]) -> Nodes:
    return Nodes(object_info)


def write_inputs(base: Path, seconds: float) -> None:
    """A tone that swells and a picture of colours, in ComfyUI's input folder."""
    folder = base / "input"
    folder.mkdir(exist_ok=True)
    time = np.arange(round(seconds * RATE)) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 220 * time) * np.sin(np.pi * time) ** 2 * 32767).astype("<i2")
    with wave.open(str(folder / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(tone.tobytes())
    colours = np.random.default_rng(0).integers(0, 255, (96, 80, 3), dtype=np.uint8)
    Image.fromarray(colours).save(folder / "face.png")


def sound_to_video(nodes: Nodes, sampler: Prompt, **sound: Any) -> Prompt:
    """A clip of 64 x 64 pixels; `sampler` is the node between conditioning and decoding."""
    return {
        "models": nodes("WanCoreLoadModels", model=S2V, low_model="none", text_encoder=TEXT_ENCODER, vae=VAE),
        "ears": nodes("WanCoreLoadAudioEncoder", audio_encoder_name=WAV2VEC2),
        "audio": nodes("LoadAudio", audio="tone.wav"),
        "picture": nodes("LoadImage", image="face.png"),
        "text": nodes("WanCoreTextEncode", clip=["models", 2], prompt="somebody sings"),
        "sound": nodes(
            "WanCoreSoundToVideo",
            positive=["text", 0],
            negative=["text", 1],
            vae=["models", 3],
            audio_encoder=["ears", 0],
            audio=["audio", 0],
            ref_image=["picture", 0],
            **{"size": "custom", "width": 64, "height": 64, **sound},
        ),
        "sampler": sampler,
        "decode": nodes("WanCoreVAEDecode", latent=["sampler", 0], vae=["models", 3], audio=["sound", 3]),
        "save": nodes("WanCoreSaveVideo", video=["decode", 0], filename_prefix="sound"),
    }


def ours(nodes: Nodes, **settings: Any) -> Prompt:
    links = {"high": ["models", 0], "positive": ["sound", 0], "negative": ["sound", 1], "latent": ["sound", 2]}
    return nodes("WanCoreKSampler", **links, **{"seed": 1, "steps": 2, **settings})


def lengths(client: Client, base: Path, prompt: Prompt) -> tuple[int, float]:
    """Frames of the saved clip, and seconds of its sound."""
    (saved,) = client.run(prompt).files()
    with av.open(str(base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        frames = sum(1 for _ in container.decode(video=0))
    with av.open(str(base / saved["type"] / saved["subfolder"] / saved["filename"])) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        rate = container.streams.audio[0].rate
    return frames, samples / rate


def test_clip_and_sound_end_together(client: Client, base: Path, nodes: Nodes) -> None:
    """Two clips, a pose, guidance: the second clip goes on from the first one's frames."""
    write_inputs(base, 4.0)
    prompt = sound_to_video(nodes, ours(nodes), seconds=1.5, clip_frames=16)
    prompt["sound"]["inputs"]["pose_video"] = ["picture", 0]
    frames, sound = lengths(client, base, prompt)
    assert frames == 24
    assert abs(frames / FRAMES_PER_SECOND - sound) <= 1 / FRAMES_PER_SECOND


def test_a_native_sampler_runs_the_first_clip(client: Client, base: Path, nodes: Nodes) -> None:
    write_inputs(base, 1.5)
    links = {"positive": ["sound", 0], "negative": ["sound", 1], "latent_image": ["sound", 2]}
    native = nodes("KSampler", model=["models", 0], **links, seed=1, steps=1, cfg=1.0)
    frames, sound = lengths(client, base, sound_to_video(nodes, native, clip_frames=16))
    assert frames == 16 - 3
    assert abs(frames / FRAMES_PER_SECOND - sound) <= 1 / FRAMES_PER_SECOND


@pytest.mark.slow
def test_a_whole_sound_in_clips_of_80_frames(client: Client, base: Path, nodes: Nodes) -> None:
    write_inputs(base, 5.6)
    frames, sound = lengths(client, base, sound_to_video(nodes, ours(nodes, cfg_high=1.0)))
    assert frames == 90
    assert abs(frames / FRAMES_PER_SECOND - sound) <= 1 / FRAMES_PER_SECOND


@pytest.mark.slow
def test_the_template_makes_a_clip_with_its_sound(
    client: Client, base: Path, workflows: dict[str, Any], object_info: dict[str, Any]
) -> None:
    """Unedited: the clip is never larger than the picture, and as long as the sound."""
    write_inputs(base, 1.0)
    (base / "input" / "tone.wav").replace(base / "input" / "voice.wav")
    Image.new("RGB", (64, 64), (200, 120, 40)).save(base / "input" / "example.png")
    frames, sound = lengths(client, base, to_prompt(workflows["Wan 2.2 Sound to Video"], object_info))
    assert frames == FRAMES_PER_SECOND
    assert abs(frames / FRAMES_PER_SECOND - sound) <= 1 / FRAMES_PER_SECOND


def test_the_template_has_five_nodes(workflows: dict[str, Any]) -> None:
    assert len(workflows["Wan 2.2 Sound to Video"]["nodes"]) == 5


def test_a_latent_of_sound_on_another_model_is_refused(client: Client, base: Path, nodes: Nodes) -> None:
    write_inputs(base, 1.0)
    prompt = sound_to_video(nodes, ours(nodes, steps=1), clip_frames=16)
    prompt["models"]["inputs"]["model"] = T2V_HIGH
    with pytest.raises(PromptFailedError, match="takes no sound"):
        client.run(prompt)
