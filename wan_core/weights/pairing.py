"""Checks that files belong together, by their headers: before anything large is read, naming both and the right one."""

from __future__ import annotations

import os

from ..errors import WrongModelError
from ..tasks import TASKS
from .downloads import with_address
from .families import (
    AUDIO_ENCODER,
    CLIP_VISION,
    DIFFUSION_MODEL,
    KIND_TITLES,
    LORA,
    TEXT_ENCODER,
    TINY_VAE,
    UNKNOWN,
    VAE,
)
from .inspect import Checkpoint
from .names import HIGH, LOW, partner_names
from .published import published_for
from .vocabulary import require_tokenizer
from .wholeness import check_blocks

# Published names. Source: huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged, split_files.
FOLDERS = {
    DIFFUSION_MODEL: "models/diffusion_models",
    TEXT_ENCODER: "models/text_encoders",
    VAE: "models/vae",
    LORA: "models/loras",
    AUDIO_ENCODER: "models/audio_encoders",
    CLIP_VISION: "models/clip_vision",
    TINY_VAE: "models/vae_approx",
}
VAE_FILES = {16: "wan_2.1_vae.safetensors", 48: "wan2.2_vae.safetensors"}
TINY_VAE_FILES = {"taew21": "lighttaew2_1.safetensors", "taew22": "lighttaew2_2.safetensors"}  # by family
TEXT_ENCODER_FILE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
KIND_FILES = {
    DIFFUSION_MODEL: f"a Wan 2.2 model, such as {with_address('wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors')}",
    TEXT_ENCODER: with_address(TEXT_ENCODER_FILE),
    VAE: f"{with_address(VAE_FILES[16])}, or {with_address(VAE_FILES[48])} for TI2V-5B",
    LORA: "a Wan LoRA",
    AUDIO_ENCODER: with_address("wav2vec2_large_english_fp16.safetensors"),
    CLIP_VISION: with_address("clip_vision_h.safetensors"),
    TINY_VAE: f"{with_address(TINY_VAE_FILES['taew21'])}, or {with_address(TINY_VAE_FILES['taew22'])} for TI2V-5B",
}


def place(kind: str, model: Checkpoint | None = None) -> str:
    """One sentence: which published file, of a VAE that which fits the model, belongs into which folder."""
    file = KIND_FILES[kind]
    if kind == VAE and model is not None and model.config is not None:
        name = VAE_FILES.get(model.config.out_dim)
        file = with_address(name) if name else "the VAE published with the model"
    return f"Take {file}, into {FOLDERS[kind]}"


def require_known(checkpoint: Checkpoint) -> None:
    """Raises:
    WrongModelError: the file is of no kind that takes part in a run, or as `require` says.
    WeightsFileError: as `require` says.
    """
    if checkpoint.kind != UNKNOWN:
        require(checkpoint, checkpoint.kind)
        return
    raise WrongModelError(
        "This file is no part of a Wan model",
        where=_path(checkpoint),
        found=f"tensors such as {min(checkpoint.header.tensors, default='none at all')[:60]!r}",
        expected=f"a {', '.join(KIND_TITLES[kind] for kind in FOLDERS)}",
        remedy=_instead(checkpoint),
    )


def require(checkpoint: Checkpoint, kind: str) -> None:
    """Raises:
    WrongModelError: the file is of another kind or of another family than Wan's, or tensors of its blocks are missing.
    WeightsFileError: it is a text encoder without a tokenizer.
    """
    wanted = KIND_TITLES[kind]
    if checkpoint.kind != kind:
        raise WrongModelError(
            f"This file is no {wanted}",
            where=_path(checkpoint),
            found=f"a {title_of(checkpoint)}",
            expected=f"a {wanted}",
            remedy=place(kind),
        )
    if kind == DIFFUSION_MODEL:
        _require_task(checkpoint)
    elif kind == TINY_VAE:
        _require_preview(checkpoint)
    elif kind == AUDIO_ENCODER and checkpoint.family.id != "wav2vec2":
        raise WrongModelError(
            "This audio encoder is not the one of Wan S2V",
            where=_path(checkpoint),
            found=f"a {checkpoint.family.title}",
            expected="wav2vec2",
            remedy=place(kind),
        )
    elif kind in (TEXT_ENCODER, VAE) and checkpoint.family.id not in ("umt5", "vae21", "vae22"):
        raise WrongModelError(
            f"This {wanted} is not Wan's",
            where=_path(checkpoint),
            found=f"a {checkpoint.family.title}",
            expected="UMT5" if kind == TEXT_ENCODER else "a Wan VAE",
            remedy=place(kind),
        )
    if kind in (DIFFUSION_MODEL, TEXT_ENCODER):
        packed = checkpoint.is_packed or checkpoint.precision == "packed"
        check_blocks(
            _path(checkpoint), kind, checkpoint.shapes, checkpoint.types, quantised=checkpoint.quantised, packed=packed
        )
    if kind == TEXT_ENCODER:
        require_tokenizer(checkpoint)


def _require_task(checkpoint: Checkpoint) -> None:
    if checkpoint.task is None:
        native = checkpoint.config is not None
        raise WrongModelError(
            "This pack has no model for this file",
            where=_path(checkpoint),
            found=f"a {checkpoint.family.title}",
            expected=f"one of {', '.join(task.title for task in TASKS.values())}",
            remedy="Open it with ComfyUI's Load Diffusion Model node" if native else _instead(checkpoint),
        )
    if checkpoint.precision == "packed" and checkpoint.quantised in ("", "unmarked"):
        raise WrongModelError(
            "The quantisation of this file is not one that the pack reads",
            where=_path(checkpoint),
            found=f"{checkpoint.precision} weights with scales and no mark of their format",
            remedy="Take the bf16, fp16 or fp8_scaled file of this model",
        )


def tiny_vae_name(checkpoint: Checkpoint) -> str:
    """What the name of a tiny VAE begins with where ComfyUI finds it for the live preview (comfy/latent_formats.py)."""
    return TINY_VAE_FILES[checkpoint.family.id].partition(".")[0]


def _require_preview(checkpoint: Checkpoint) -> None:
    """ComfyUI takes one of 16 channels in float16 for HunyuanVideo's, and scales latents as that wants them."""
    name = tiny_vae_name(checkpoint)
    takes_wrongly = checkpoint.family.id == "taew21" and checkpoint.types["decoder.1.weight"] == "F16"
    if checkpoint.name.startswith(name) and not takes_wrongly:
        return
    raise WrongModelError(
        "ComfyUI shows no live preview of Wan with this file",
        where=_path(checkpoint),
        found="float16, which it takes for HunyuanVideo's" if takes_wrongly else f"the name {checkpoint.name}",
        expected="float32 or bfloat16" if takes_wrongly else f"a name that begins with {name}",
        remedy=f"Take {with_address(TINY_VAE_FILES[checkpoint.family.id])}, into {FOLDERS[TINY_VAE]}",
    )


def check_pair(high: Checkpoint, low: Checkpoint) -> None:
    """Checks the two experts of one model.

    Raises:
        WrongModelError: same file, same expert twice, swapped, or models that differ in task or size.
    """
    if os.path.realpath(high.path) == os.path.realpath(low.path):
        _refuse_pair(high, low, "the same file twice", "the two experts of one model")
    if high.family.id != low.family.id or high.config != low.config:
        _refuse_pair(high, low, f"{_sized(high)} and {_sized(low)}", "two experts of one model")
    if high.expert == LOW and low.expert == HIGH:
        _refuse_pair(high, low, "a low-noise model as high and a high-noise model as low", "them the other way round")
    if high.expert is not None and high.expert == low.expert:
        _refuse_pair(high, low, f"two {high.expert}-noise models", "one high-noise and one low-noise model")


def check_vae(model: Checkpoint, vae: Checkpoint) -> None:
    """Raises:
    WrongModelError: the VAE makes latents with another number of channels than the model takes.
    """
    assert model.config is not None
    channels = model.config.out_dim
    if vae.width != channels:
        raise WrongModelError(
            "This VAE does not fit the model",
            where=_path(vae),
            found=f"{vae.width} latent channels, {model.name} takes {channels}",
            remedy=place(VAE, model),
        )


def check_text_encoder(model: Checkpoint, text_encoder: Checkpoint) -> None:
    """Raises:
    WrongModelError: the text encoder's embedding is not as wide as the model's text input.
    """
    assert model.config is not None
    if text_encoder.width != model.config.text_dim:
        raise WrongModelError(
            "This text encoder does not fit the model",
            where=_path(text_encoder),
            found=f"embeddings of width {text_encoder.width}, {model.name} takes {model.config.text_dim}",
            remedy=place(TEXT_ENCODER),
        )


def _refuse_pair(high: Checkpoint, low: Checkpoint, found: str, expected: str) -> None:
    names = partner_names(high.name) if high.expert != LOW else ()
    raise WrongModelError(
        "These two models are no pair",
        where=f"{_path(high)} as high, {_path(low)} as low",
        found=found,
        expected=expected,
        remedy=f"Take {names[0]} as low" if names else "Take the high-noise and the low-noise file of one release",
    )


def _instead(checkpoint: Checkpoint) -> str:
    """What to take in the place of a file that runs nowhere, by what the names of folder and file say."""
    file, folder = published_for(checkpoint.path)
    return f"Take {with_address(file)}, into {folder}" if file else place(DIFFUSION_MODEL)


def _path(checkpoint: Checkpoint) -> str:
    return repr(str(checkpoint.path))


def title_of(checkpoint: Checkpoint) -> str:
    """What a file is, in words, its kind among them."""
    title = checkpoint.family.title
    return title if KIND_TITLES[checkpoint.kind] in title else f"{title} ({KIND_TITLES[checkpoint.kind]})"


def _sized(checkpoint: Checkpoint) -> str:
    assert checkpoint.config is not None
    return f"{checkpoint.family.title} (width {checkpoint.config.dim}, {checkpoint.config.num_layers} layers)"
