"""Whether a prompt's conditions and a latent are the model's: asked before anything is loaded, of any Wan MODEL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...wan_core.errors import InputError, WrongModelError
from ...wan_core.tasks import FLF2V_21, I2V_21, I2V_A14B
from .clip_vision import CLIP_OUTPUT
from .control_lora import input_shape
from .facts import ModelFacts
from .images import CONCAT_LATENT
from .latents import EMPTY_SIZES

MASK_CHANNELS = 4  # that stand beside a picture's latent


@dataclass(frozen=True)
class Condition:
    """Something that a conditioning node gives to some models only."""

    name: str  # in a CONDITIONING
    what: str
    modules: tuple[str, ...]  # a model that takes it has one of these
    models: str


CONDITIONS = (
    Condition("vace_frames", "a VACE control clip", ("vace_blocks",), "VACE 2.1 or VACE-Fun-A14B"),
    Condition("camera_conditions", "a camera path", ("control_adapter",), "Fun-A14B-Control-Camera"),
    Condition("audio_embed", "sound", ("casual_audio_encoder", "audio_proj"), "S2V-14B"),
    Condition("face_video_pixels", "a face video", ("face_adapter",), "Animate-14B"),
    Condition("pose_video_latent", "a pose video", ("face_adapter", "patch_embedding_pose"), "Animate-14B"),
)
FROM_PICTURES = (I2V_A14B.id, I2V_21.id, FLF2V_21.id)
PICTURES = {  # latents that stand beside the noise
    1: ("pictures beside the noise", "I2V-A14B, Fun-A14B-InP or Fun-A14B-Control-Camera"),
    2: ("a Fun Control clip", "Fun-A14B-Control or Fun-5B-Control"),
}


def check_conditions(model: Any, conditionings: Sequence[Any], *, title: str, where: str) -> None:
    """Makes sure that the MODEL takes what the conditionings hold; it would be left out in silence otherwise.

    Raises:
        WrongModelError: it takes no such thing, or pictures for another model.
    """
    network = model.model.diffusion_model
    for given in (values for conditioning in conditionings for _, values in conditioning):
        for condition in CONDITIONS:
            if given.get(condition.name) is not None and not any(hasattr(network, part) for part in condition.modules):
                raise _refusal(condition.what, condition.models, title, where)
        if given.get(CONCAT_LATENT) is not None:
            _check_pictures(model, given[CONCAT_LATENT].shape[1], title, where)


def _check_pictures(model: Any, given: int, title: str, where: str) -> None:
    """`given` channels of latents against those that the model takes beside the noise, with a mask or without."""
    network = model.model.diffusion_model
    beside = input_shape(model)[1] - network.out_dim
    if given not in (beside, beside - MASK_CHANNELS):
        what, models = PICTURES.get(given / network.out_dim, ("these pictures", "the model that they were made for"))
        raise _refusal(what, models, title, where)


def check_picture(facts: ModelFacts, conditionings: Sequence[Any]) -> None:
    """Makes sure that a model made to start from a picture gets one; without, it would draw for minutes from nothing.

    Fun InP, whose tensors are those of I2V, can do without: its name tells it apart.

    Raises:
        InputError: no conditioning holds a picture.
    """
    if facts.task.id not in FROM_PICTURES or "inp" in Path(facts.path or "").name.lower():
        return
    given = (values for conditioning in conditionings for _, values in conditioning)
    if any(values.get(name) is not None for values in given for name in (CONCAT_LATENT, CLIP_OUTPUT)):
        return
    raise InputError(
        f"{facts.task.title} starts from a picture, and gets none",
        where="positive",
        found="a prompt alone",
        expected="start_image on Wan Image to Video",
        remedy="Put that node before this one, or load a text to video model (Fun InP needs InP in its file's name)",
    )


def _refusal(what: str, models: str, title: str, where: str) -> WrongModelError:
    return WrongModelError(
        f"This model does not take {what}",
        where=where,
        found=title,
        expected=models,
        remedy="Load that model, or take the conditioning node of this one",
    )


def check_latent(latent: dict[str, Any], facts: ModelFacts) -> None:
    """Makes sure that the latent is one of this model's.

    Raises:
        InputError: its channels are another VAE's.
    """
    samples = latent["samples"]
    channels, wanted = samples.shape[1], facts.latent_channels
    blank = any(name in latent for name in EMPTY_SIZES) and torch.count_nonzero(samples) == 0
    if channels == wanted or blank:  # ComfyUI gives a blank latent the model's channels and size
        return
    vae = {16: "Wan 2.1 VAE", 48: "Wan 2.2 VAE"}
    raise InputError(
        "This latent does not fit the model",
        where="latent",
        found=f"{channels} channels" + (f", from the {vae[channels]}" if channels in vae else ""),
        expected=f"{wanted}, which {facts.task.title} takes",
        remedy=f"Make it with the {vae.get(wanted, 'VAE of the model')}",
    )
