"""Empty LATENT dictionaries, made for a VAE.

A LATENT of this pack carries `wan_frame_rate`, in frames per second, beside `samples`; native samplers hand it on.
Where latent frames stand in front that are no part of the clip (VACE's references), `wan_references` says how many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch

from ...wan_core import geometry
from ...wan_core.errors import WrongModelError
from ...wan_core.tasks import T2V_A14B, TI2V_5B, Task
from ...wan_core.weights.pairing import VAE_FILES

EMPTY_SIZES = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # of native empty latents for any model
FRAME_RATE = "wan_frame_rate"
REFERENCES = "wan_references"  # (latent frames in front of the clip, all latent frames)
LATENT_FORMATS = {16: comfy.latent_formats.Wan21, 48: comfy.latent_formats.Wan22}  # by channels
NETWORKS = "comfy.ldm."  # where the native networks are, each family in a package of its own
_TASK_OF_CHANNELS = {task.latent_channels: task for task in (T2V_A14B, TI2V_5B)}


@dataclass(frozen=True)
class LatentGrid:
    """What a VAE makes of pixels: channels, pixels per latent row or column, frame rate and clip of its models."""

    channels: int
    compression: int
    frame_rate: int  # frames per second
    frames: int  # official length of a clip

    @property
    def multiple(self) -> int:
        """Pixels: width and height are multiples of it."""
        return self.compression * geometry.PATCH


def grid_of(vae: Any) -> LatentGrid:
    """Reads the latent grid from a VAE object, ours or the native one.

    Raises:
        WrongModelError: it is no VAE of the Wan family.
    """
    channels = getattr(vae, "latent_channels", None)
    task = _TASK_OF_CHANNELS.get(channels or 0)
    if task is None or vae.latent_dim != 3 or vae.temporal_compression_decode() != geometry.FRAME_STRIDE:
        found = "no VAE" if vae is None else f"latents of {channels} channels and {vae.latent_dim} dimensions"
        raise _not_wan(found, "16 or 48 channels and 3 dimensions")
    if network := _other_network(vae):
        raise _not_wan(network, "a Wan VAE; its latents have the same shape and other values")
    return LatentGrid(task.latent_channels, int(vae.spacial_compression_decode()), task.frame_rate, task.frames)


def _other_network(vae: Any) -> str:
    """Name of a native VAE's network of another family, as HunyuanVideo's, whose latents have the shape of Wan's."""
    network = type(vae.first_stage_model)
    is_other = network.__module__.startswith(NETWORKS) and not network.__module__.startswith(f"{NETWORKS}wan.")
    return network.__qualname__ if is_other else ""


def _not_wan(found: str, expected: str) -> WrongModelError:
    return WrongModelError(
        "This is not a VAE of the Wan family",
        where="vae",
        found=found,
        expected=expected,
        remedy=f"Load {VAE_FILES[16]} for the 14B models or {VAE_FILES[48]} for the 5B",
    )


def grid_for(vae: Any, task: Task, what: str) -> LatentGrid:
    """As grid_of, for a node whose models all take latents of one kind, those of `task`.

    Raises:
        WrongModelError: the VAE makes others.
    """
    grid = grid_of(vae)
    if grid.channels != task.latent_channels:
        raise WrongModelError(
            f"This VAE does not fit {what}",
            where="vae",
            found=f"{grid.channels} latent channels",
            expected=f"{task.latent_channels}",
            remedy=f"Load {VAE_FILES[task.latent_channels]}",
        )
    return grid


def empty_latent(grid: LatentGrid, size: geometry.Size, frames: int, batch: int) -> dict[str, Any]:
    """Returns a LATENT of zeros [batch, channels, latent frames, rows, columns] for `frames` frames of `size`."""
    width, height = size
    shape = [
        batch,
        grid.channels,
        geometry.latent_frames(frames),
        height // grid.compression,
        width // grid.compression,
    ]
    return {
        "samples": torch.zeros(shape, device=comfy.model_management.intermediate_device()),
        "downscale_ratio_spacial": grid.compression,  # native hints: a sampler resizes an empty latent of another VAE
        "downscale_ratio_temporal": geometry.FRAME_STRIDE,
        FRAME_RATE: grid.frame_rate,
    }


def with_references(latent: dict[str, Any], count: int) -> dict[str, Any]:
    """The empty LATENT with `count` more latent frames in front, which Wan VAE Decode leaves out."""
    if not count:
        return latent
    samples = latent["samples"]
    batch, channels, frames, rows, columns = samples.shape
    longer = samples.new_zeros(batch, channels, frames + count, rows, columns)
    return {**latent, "samples": longer, REFERENCES: (count, frames + count)}


def without_references(latent: dict[str, Any]) -> torch.Tensor:
    """The clip's own latent frames; a LATENT that was trimmed by another node is taken as it is."""
    count, whole = latent.get(REFERENCES) or (0, 0)
    samples = latent["samples"]
    return samples[:, :, count:] if count and samples.ndim == 5 and samples.shape[2] == whole else samples
