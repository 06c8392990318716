"""ComfyUI's own Wan templates with our loaders in place of theirs, small, on the real server."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from graphs import LORA_HIGH, TEXT_ENCODER, VAE
from make_pocket import build_lora, write
from PIL import Image, ImageSequence
from pocket_variants import write_variants
from setup.client import Client
from template_media import write_media
from wancore.pocket import family
from wancore.pocket.models import shapes_of
from workflow_api import to_prompt

PACKAGE = importlib.util.find_spec("comfyui_workflow_templates_json")  # comes with ComfyUI's requirements
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="this ComfyUI has its templates elsewhere")

PAIR = "wan2.2_{}_{{}}_noise_14B_fp8_scaled.safetensors"
OWN = "{own}"  # the file that the template names
VAE22 = "wan2.2_vae.safetensors"
TEMPLATES = {  # the models that take the place of the template's, high then low, and the VAE
    "text_to_video_wan": (PAIR.format("t2v"), VAE),
    "video_wan2_2_14B_t2v": (PAIR.format("t2v"), VAE),
    "video_wan2_2_14B_i2v": (PAIR.format("i2v"), VAE),
    "video_wan2_2_14B_flf2v": (PAIR.format("i2v"), VAE),
    "video_wan2_2_14B_fun_inpaint": (PAIR.format("i2v"), VAE),
    "video_wan2_2_14B_fun_control": (PAIR.format("fun_control"), VAE),
    "video_wan2_2_14B_fun_camera": (PAIR.format("fun_camera"), VAE),
    "video_wan2_2_14B_s2v": ("wan2.2_s2v_14B_fp8_scaled.safetensors", VAE),
    "video_wan2_2_5B_ti2v": (OWN, VAE22),
    "video_wan_vace_14B_ref2v": (PAIR.format("fun_vace"), VAE),
    "video_wan_vace_14B_v2v": (PAIR.format("fun_vace"), VAE),
    "video_wan_vace_flf2v": (PAIR.format("fun_vace"), VAE),
    "video_wan_vace_14B_t2v": (OWN, VAE),
    "video_wan_vace_outpainting": (OWN, VAE),
    "image_to_video_wan": (OWN, VAE),
    "wan2.1_flf2v_720_f16": (OWN, VAE),
    "wan2.1_fun_control": (OWN, VAE),
    "wan2.1_fun_inp": (OWN, VAE),
    "video_wan2.1_fun_camera_v1.1_1.3B": (OWN, VAE),
    "video_wan2_2_5B_fun_control": (OWN, VAE22),
    "video_wan2_2_5B_fun_inpaint": (OWN, VAE22),
    "03_video_wan2_2_14B_i2v_subgraphed": (PAIR.format("i2v"), VAE),
    "templates-6-key-frames": (PAIR.format("i2v"), VAE),
    "video_wan2.1_fun_camera_v1.1_14B": ("wan2.1_fun_camera_v1.1_1.3B_bf16.safetensors", VAE),
    "video_wan_ati": ("wan2.1_i2v_480p_14B_fp16.safetensors", VAE),
    "video_wanmove_480p": ("wan2.1_i2v_480p_14B_fp16.safetensors", VAE),
    "video_wan2.1_alpha_t2v_14B": (PAIR.format("t2v"), VAE),
}
NOT_RUN = {  # and why
    "gsl_starter_1_2": "asks a service on the internet",
    "templates_mjm_looped_restyler": "asks a service on the internet",
    "video_wan_vace_inpainting": "has SAM 3 draw its masks",
    "video_bernini_r_image_editing": "Bernini",
    "video_bernini_r_video_editing": "Bernini",
    "video_wan21_scail2_character_replacement": "SCAIL-2",
    "video_wan21_scail2_character_replacement_int8": "SCAIL-2",
    "video_wan2_1_infinitetalk": "InfiniteTalk",
    "video_wan_dancer": "WanDancer",
}
I2V_LORA = "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors"
S2V_LORA = family.Lora("fits_s2v.safetensors", "fits_s2v", family.S2V.name, 4, 41)
SIZE, LENGTH = 64, 9  # pixels, a multiple of 32 for the 5B; frames
MEDIA = {
    "LoadImage": ("image", "example.png"),
    "LoadVideo": ("file", "control.mp4"),
    "LoadAudio": ("audio", "voice.wav"),
}


def template(name: str) -> dict[str, Any]:
    assert PACKAGE is not None and PACKAGE.origin is not None
    return json.loads((Path(PACKAGE.origin).parent / "templates" / f"{name}.json").read_text(encoding="utf-8"))


def with_our_loaders(prompt: dict[str, Any], model: str, vae: str) -> int:
    """Puts our loaders in place of ComfyUI's; returns how many."""
    swapped = 0
    for node in prompt.values():
        kind, inputs = node["class_type"], node["inputs"]
        if kind == "UNETLoader":
            expert = "low" if "low_noise" in inputs["unet_name"] else "high"
            name = model.format(expert, own=inputs["unet_name"])
            node |= {
                "class_type": "WanCoreLoadDiffusionModel",
                "inputs": {"model_name": name, "weight_dtype": "default"},
            }
        elif kind == "CLIPLoader":
            node |= {"class_type": "WanCoreLoadTextEncoder", "inputs": {"text_encoder_name": TEXT_ENCODER}}
        elif kind == "VAELoader":
            node |= {"class_type": "WanCoreLoadVAE", "inputs": {"vae_name": vae}}
        elif kind == "AudioEncoderLoader":
            node |= {"class_type": "WanCoreLoadAudioEncoder", "inputs": dict(inputs)}
        elif kind == "CLIPVisionLoader":
            node |= {"class_type": "WanCoreLoadClipVision", "inputs": {"clip_name": family.CLIP_VISION.name}}
        else:
            continue
        swapped += 1
    return swapped


def shrink(prompt: dict[str, Any], lora: str) -> None:
    """A small clip in two steps, from the media and the LoRA that are there."""
    for node in prompt.values():
        inputs = node["inputs"]
        for name, value in (("width", SIZE), ("height", SIZE), ("length", LENGTH)):
            if name in inputs and node["class_type"] not in ("EmptyImage", "SolidMask"):
                inputs[name] = value
        if node["class_type"] in MEDIA:
            inputs.update([MEDIA[node["class_type"]]])
        if "lora_name" in inputs:
            inputs["lora_name"] = lora
        if node["class_type"] == "KSampler":
            inputs["steps"] = 2
        elif node["class_type"] == "KSamplerAdvanced":
            inputs["steps"] = 2
            begins = inputs["add_noise"] == "enable"
            inputs["start_at_step"], inputs["end_at_step"] = (0, 1) if begins else (1, 2)


def frames_of(path: Path) -> list[np.ndarray]:
    """Frames of a video, or of an animated picture."""
    if path.suffix == ".webp":
        with Image.open(path) as picture:
            return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)]
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module", autouse=True)
def files(base: Path) -> None:
    write_media(base)
    write_variants(base / "models")
    write(build_lora(S2V_LORA, dict(shapes_of(family.S2V))), base / "models" / "loras" / S2V_LORA.name, {})


@pytest.mark.parametrize("name", TEMPLATES)
def test_it_runs(client: Client, object_info: dict[str, Any], base: Path, name: str) -> None:
    prompt = to_prompt(template(name), object_info)
    model, vae = TEMPLATES[name]
    assert with_our_loaders(prompt, model, vae) >= 3
    lora = LORA_HIGH if "t2v" in model or "vace" in model else I2V_LORA
    shrink(prompt, S2V_LORA.name if "s2v" in model else lora)
    saved = [file for file in client.run(prompt).files() if file["filename"].endswith((".mp4", ".webp"))][-1]
    frames = frames_of(base / saved["type"] / saved["subfolder"] / saved["filename"])
    assert len(frames) >= LENGTH and frames[-1].std() > 0


def test_none_is_overlooked() -> None:
    """Every template of the package that loads a Wan model is run here, or it is said why not."""
    assert PACKAGE is not None and PACKAGE.origin is not None
    names = set()
    for file in (Path(PACKAGE.origin).parent / "templates").glob("*.json"):
        found = json.loads(file.read_text(encoding="utf-8"))
        graphs = [found, *found.get("definitions", {}).get("subgraphs", [])] if isinstance(found, dict) else []
        nodes = [node for graph in graphs for node in graph.get("nodes", []) if node["type"] == "UNETLoader"]
        if any("wan" in str(node.get("widgets_values")).lower() for node in nodes):
            names.add(file.stem)
    assert names <= TEMPLATES.keys() | NOT_RUN.keys()
