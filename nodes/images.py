"""Clips that start from a picture, end with one, or pass through several."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core import geometry
from ..wan_core.errors import InputError
from ..wan_core.image_conditioning import cover_lanczos
from ..wan_core.tasks import TI2V_5B
from .bridge.clip_vision import with_features
from .bridge.images import condition_on, start_latent
from .bridge.latents import LatentGrid, grid_of
from .bridge.show import show_on_node
from .clip_inputs import clip_for, clip_inputs, clip_outputs, end_input, prompt_inputs, start_input
from .latents import frames_for, refusal
from .pictures import SIZES, ends, pictures_of, rgb


class WanCoreImageToVideo(io.ComfyNode):
    """Conditioning and latent for a clip made from one or two pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreImageToVideo",
            display_name="Wan Image to Video",
            category="WanCore/conditioning",
            description="Makes a clip start from a picture, end with one, or both, and sets its size and length.",
            search_aliases=["i2v", "first last frame", "flf2v", "ti2v", "start image", "end image", "animate image"],
            inputs=[
                *prompt_inputs("The model's VAE: wan_2.1_vae for I2V-A14B, wan2.2_vae for TI2V-5B."),
                start_input(" The 5B makes a clip from text alone without it."),
                end_input(" Not for the 5B."),
                *clip_inputs(),
                io.ClipVisionOutput.Input(
                    "clip_vision_start_image",
                    optional=True,
                    tooltip="For Wan 2.1 models: start_image through CLIP Vision Encode, with crop none.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_end_image",
                    optional=True,
                    tooltip="For Wan 2.1 FLF2V: end_image through CLIP Vision Encode, with crop none.",
                ),
            ],
            outputs=clip_outputs("the pictures"),
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # else one of two equal nodes would stay without its text
        )

    @classmethod
    def validate_inputs(cls, size: str | None, length: int | None, width: int | None, height: int | None) -> bool | str:
        return refusal(SIZES, size, width, height, length)

    @classmethod
    def execute(
        cls,
        positive: Any,
        negative: Any,
        vae: Any,
        size: str,
        seconds: float,
        length: int,
        batch_size: int,
        width: int,
        height: int,
        start_image: Any = None,
        end_image: Any = None,
        clip_vision_start_image: Any = None,
        clip_vision_end_image: Any = None,
    ) -> io.NodeOutput:
        grid = grid_of(vae)
        start_image, end_image = rgb(start_image, "start_image"), rgb(end_image, "end_image")
        _check_pictures(grid, start_image, end_image)
        picture = start_image if start_image is not None else end_image
        clip = clip_for(grid, (size, width, height), frames_for(grid, seconds, length), picture)
        latent, chosen, frames = clip.latent(batch_size), clip.size, clip.frames
        if grid.channels == TI2V_5B.latent_channels:
            if start_image is not None:
                pictures = cover_lanczos(
                    pictures_of(start_image[: geometry.whole_frames(min(len(start_image), frames))]), chosen
                )
                latent = start_latent(latent, vae, pictures)
        else:
            keyframes = ends(start_image, end_image, frames, chosen, fitted=size in geometry.ASPECT_SIZES)
            positive, negative = condition_on((positive, negative), vae, keyframes, frames, chosen)
        seen = [output for output in (clip_vision_start_image, clip_vision_end_image) if output is not None]
        positive, negative = with_features((positive, negative), seen)
        show_on_node(cls.hidden.unique_id, clip.summary())
        return io.NodeOutput(positive, negative, latent)


def _check_pictures(grid: LatentGrid, start_image: Any, end_image: Any) -> None:
    """Raises:
    InputError: pictures that the models of this VAE need are missing, or there are some that they do not take.
    """
    if grid.channels == TI2V_5B.latent_channels and end_image is not None:
        raise InputError(
            "The 5B model takes no last picture",
            where="end_image",
            found="a picture, and the VAE of TI2V-5B",
            remedy="Disconnect end_image, or take I2V-A14B with wan_2.1_vae.safetensors",
        )
    if grid.channels != TI2V_5B.latent_channels and start_image is None and end_image is None:
        raise InputError(
            "There is no picture to make a clip from",
            where="start_image",
            remedy="Connect start_image or end_image; for text alone take Wan Text to Video and a T2V model",
        )


NODES = [WanCoreImageToVideo]
