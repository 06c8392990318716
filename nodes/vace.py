"""VACE: clips that follow a control video, keep what a mask leaves, and show what is on reference pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core import geometry
from ..wan_core.control import cover_masks, masked_clip
from ..wan_core.image_conditioning import cover, on_white
from ..wan_core.tasks import VACE_21
from .bridge.latents import grid_for, with_references
from .bridge.show import show_on_node
from .bridge.vace import control_with
from .clip_inputs import clip_for, clip_inputs, clip_outputs, end_input, frames_of_clip, prompt_inputs, start_input
from .latents import refusal
from .pictures import SIZES, ends, masks_of, pictures_of, rgb


class WanCoreVaceToVideo(io.ComfyNode):
    """Conditioning and latent for VACE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreVaceToVideo",
            display_name="Wan VACE to Video",
            category="WanCore/conditioning",
            description="Makes a clip with VACE: it follows a control video, fills in what a mask opens, shows what is "
            "on reference pictures, and goes from a first picture to a last one; all of it at once if you like.",
            search_aliases=["vace", "control video", "inpaint video", "outpaint", "reference to video", "subject"],
            inputs=[
                *prompt_inputs("The Wan 2.1 VAE."),
                io.Image.Input(
                    "control_video",
                    optional=True,
                    tooltip="What the clip follows: poses, depth, edges, scribbles; or, with control_masks, the video "
                    "to change. Cut to the clip's size. Where it ends early the model makes up the rest.",
                ),
                io.Mask.Input(
                    "control_masks",
                    optional=True,
                    tooltip="White is made new, black keeps the control video. One mask is that of every frame; "
                    "frames without one are made new.",
                ),
                io.Image.Input(
                    "reference_image",
                    optional=True,
                    tooltip="Who or what is to be seen; several pictures for several subjects. Shown whole, on white.",
                ),
                start_input(),
                end_input(),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly the clip is held to all this. 1 as trained, 0.5 to 1.5 is useful, 0 is off.",
                ),
                *clip_inputs("control_video"),
            ],
            outputs=[
                *clip_outputs("what VACE reads"),
                io.Int.Output(
                    "trim_latent",
                    tooltip="Latent frames that stand in front for the reference pictures, for native TrimVideoLatent. "
                    "Wan VAE Decode leaves them out by itself.",
                ),
            ],
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
        strength: float,
        size: str,
        seconds: float,
        length: int,
        batch_size: int,
        width: int,
        height: int,
        control_video: Any = None,
        control_masks: Any = None,
        reference_image: Any = None,
        start_image: Any = None,
        end_image: Any = None,
    ) -> io.NodeOutput:
        grid = grid_for(vae, VACE_21, "VACE")
        control_video, control_masks = rgb(control_video, "control_video"), masks_of(control_masks, "control_masks")
        start_image, end_image = rgb(start_image, "start_image"), rgb(end_image, "end_image")
        reference_image = rgb(reference_image, "reference_image")
        frames = frames_of_clip(grid, seconds, length, control_video)
        first = next((image for image in (control_video, start_image, end_image) if image is not None), None)
        clip = clip_for(grid, (size, width, height), frames, first)
        chosen = clip.size
        video = None
        if control_video is not None:
            video = cover(pictures_of(control_video[:frames]), chosen, antialias=True)
        masks = None if control_masks is None else cover_masks(control_masks[:frames], chosen)
        fitted = size in geometry.ASPECT_SIZES and first is not control_video
        keyframes = ends(start_image, end_image, frames, chosen, fitted=fitted)
        masked = masked_clip(video, masks, keyframes, frames, chosen)
        references = () if reference_image is None else pictures_of(reference_image).split(1)
        shown = [on_white(picture, chosen) for picture in references]
        positive, negative = control_with((positive, negative), vae, masked, shown, strength)
        latent = with_references(clip.latent(batch_size), len(shown))
        show_on_node(cls.hidden.unique_id, clip.summary())
        return io.NodeOutput(positive, negative, latent, len(shown))


NODES = [WanCoreVaceToVideo]
