"""The Fun models: clips that follow a control video or a camera path, and clips with holes that are filled in."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core import geometry
from ..wan_core.camera import PATHS, camera_rays
from ..wan_core.control import cover_masks, masked_clip
from ..wan_core.errors import InputError
from ..wan_core.image_conditioning import cover, cover_lanczos
from ..wan_core.tasks import TI2V_5B
from .bridge import fun
from .bridge.images import start_latent, with_conditions
from .bridge.latents import grid_of
from .bridge.show import show_on_node
from .clip_inputs import (
    clip_for,
    clip_inputs,
    clip_outputs,
    end_input,
    frames_of_clip,
    prompt_inputs,
    start_input,
)
from .latents import frames_for, refusal
from .pictures import SIZES, ends, masks_of, pictures_of, rgb

CATEGORY = "WanCore/conditioning"
ANY_VAE = "The model's VAE: wan_2.1_vae for the A14B models, wan2.2_vae for the 5B."


class WanCoreFunControlToVideo(io.ComfyNode):
    """Conditioning and latent for Fun Control."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreFunControlToVideo",
            display_name="Wan Fun Control to Video",
            category=CATEGORY,
            description="Makes a clip with a Fun Control model: it follows poses, depth, edges or lines, shows who is "
            "on a reference picture, and starts or ends with a picture if you like.",
            search_aliases=["fun control", "control video", "canny", "depth", "pose", "openpose", "mlsd"],
            inputs=[
                *prompt_inputs(ANY_VAE),
                io.Image.Input(
                    "control_video",
                    tooltip="What the clip follows: poses, depth, edges or lines, one picture per frame. Cut to the "
                    "clip's size. Where it ends early the model makes up the rest.",
                ),
                io.Image.Input(
                    "ref_image", optional=True, tooltip="Who or what is to be seen. Cut to the clip's size."
                ),
                start_input(),
                end_input(),
                *clip_inputs("control_video"),
            ],
            outputs=clip_outputs("what the clip follows"),
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
        control_video: Any,
        size: str,
        seconds: float,
        length: int,
        batch_size: int,
        width: int,
        height: int,
        ref_image: Any = None,
        start_image: Any = None,
        end_image: Any = None,
    ) -> io.NodeOutput:
        grid = grid_of(vae)
        control_video, ref_image = rgb(control_video, "control_video"), rgb(ref_image, "ref_image")
        start_image, end_image = rgb(start_image, "start_image"), rgb(end_image, "end_image")
        frames = frames_of_clip(grid, seconds, length, control_video)
        clip = clip_for(grid, (size, width, height), frames, control_video)
        latent, chosen = clip.latent(batch_size), clip.size
        keyframes = ends(start_image, end_image, frames, chosen, fitted=False)
        pictures = fun.picture_channels(vae, latent["samples"], keyframes, frames)
        latent = _started(latent, vae, start_image, chosen)
        followed = control_video[: geometry.whole_frames(min(len(control_video), frames))]
        control = cover(pictures_of(followed), chosen, antialias=True).movedim(0, 1)[None]
        reference = None
        if ref_image is not None:
            reference = cover(pictures_of(ref_image[:1]), chosen, antialias=True).unsqueeze(2)
        positive, negative = fun.follow((positive, negative), vae, control, reference, pictures)
        show_on_node(cls.hidden.unique_id, clip.summary())
        return io.NodeOutput(positive, negative, latent)


class WanCoreFunCameraToVideo(io.ComfyNode):
    """Conditioning and latent for Fun Camera."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreFunCameraToVideo",
            display_name="Wan Fun Camera to Video",
            category=CATEGORY,
            description="Moves the camera through a picture with a Fun Camera model: along one of the paths below, or "
            "along one from a camera node.",
            search_aliases=["fun camera", "camera control", "camera motion", "pan", "zoom", "dolly", "trajectory"],
            inputs=[
                *prompt_inputs(ANY_VAE),
                start_input(),
                end_input(),
                io.WanCameraEmbedding.Input(
                    "camera_conditions",
                    optional=True,
                    tooltip="A path from a camera node, of this clip's size and length; it takes the place of "
                    "camera_pose and speed.",
                ),
                io.Combo.Input(
                    "camera_pose",
                    options=list(PATHS),
                    default="Zoom In",
                    tooltip="Where the camera goes. Pan moves it sideways, Zoom ahead or back; the last two turn it.",
                ),
                io.Float.Input(
                    "speed",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip="How far it goes in one clip, 0.2 to 3. The models were trained on calm paths.",
                ),
                *clip_inputs(),
            ],
            outputs=clip_outputs("the pictures and the camera's path"),
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
        camera_pose: str,
        speed: float,
        size: str,
        seconds: float,
        length: int,
        batch_size: int,
        width: int,
        height: int,
        start_image: Any = None,
        end_image: Any = None,
        camera_conditions: Any = None,
    ) -> io.NodeOutput:
        grid = grid_of(vae)
        start_image, end_image = rgb(start_image, "start_image"), rgb(end_image, "end_image")
        first = start_image if start_image is not None else end_image
        clip = clip_for(grid, (size, width, height), frames_for(grid, seconds, length), first)
        frames, chosen = clip.frames, clip.size
        if camera_conditions is None:
            rays = camera_rays(PATHS[camera_pose], speed, frames, chosen)
        else:
            rays = camera_conditions
            fun.check_rays(rays, frames, chosen)
        latent = clip.latent(batch_size)
        keyframes = ends(start_image, end_image, frames, chosen, fitted=size in geometry.ASPECT_SIZES)
        pictures = fun.picture_channels(vae, latent["samples"], keyframes, frames)
        latent = _started(latent, vae, start_image, chosen)
        positive, negative = with_conditions((positive, negative), {**pictures, fun.CAMERA: rays})
        show_on_node(cls.hidden.unique_id, clip.summary())
        return io.NodeOutput(positive, negative, latent)


class WanCoreInpaintToVideo(io.ComfyNode):
    """Conditioning and latent for Fun inpainting."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="WanCoreInpaintToVideo",
            display_name="Wan Fun Inpaint to Video",
            category=CATEGORY,
            description="Fills in what is missing with a Fun InP model: the frames between a first and a last "
            "picture, or what a mask opens in a video.",
            search_aliases=["fun inp", "inpaint", "fun inpaint", "mask video", "first last frame", "transition"],
            inputs=[
                *prompt_inputs(ANY_VAE),
                start_input(),
                end_input(),
                io.Image.Input("video", optional=True, tooltip="A video with something to replace; needs masks."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="White is made new, black keeps the video. One mask is that of every frame.",
                ),
                *clip_inputs("video"),
            ],
            outputs=clip_outputs("what is known of the clip"),
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
        video: Any = None,
        masks: Any = None,
    ) -> io.NodeOutput:
        grid = grid_of(vae)
        _check_video(video, masks)
        video, masks = rgb(video, "video"), masks_of(masks, "masks")
        start_image, end_image = rgb(start_image, "start_image"), rgb(end_image, "end_image")
        frames = frames_of_clip(grid, seconds, length, video)
        first = next((image for image in (video, start_image, end_image) if image is not None), None)
        clip = clip_for(grid, (size, width, height), frames, first)
        latent, chosen = clip.latent(batch_size), clip.size
        fitted = size in geometry.ASPECT_SIZES and video is None
        keyframes = ends(start_image, end_image, frames, chosen, fitted=fitted)
        if video is None:
            values = fun.picture_channels(vae, latent["samples"], keyframes, frames)
            positive, negative = with_conditions((positive, negative), values)
        else:
            pixels = cover(pictures_of(video[:frames]), chosen, antialias=True)
            masked = masked_clip(pixels, cover_masks(masks[:frames], chosen), keyframes, frames, chosen)
            positive, negative = fun.fill_holes((positive, negative), vae, masked)
        latent = _started(latent, vae, start_image, chosen)
        show_on_node(cls.hidden.unique_id, clip.summary())
        return io.NodeOutput(positive, negative, latent)


def _started(latent: dict[str, Any], vae: Any, start_image: Any, size: geometry.Size) -> dict[str, Any]:
    """The latent; the 5B models keep the first picture clean in it, as the plain 5B does."""
    if start_image is None or latent["samples"].shape[1] != TI2V_5B.latent_channels:
        return latent
    return start_latent(latent, vae, cover_lanczos(pictures_of(start_image[:1]), size))


def _check_video(video: Any, masks: Any) -> None:
    """Raises:
    InputError: one of the two is missing.
    """
    if (video is None) == (masks is None):
        return
    missing, given = ("video", "masks") if video is None else ("masks", "video")
    raise InputError(
        "A mask belongs to a video, and a video to inpaint to a mask",
        where=missing,
        found=f"{given} alone",
        remedy=f"Connect {missing}, or disconnect {given}",
    )


NODES = [WanCoreFunControlToVideo, WanCoreFunCameraToVideo, WanCoreInpaintToVideo]
