"""Every native conditioning node of the Wan family beside ours, on the real server: each feeds both models alike.

One file per model, loaded by ComfyUI's node and by ours; both conditioning nodes before each of them; four latents.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import TEXT_ENCODER, VAE, Nodes, Prompt
from make_pocket import draw, write
from PIL import Image
from safetensors.torch import load
from setup.client import Client
from setup.places import ROOT
from template_media import write_media
from wancore.pocket import family
from wancore.pocket.models import shapes_of

EQUAL, DIFFERENT = 1e-5, 1e-3  # of the largest value; float32
SIZE = {"width": 64, "height": 64}
SCALED = {**SIZE, "upscale_method": "bilinear", "crop": "disabled"}
FRAMES, PICTURE = ["frames", 0], ["picture", 0]
LAYERS = 10  # of Animate; ComfyUI expects a face block for each five
ANIMATE, EYES = "wan2.2_animate_14B_bf16.safetensors", "one_layer_of_clip_vision_h.safetensors"


@dataclass(frozen=True)
class Case:
    """A native node and ours that mean the same, before one model; what both are given, and each alone."""

    native: str
    ours: str
    model: str
    inputs: dict[str, Any]
    alone: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    length: int = 9
    steps: int = 2
    vae: str = VAE
    departs: tuple[str, ...] = ()  # what is officially other than natively, and so with us: "nodes", "models"


PATH = ({"camera_conditions": ["path", 0]}, {"camera_pose": "Zoom In"})
SOUND = ({"audio_encoder_output": ["heard", 0]}, {"audio_encoder": ["ears", 0], "audio": ["voice", 0]})
CASES = (
    Case("WanImageToVideo", "WanCoreImageToVideo", family.I2V_HIGH.name, {"start_image": PICTURE}),
    Case(
        "WanFirstLastFrameToVideo",
        "WanCoreImageToVideo",
        family.I2V_LOW.name,
        {"start_image": PICTURE, "end_image": ["inverted", 0]},
    ),
    Case(
        "Wan22ImageToVideoLatent",
        "WanCoreImageToVideo",
        family.TI2V.name,
        {"start_image": PICTURE},
        vae=family.VAE22.name,
    ),
    Case(
        "WanVaceToVideo",
        "WanCoreVaceToVideo",
        family.VACE_HIGH.name,
        {"control_video": FRAMES, "reference_image": PICTURE, "strength": 0.8},
    ),
    Case(
        "Wan22FunControlToVideo",
        "WanCoreFunControlToVideo",
        family.CONTROL_LOW.name,
        {"control_video": FRAMES, "ref_image": PICTURE},
    ),
    Case("WanCameraImageToVideo", "WanCoreFunCameraToVideo", family.CAMERA_HIGH.name, {}, PATH),
    Case(
        "WanCameraImageToVideo",
        "WanCoreFunCameraToVideo",
        family.CAMERA_HIGH.name,
        {"start_image": PICTURE},
        PATH,
        departs=("nodes",),
    ),
    Case(
        "WanAnimateToVideo",
        "WanCoreAnimateToVideo",
        ANIMATE,
        {
            "reference_image": PICTURE,
            "pose_video": FRAMES,
            "face_video": ["faces", 0],
            "clip_vision_output": ["seen", 0],  # without it ComfyUI's model reads the text in its place
        },
        length=1,  # the face is read at its published size: a second for each frame
        steps=1,
    ),
    Case(
        "WanSoundImageToVideo",
        "WanCoreSoundToVideo",
        family.S2V.name,
        {"ref_image": PICTURE},
        SOUND,
        length=20,
        departs=("nodes", "models"),
    ),
)


@pytest.fixture(scope="module", autouse=True)
def files(base: Path) -> None:
    """The media; an Animate model and the encoder for it, with the widths that ComfyUI fixes."""
    write_media(base)
    with Image.open(base / "input" / "example.png") as picture:
        picture.resize((SIZE["width"], SIZE["height"])).save(base / "input" / "square.png")
    widths = {5120: 256, 10240: 512, 13824: 320, 30720: 6 * 256, 4096: family.TEXT_DIM}
    faces = {"face_adapter.fuser_blocks": LAYERS // 5}
    parts = {"face_encoder.": {5120: 256}}
    animate = replace(family.ANIMATE, widths=widths, layers=LAYERS, lists=faces, parts=parts)
    write(random(animate), base / "models" / "diffusion_models" / ANIMATE, family.TRANSFORMER_METADATA)
    write(random(replace(family.CLIP_VISION, widths={})), base / "models" / "clip_vision" / EYES, {})


def random(member: family.Member) -> dict[str, torch.Tensor]:
    """Weights for a member, which keeps one layer if it is a picture encoder."""
    later = re.compile(r"vision_model\.encoder\.layers\.[1-9]")
    return {
        name: draw(name, shape, member.seed).to(torch.bfloat16)
        for name, shape in shapes_of(member)
        if not later.match(name)
    }


def prompt_of(case: Case, nodes: Nodes) -> Prompt:
    """Both nodes before both models: four samplers, four latents to keep."""
    own, alone = nodes.inputs(case.native), dict(zip(("native", "ours"), case.alone, strict=True))
    given = {**case.inputs, **SIZE, "batch_size": 1, "vae": ["vae", 0]}
    prompts = {"positive": ["positive", 0], "negative": ["negative", 0]}
    native = {"length": case.length, **given, **alone["native"], **({} if "positive" not in own else prompts)}
    ours = {
        "length": case.length,
        "size": "custom",
        "clip_frames": max(case.length, 9),
        **given,
        **prompts,
        **alone["ours"],
    }
    known = nodes.inputs(case.ours)
    graph: Prompt = {
        "clip": nodes("WanCoreLoadTextEncoder", text_encoder_name=TEXT_ENCODER),
        "positive": nodes("CLIPTextEncode", clip=["clip", 0], text="a red circle moves to the right"),
        "negative": nodes("CLIPTextEncode", clip=["clip", 0], text="blurred, static"),
        "vae": nodes("WanCoreLoadVAE", vae_name=case.vae),
        "picture": nodes("LoadImage", image="square.png"),  # of the clip's size: others ours cuts as officially
        "inverted": nodes("ImageInvert", image=PICTURE),
        "video": nodes("LoadVideo", file="control.mp4"),
        "all": nodes("GetVideoComponents", video=["video", 0]),
        "some": nodes("ImageFromBatch", image=["all", 0], batch_index=0, length=case.length),
        "frames": nodes("ImageScale", image=["some", 0], **SCALED),
        "faces": nodes("ImageScale", image=["some", 0], **{**SCALED, "width": 512, "height": 512}),
        "voice": nodes("LoadAudio", audio="voice.wav"),
        "ears": nodes("WanCoreLoadAudioEncoder", audio_encoder_name=family.AUDIO_ENCODER.name),
        "heard": nodes("AudioEncoderEncode", audio_encoder=["ears", 0], audio=["voice", 0]),
        "eyes": nodes("WanCoreLoadClipVision", clip_name=EYES),
        "seen": nodes("CLIPVisionEncode", clip_vision=["eyes", 0], image=PICTURE, crop="none"),
        "path": nodes("WanCameraEmbedding", camera_pose="Zoom In", length=case.length, **SIZE),
        "native": nodes(case.native, **native),
        "ours": nodes(case.ours, **{name: value for name, value in ours.items() if name in known}),
        "native_model": nodes("UNETLoader", unet_name=case.model),
        "our_model": nodes("WanCoreLoadDiffusionModel", model_name=case.model, weight_dtype="fp32"),
    }
    for model in ("native", "our"):
        graph[f"{model}_shift"] = nodes("ModelSamplingSD3", model=[f"{model}_model", 0], shift=5.0)
        for source in ("native", "ours"):
            of = ("positive", "negative") if source == "native" and "positive" not in own else (source, source)
            links = {"positive": [of[0], 0], "negative": [of[1], 1 if of[1] == source else 0]}
            latent = [source, 0 if of[0] == "positive" else 2]
            key = f"{source} before {model}"
            graph[f"{key} sampled"] = nodes(
                "KSampler", model=[f"{model}_shift", 0], latent_image=latent, seed=7, steps=case.steps, cfg=1.0,
                sampler_name="euler", scheduler="simple", **links,
            )  # fmt: skip
            graph[key] = nodes("SaveLatent", samples=[f"{key} sampled", 0], filename_prefix="interop/latent")
    return graph


def latents(client: Client, prompt: Prompt) -> dict[str, torch.Tensor]:
    outputs = client.run(prompt).outputs
    return {
        key: load(client.view(output["latents"][0]))["latent_tensor"].double()
        for key, output in outputs.items()
        if "latents" in output
    }


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference over largest value."""
    assert one.shape == other.shape and one.isfinite().all()
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.native} {', '.join(case.inputs)}")
def test_both_nodes_feed_both_models(client: Client, nodes: Nodes, case: Case) -> None:
    found = latents(client, prompt_of(case, nodes))
    assert len(found) == 4
    for model in ("native", "our"):
        apart = distance(found[f"ours before {model}"], found[f"native before {model}"])
        assert (apart > DIFFERENT) if "nodes" in case.departs else (apart < EQUAL)
    for node in ("native", "ours"):
        apart = distance(found[f"{node} before our"], found[f"{node} before native"])
        assert (apart > DIFFERENT) if "models" in case.departs else (apart < EQUAL)
    page = (ROOT / "web" / "docs" / f"{case.ours}.md").read_text(encoding="utf-8")
    assert not case.departs or case.native in page, "the node's page says nothing of it"
