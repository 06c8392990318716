"""The prompts: a bundled workflow as it is but for files, size and steps, and the same out of native nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .cases import VAE22, Clip, Model

Prompt = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
PICTURE = "bench.png"
WORDS = "A lighthouse on a cliff in a storm, waves break over the rocks, the camera circles slowly"
NEGATIVE = "static, blurred details, subtitles, still picture"
SHIFT, SAMPLER, SCHEDULER = 5.0, "euler", "simple"


def ours(model: Model, clip: Clip, prefix: str) -> Prompt:
    """The bundled workflow; its LoRA node is bypassed, and its few steps without guidance are set by hand."""
    prompt: Prompt = json.loads((ROOT / "workflows" / "api" / f"{model.template}.json").read_text(encoding="utf-8"))
    loader = _of(prompt, "WanCoreLoadModels")
    for lora in [name for name, node in prompt.items() if node["class_type"] == "WanCoreLoraPair"]:
        inputs = prompt.pop(lora)["inputs"]
        for node in prompt.values():
            for name, value in node["inputs"].items():
                if isinstance(value, list) and value[0] == lora:
                    node["inputs"][name] = inputs["low" if value[1] else "high"]
    high, low = (*model.files, "none")[:2]
    loader["inputs"] |= {"model": high, "low_model": low, "text_encoder": model.text_encoder, "vae": model.vae}
    _of(prompt, "WanCoreTextEncode")["inputs"]["prompt"] = WORDS
    for kind in ("WanCoreTextToVideo", "WanCoreImageToVideo"):
        for node in _all(prompt, kind):
            node["inputs"] |= {"size": "custom", "width": clip.width, "height": clip.height, "length": clip.frames}
    for node in _all(prompt, "LoadImage"):
        node["inputs"]["image"] = PICTURE
    sampler = _of(prompt, "WanCoreKSampler")["inputs"]
    sampler |= {"preset": "official", "steps": clip.steps, "cfg_high": clip.cfg, "cfg_low": clip.cfg, "shift": SHIFT}
    sampler |= {"sampler_name": SAMPLER, "scheduler": SCHEDULER, "boundary": clip.steps // 2 if low != "none" else 0}
    _of(prompt, "WanCoreSaveVideo")["inputs"]["filename_prefix"] = prefix
    return prompt


def ours_in_8_bits(model: Model, clip: Clip, prefix: str) -> Prompt:
    """The same with the node Wan 8-bit Attention before the sampler."""
    prompt = ours(model, clip, prefix)
    sampler = _of(prompt, "WanCoreKSampler")["inputs"]
    experts = [name for name in ("high", "low") if name in sampler]
    prompt["attention"] = _node("WanCoreAttention8", **{name: sampler[name] for name in experts})
    sampler |= {name: ["attention", index] for index, name in enumerate(experts)}
    return prompt


def native(model: Model, clip: Clip, prefix: str) -> Prompt:
    """ComfyUI's own template of the task, node by node."""
    size = {"width": clip.width, "height": clip.height, "length": clip.frames, "batch_size": 1}
    prompt: Prompt = {
        "clip": _node("CLIPLoader", clip_name=model.text_encoder, type="wan", device="default"),
        "vae": _node("VAELoader", vae_name=model.vae),
        "positive": _node("CLIPTextEncode", clip=["clip", 0], text=WORDS),
        "negative": _node("CLIPTextEncode", clip=["clip", 0], text=NEGATIVE),
    }
    positive, negative, latent = ["positive", 0], ["negative", 0], ["latent", 0]
    if model.has_picture:
        prompt["picture"] = _node("LoadImage", image=PICTURE)
        given = {"positive": positive, "negative": negative, "vae": ["vae", 0], "start_image": ["picture", 0]}
        prompt["latent"] = _node("WanImageToVideo", **given, **size)
        positive, negative, latent = ["latent", 0], ["latent", 1], ["latent", 2]
    elif model.vae == VAE22:
        prompt["latent"] = _node("Wan22ImageToVideoLatent", vae=["vae", 0], **size)
    else:
        prompt["latent"] = _node("EmptyHunyuanLatentVideo", **size)
    half = clip.steps // 2 if len(model.files) > 1 else clip.steps
    for number, file in enumerate(model.files):
        prompt[f"model{number}"] = _node("UNETLoader", unet_name=file, weight_dtype="default")
        prompt[f"shift{number}"] = _node("ModelSamplingSD3", model=[f"model{number}", 0], shift=SHIFT)
        first, last = (0, half) if number == 0 else (half, 10000)
        prompt[f"sampler{number}"] = _node(
            "KSamplerAdvanced",
            model=[f"shift{number}", 0],
            positive=positive,
            negative=negative,
            latent_image=latent,
            add_noise="enable" if number == 0 else "disable",
            noise_seed=42,
            steps=clip.steps,
            cfg=clip.cfg,
            sampler_name=SAMPLER,
            scheduler=SCHEDULER,
            start_at_step=first,
            end_at_step=last if len(model.files) > 1 else 10000,
            return_with_leftover_noise="enable" if number + 1 < len(model.files) else "disable",
        )
        latent = [f"sampler{number}", 0]
    prompt["decode"] = _node("VAEDecode", samples=latent, vae=["vae", 0])
    prompt["video"] = _node("CreateVideo", images=["decode", 0], fps=24 if model.vae == VAE22 else 16)
    prompt["save"] = _node("SaveVideo", video=["video", 0], filename_prefix=prefix, format="mp4", codec="h264")
    return prompt


def reseeded(prompt: Prompt, seed: int) -> Prompt:
    """The prompt with another seed and text, so that a second run computes everything but the loading again."""
    again: Prompt = json.loads(json.dumps(prompt))
    for node in again.values():
        for name in ("seed", "noise_seed"):
            if name in node["inputs"]:
                node["inputs"][name] = seed
        for name in ("prompt", "text"):
            if name in node["inputs"]:
                node["inputs"][name] += f" {seed}"
    return again


def _node(kind: str, **inputs: Any) -> Prompt:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": kind}}


def _all(prompt: Prompt, kind: str) -> list[Prompt]:
    return [node for node in prompt.values() if node["class_type"] == kind]


def _of(prompt: Prompt, kind: str) -> Prompt:
    return _all(prompt, kind)[0]
