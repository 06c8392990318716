"""Empty latents: the size and length of what will be sampled."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core import geometry
from ..wan_core.errors import InputError
from .bridge.latents import LatentGrid, empty_latent, grid_of
from .bridge.show import show_on_node

STEP = 16  # pixels; what every Wan model takes, the 5B takes every second of them


def size_inputs(sizes: dict[str, geometry.Size], default: str) -> tuple[io.Input, io.Input, io.Input]:
    """Returns the size choice and the two widgets that it reads when it is custom."""
    width, height = sizes[default]

    def side(name: str, value: int) -> io.Input:
        return io.Int.Input(
            name,
            default=value,
            min=STEP,
            max=geometry.LARGEST_SIDE,
            step=STEP,
            advanced=True,
            tooltip=f"Pixels, used when size is custom: a multiple of 16 for the 14B models, of 32 for the 5B. "
            f"Useful from 256 to 1280; time and memory grow with {name}.",
        )

    choice = io.Combo.Input(
        "size",
        options=[*sizes, geometry.CUSTOM],
        default=default,
        tooltip="Width x height in pixels. The 5B model gets the nearest size that it takes, 1280x704 for 1280x720. "
        "custom reads width and height.",
    )
    return choice, side("width", width), side("height", height)


def seconds_input() -> io.Input:
    """Returns the widget of a clip's duration."""
    return io.Float.Input(
        "seconds",
        default=5.0,
        min=0.0,
        max=600.0,
        step=0.25,
        tooltip="Duration in seconds at the model's frame rate: 16 for 14B, 24 for the 5B. The models were "
        "trained on 5; longer clips tend to repeat themselves. Takes the nearest length of 4n+1 frames.",
    )


def length_input() -> io.Input:
    """Returns the widget of a clip's length in frames."""
    return io.Int.Input(
        "length",
        default=0,
        min=0,
        max=geometry.LONGEST,
        advanced=True,
        tooltip="Frames, 4n+1: 81 is 5 seconds for 14B, 121 for the 5B. 0 takes it from seconds.",
    )


def batch_input(what: str) -> io.Input:
    """Returns the widget of the batch size."""
    return io.Int.Input(
        "batch_size",
        default=1,
        min=1,
        max=64,
        tooltip=f"How many {what} are made at once, each from its own noise. Memory grows with it.",
    )


class WanCoreTextToVideo(io.ComfyNode):
    """An empty latent for a clip."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size, width, height = size_inputs(geometry.VIDEO_SIZES, next(iter(geometry.VIDEO_SIZES)))
        return io.Schema(
            node_id="WanCoreTextToVideo",
            display_name="Wan Text to Video",
            category="WanCore/latent",
            description="Sets the size and length of a clip made from text alone.",
            search_aliases=["empty latent", "empty wan latent", "video size", "video length"],
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE: it decides the latent's channels and the frame rate."),
                size,
                seconds_input(),
                length_input(),
                batch_input("clips"),
                width,
                height,
            ],
            outputs=[io.Latent.Output("latent", tooltip="Empty latent that knows its frame rate, for a sampler.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,  # else one of two equal nodes would stay without its text
        )

    @classmethod
    def validate_inputs(cls, size: str | None, length: int | None, width: int | None, height: int | None) -> bool | str:
        return refusal(geometry.VIDEO_SIZES, size, width, height, length)

    @classmethod
    def execute(
        cls, vae: Any, size: str, seconds: float, length: int, batch_size: int, width: int, height: int
    ) -> io.NodeOutput:
        grid = grid_of(vae)
        frames = frames_for(grid, seconds, length)
        chosen = geometry.choose_size(geometry.VIDEO_SIZES, size, (width, height), grid.multiple)
        show_on_node(cls.hidden.unique_id, summary(grid, chosen, frames))
        return io.NodeOutput(empty_latent(grid, chosen, frames, batch_size))


class WanCoreTextToImage(io.ComfyNode):
    """An empty latent for one picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        size, width, height = size_inputs(geometry.IMAGE_SIZES, next(iter(geometry.IMAGE_SIZES)))
        return io.Schema(
            node_id="WanCoreTextToImage",
            display_name="Wan Text to Image",
            category="WanCore/latent",
            description="Sets the size of a picture: a clip of one frame, made from text alone.",
            search_aliases=["empty latent", "image size", "single frame"],
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE: it decides the latent's channels."),
                size,
                batch_input("pictures"),
                width,
                height,
            ],
            outputs=[io.Latent.Output("latent", tooltip="Empty latent of one frame, for a sampler.")],
            hidden=[io.Hidden.unique_id],
            not_idempotent=True,
        )

    @classmethod
    def validate_inputs(cls, size: str | None, width: int | None, height: int | None) -> bool | str:
        return refusal(geometry.IMAGE_SIZES, size, width, height)

    @classmethod
    def execute(cls, vae: Any, size: str, batch_size: int, width: int, height: int) -> io.NodeOutput:
        grid = grid_of(vae)
        chosen = geometry.choose_size(geometry.IMAGE_SIZES, size, (width, height), grid.multiple)
        show_on_node(cls.hidden.unique_id, f"{chosen[0]}x{chosen[1]}")
        return io.NodeOutput(empty_latent(grid, chosen, 1, batch_size))


def frames_for(grid: LatentGrid, seconds: float, length: int) -> int:
    """Returns `length` where it is given, else the frames of `seconds`.

    Raises:
        InputError: the model does not take it.
    """
    return geometry.require_frames(length) if length else geometry.frames_of(seconds, grid.frame_rate)


def summary(grid: LatentGrid, size: geometry.Size, frames: int) -> str:
    """Returns what the settings of a clip came to: "832x480, 81 frames, 16 fps, 5.06 s"."""
    rate = grid.frame_rate
    return f"{size[0]}x{size[1]}, {frames} frames, {rate} fps, {frames / rate:.2f} s"


def refusal(
    presets: dict[str, geometry.Size], size: str | None, width: int | None, height: int | None, length: int | None = 0
) -> bool | str:
    """Says before anything is loaded what no model takes; what only the 5B refuses shows when its VAE is known.

    A linked input is None here: it is checked when it has a value.
    """
    try:
        if length:
            geometry.require_frames(length)
        if size is not None:
            geometry.choose_size(presets, size, (width or STEP, height or STEP), STEP)
    except InputError as error:
        return str(error)
    return True


NODES = [WanCoreTextToVideo, WanCoreTextToImage]
