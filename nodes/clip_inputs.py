"""Inputs and outputs that the conditioning nodes of all tasks have, and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..wan_core.geometry import Size, whole_frames
from .bridge.latents import LatentGrid, empty_latent
from .latents import batch_input, frames_for, length_input, seconds_input, size_inputs, summary
from .pictures import SIZES, size_for


@dataclass(frozen=True)
class Clip:
    """What the widgets of size and length came to."""

    grid: LatentGrid
    size: Size
    frames: int

    def latent(self, batch_size: int) -> dict[str, Any]:
        """The empty latent of the clip."""
        return empty_latent(self.grid, self.size, self.frames, batch_size)

    def summary(self) -> str:
        """What the node shows of it."""
        return summary(self.grid, self.size, self.frames)


def prompt_inputs(vae: str) -> list[io.Input]:
    """The sockets that come first; `vae` says which VAE belongs there."""
    return [
        io.Conditioning.Input("positive", tooltip="The prompt, from Wan Text Encode."),
        io.Conditioning.Input("negative", tooltip="The negative prompt, from Wan Text Encode."),
        io.Vae.Input("vae", tooltip=vae),
    ]


def start_input(more: str = "") -> io.Input:
    """Returns the socket of the first picture; `more` goes to the end of its tooltip."""
    return io.Image.Input(
        "start_image",
        optional=True,
        tooltip=f"The clip begins with this picture; several pictures are its first frames.{more}",
    )


def end_input(more: str = "") -> io.Input:
    """Returns the socket of the last picture; `more` goes to the end of its tooltip."""
    return io.Image.Input(
        "end_image",
        optional=True,
        tooltip=f"The clip ends with this picture; several pictures are its last frames.{more}",
    )


def clip_inputs(of_video: str = "") -> list[io.Input]:
    """Size and length; `of_video` names the input whose length is taken where none is given."""
    size, width, height = size_inputs(SIZES, next(iter(SIZES)))
    seconds = video_seconds_input(of_video) if of_video else seconds_input()
    return [size, seconds, length_input(), batch_input("clips"), width, height]


def video_seconds_input(of_video: str) -> io.Input:
    """Returns the widget of a duration that may be a video's."""
    return io.Float.Input(
        "seconds",
        default=0.0,
        min=0.0,
        max=600.0,
        step=0.25,
        tooltip="Duration in seconds at the model's frame rate: 16 for 14B, 24 for the 5B. Takes the nearest length of "
        f"4n+1 frames. 0 takes as many as {of_video} has, at most 5 seconds.",
    )


def clip_outputs(what: str) -> list[io.Output]:
    """Conditionings that carry `what`, and the latent."""
    return [
        io.Conditioning.Output("positive", tooltip=f"The prompt with {what}, for a sampler."),
        io.Conditioning.Output("negative", tooltip=f"The negative prompt with {what}, for a sampler."),
        io.Latent.Output("latent", tooltip="Latent that knows its frame rate, for a sampler."),
    ]


def clip_for(grid: LatentGrid, size: tuple[str, int, int], frames: int, picture: Any) -> Clip:
    """The clip of the widgets size, width and height; its aspect may be that of `picture`.

    Raises:
        InputError: the model does not take the size.
    """
    choice, width, height = size
    return Clip(grid, size_for(choice, (width, height), grid, picture), frames)


def frames_of_clip(grid: LatentGrid, seconds: float, length: int, video: Any) -> int:
    """Frames of the clip; where neither is given the official length, or what a shorter video makes of it.

    Raises:
        InputError: the model does not take the length.
    """
    if length or seconds:
        return frames_for(grid, seconds, length)
    return grid.frames if video is None else whole_frames(min(len(video), grid.frames))
