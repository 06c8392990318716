"""Animate: a person on a picture moves as somebody in a video does, or takes that somebody's place."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core.animation import CLIP_FRAMES, OVERLAP, OVERLAPS, plan_clips
from ..wan_core.errors import InputError
from ..wan_core.geometry import LONGEST
from ..wan_core.tasks import ANIMATE_14B
from .bridge.animate import Driving, animate_to_video, frames_of_driving, reference_picture
from .bridge.clip_vision import features_for
from .bridge.clips import CLIPS
from .bridge.latents import grid_for
from .bridge.show import show_on_node
from .clip_inputs import clip_outputs, prompt_inputs
from .latents import refusal, size_inputs
from .pictures import SIZES, masks_of, rgb, size_for


class WanCoreAnimateToVideo(io.ComfyNode):
    """A person who follows a driving video of any length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size, width, height = size_inputs(SIZES, next(iter(SIZES)))
        return io.Schema(
            node_id="WanCoreAnimateToVideo",
            display_name="Wan Animate to Video",
            category="WanCore/conditioning",
            description="Makes the person on a picture move and look as somebody in a video does, for as long as it "
            "lasts; or puts the person into that video in place of the other.",
            search_aliases=["animate", "motion transfer", "character replacement", "pose video", "face video"],
            inputs=[
                *prompt_inputs("The Wan 2.1 VAE."),
                io.Image.Input("reference_image", tooltip="Who is seen. Shown to the model whole, on black."),
                io.Image.Input(
                    "pose_video",
                    tooltip="Skeletons of the driving video, 30 frames per second. Cut to the clip's size.",
                ),
                io.Image.Input(
                    "face_video",
                    optional=True,
                    tooltip="The face of the driving video cut out, square, frame by frame: expression and lips follow "
                    "it. Without it the face is the model's own idea.",
                ),
                io.Image.Input(
                    "background_video",
                    optional=True,
                    tooltip="Replacement: the driving video with the person painted black, frame by frame, or one "
                    "picture. With character_mask.",
                ),
                io.Mask.Input(
                    "character_mask",
                    optional=True,
                    tooltip="Replacement: white where the new person may be, frame by frame, or one mask. With "
                    "background_video.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="CLIP ViT-H, from Wan Load CLIP Vision: it sees the reference as the model does.",
                ),
                io.ClipVisionOutput.Input(
                    "clip_vision_output",
                    optional=True,
                    tooltip="Features of the reference from CLIP Vision Encode, in place of clip_vision.",
                ),
                size,
                io.Float.Input(
                    "seconds",
                    default=0.0,
                    min=0.0,
                    max=3600.0,
                    step=0.25,
                    tooltip="Duration in seconds at 30 frames per second. 0 takes the whole driving video.",
                ),
                io.Int.Input(
                    "clip_frames",
                    default=CLIP_FRAMES,
                    min=9,
                    max=LONGEST,
                    step=4,
                    advanced=True,
                    tooltip="Frames that are sampled at once, 4n+1. 77 is best; fewer take less memory.",
                ),
                io.Int.Input(
                    "overlap",
                    default=OVERLAP,
                    min=OVERLAPS[0],
                    max=OVERLAPS[-1],
                    step=OVERLAPS[-1] - OVERLAPS[0],
                    advanced=True,
                    tooltip="Frames of the clip before that a clip goes on from: 1, or 5 to carry motion over.",
                ),
                width,
                height,
            ],
            outputs=clip_outputs("the driving video"),
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # else one of two equal nodes would stay without its text
        )

    @classmethod
    def validate_inputs(
        cls, size: str | None, width: int | None, height: int | None, clip_frames: int | None, overlap: int | None
    ) -> bool | str:
        try:
            plan_clips(1, clip_frames or CLIP_FRAMES, overlap or OVERLAP)
        except InputError as error:
            return str(error)
        return refusal(SIZES, size, width, height)

    @classmethod
    def execute(
        cls,
        positive: Any,
        negative: Any,
        vae: Any,
        reference_image: Any,
        pose_video: Any,
        size: str,
        seconds: float,
        clip_frames: int,
        overlap: int,
        width: int,
        height: int,
        face_video: Any = None,
        background_video: Any = None,
        character_mask: Any = None,
        clip_vision: Any = None,
        clip_vision_output: Any = None,
    ) -> io.NodeOutput:
        grid = grid_for(vae, ANIMATE_14B, "Animate")
        pose_video = rgb(pose_video, "pose_video")
        driving = Driving(
            pose_video,
            rgb(face_video, "face_video"),
            rgb(background_video, "background_video"),
            masks_of(character_mask, "character_mask"),
        )
        driving.check()
        chosen = size_for(size, (width, height), grid, pose_video)
        frames = frames_of_driving(driving, seconds)
        picture = reference_picture(rgb(reference_image, "reference_image"), chosen)
        positive, negative, latent = animate_to_video(
            (positive, negative),
            vae,
            grid,
            picture,
            driving,
            features_for(clip_vision, clip_vision_output, picture),
            size=chosen,
            frames=frames,
            clip_frames=clip_frames,
            overlap=overlap,
        )
        clips, rate = len(latent[CLIPS].clips), ANIMATE_14B.frame_rate
        parts = f"{clips} clip{'s' * (clips != 1)}"
        show_on_node(
            cls.hidden.unique_id,
            f"{chosen[0]}x{chosen[1]}, {frames} frames in {parts}, {frames / rate:.2f} s at {rate} fps",
        )
        return io.NodeOutput(positive, negative, latent)


NODES = [WanCoreAnimateToVideo]
