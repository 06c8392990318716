"""Clips that pass through any number of pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core import geometry
from ..wan_core.image_conditioning import Keyframe, cover, stretch
from ..wan_core.keyframes import parse_frames, parse_strengths
from ..wan_core.tasks import I2V_A14B
from .bridge.images import condition_on
from .bridge.latents import grid_for
from .bridge.show import show_on_node
from .clip_inputs import clip_for, clip_inputs, clip_outputs, prompt_inputs
from .latents import frames_for, refusal
from .pictures import SIZES, pictures_of, rgb

MOST = 32  # pictures that can be connected


class WanCoreKeyframesToVideo(io.ComfyNode):
    """Conditioning and latent for a clip with pictures at chosen frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        picture = io.Image.Input("image", tooltip="A picture, or several that follow each other frame by frame.")
        return io.Schema(
            node_id="WanCoreKeyframesToVideo",
            display_name="Wan Keyframes to Video",
            category="WanCore/conditioning",
            description="Makes a clip that passes through pictures at the frames that you choose, each as strictly as "
            "you like. For I2V-A14B and Fun InP.",
            search_aliases=["keyframes", "first middle last frame", "multi image", "storyboard", "guide frames"],
            inputs=[
                *prompt_inputs("The Wan 2.1 VAE."),
                io.String.Input(
                    "frames",
                    default="",
                    tooltip='The frame of each picture, from 0: "0, 40, -1" is the first, the middle and the last of '
                    "81. Empty spreads them evenly.",
                ),
                io.String.Input(
                    "strengths",
                    default="1",
                    tooltip='How strictly each picture holds, 0 to 1: "1, 0.6, 1", or one number for all. The models '
                    "were trained with 1; 0.5 to 0.9 lets the motion pass more freely.",
                ),
                *clip_inputs(),
                io.Autogrow.Input(
                    "images",
                    template=io.Autogrow.TemplatePrefix(picture, prefix="image", min=1, max=MOST),
                    tooltip="The pictures in the order of frames; a new socket appears when the last one is used.",
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
        frames: str,
        strengths: str,
        size: str,
        seconds: float,
        length: int,
        batch_size: int,
        width: int,
        height: int,
        images: dict[str, Any],
    ) -> io.NodeOutput:
        grid = grid_for(vae, I2V_A14B, "keyframes")
        count = frames_for(grid, seconds, length)
        given = [rgb(image, name) for name, image in images.items() if image is not None]
        places, holds = parse_frames(frames, len(given), count), parse_strengths(strengths, len(given))
        clip = clip_for(grid, (size, width, height), count, given[0])
        keyframes = []
        for number, (image, place, strength) in enumerate(zip(given, places, holds, strict=True)):
            fit = stretch if number == 0 and size in geometry.ASPECT_SIZES else cover  # the size is the first one's
            keyframes.append(Keyframe(place, fit(pictures_of(image), clip.size), strength, where="frames"))
        positive, negative = condition_on((positive, negative), vae, keyframes, count, clip.size)
        show_on_node(cls.hidden.unique_id, clip.summary())
        return io.NodeOutput(positive, negative, clip.latent(batch_size))


NODES = [WanCoreKeyframesToVideo]
