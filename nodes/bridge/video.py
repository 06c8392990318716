"""A clip of 8-bit frames as a native VIDEO, and any native VIDEO as frames for the encoder.

A native VIDEO made of components holds float32: 0.9 GB for 81 frames of 720p; as the bytes that end up in the file
it is a quarter of that, and the float images are made only for a node that asks for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import Input, Types

from ...wan_core.errors import InputError
from ...wan_core.media.atomic import partial_file
from ...wan_core.media.formats import FORMATS
from ...wan_core.media.video import Clip, Sound, write_video

H264 = FORMATS["h264"]


class ByteVideo(Input.Video):
    """A VIDEO of 8-bit frames that come in chunks, with a frame rate and perhaps a native AUDIO."""

    def __init__(self, size: tuple[int, int], count: int, frame_rate: Fraction, audio: dict[str, Any] | None) -> None:
        """`size` is (width, height) in pixels, `count` the number of frames."""
        self.size, self.count = size, count
        self.frame_rate = frame_rate
        self.audio = audio

    def chunks(self) -> Iterator[torch.Tensor]:
        """All frames in order, uint8 [f, H, W, 3] on the CPU."""
        raise NotImplementedError

    def part(self, first: int, last: int, audio: dict[str, Any] | None) -> ByteVideo:
        """The frames from number `first` up to `last`."""
        raise NotImplementedError

    def get_components(self) -> Types.VideoComponents:
        """Returns the frames as native IMAGE, float32 in 0..1: four times the memory, and only while it is held."""
        width, height = self.size
        images, done = torch.empty(self.count, height, width, 3), 0
        for chunk in self.chunks():
            images[done : done + len(chunk)] = chunk
            done += len(chunk)
        return Types.VideoComponents(images=images.div_(255), audio=self.audio, frame_rate=self.frame_rate)

    def get_dimensions(self) -> tuple[int, int]:
        return self.size

    def get_frame_count(self) -> int:
        return self.count

    def get_frame_rate(self) -> Fraction:
        return self.frame_rate

    def get_duration(self) -> float:
        return float(self.count / self.frame_rate)

    def get_bit_depth(self) -> int:
        return 8

    def get_container_format(self) -> str:
        """Returns what FFmpeg calls the file that save_to writes."""
        return "mov,mp4,m4a,3gp,3g2,mj2"

    def get_stream_source(self) -> str | BytesIO:
        buffer = BytesIO()
        self.save_to(buffer)
        buffer.seek(0)
        return buffer

    def save_to(
        self,
        path: str | IO[bytes],
        format: Types.VideoContainer = Types.VideoContainer.AUTO,
        codec: Types.VideoCodec = Types.VideoCodec.AUTO,
        metadata: dict | None = None,
        bit_depth: int | None = None,
        crf: float | None = None,
        **_: object,  # what later versions of ComfyUI may add
    ) -> None:
        """Writes an H.264 mp4 to a path, which has its name only when it is whole, or to a binary stream."""
        if format not in ("auto", "mp4") or codec not in ("auto", "h264"):
            raise InputError(
                "The native Save Video writes this video as mp4 with h264 only",
                where="format",
                found=f"{getattr(format, 'value', format)}, {getattr(codec, 'value', codec)}",
                remedy="Use Wan Save Video for other formats",
            )
        clip = clip_of(self, deep=(bit_depth or 8) > 8)
        if not isinstance(path, str | os.PathLike):
            write_video(path, clip, H264, crf=crf, metadata=metadata)
            return
        final = Path(path)
        with partial_file(final.parent, final.stem) as partial:
            write_video(partial.path, clip, H264, crf=crf, metadata=metadata)
            partial.replace(final)

    def as_trimmed(
        self, start_time: float | None = None, duration: float | None = None, strict_duration: bool = False
    ) -> ByteVideo | None:
        """Returns the part from `start_time` (negative: from the end) for `duration` (0: to the end), in seconds.

        The frames are shared, not copied. None when the part is empty, or shorter than asked for and strict.
        """
        whole = self.get_duration()
        start = start_time or 0.0
        start = max(whole + start, 0.0) if start < 0 else start
        end = min(start + duration, whole) if duration else whole
        first, last = (min(round(time * self.frame_rate), self.get_frame_count()) for time in (start, end))
        too_short = strict_duration and duration and whole - start < duration
        if first >= last or too_short:
            return None
        return self.part(first, last, _trimmed_audio(self.audio, start, end))


class FrameVideo(ByteVideo):
    """A VIDEO that holds its frames in memory, uint8 [F, H, W, 3] on the CPU."""

    def __init__(self, frames: torch.Tensor, frame_rate: Fraction, audio: dict[str, Any] | None = None) -> None:
        assert frames.dtype == torch.uint8 and frames.ndim == 4 and frames.device.type == "cpu"
        super().__init__((frames.shape[2], frames.shape[1]), frames.shape[0], frame_rate, audio)
        self.frames = frames

    def chunks(self) -> Iterator[torch.Tensor]:
        yield self.frames

    def part(self, first: int, last: int, audio: dict[str, Any] | None) -> FrameVideo:
        return FrameVideo(self.frames[first:last], self.frame_rate, audio)


class StreamedVideo(ByteVideo):
    """A VIDEO whose frames are made anew whenever they are asked for, so that a long one is never whole in memory.

    `source` returns float frames [f, H, W, 3] in 0..1, chunk by chunk; those from `first` on are the video's.
    """

    def __init__(
        self,
        source: Callable[[], Iterator[torch.Tensor]],
        size: tuple[int, int],
        count: int,
        frame_rate: Fraction,
        audio: dict[str, Any] | None = None,
        first: int = 0,
    ) -> None:
        super().__init__(size, count, frame_rate, audio)
        self.source, self.first = source, first

    def chunks(self) -> Iterator[torch.Tensor]:
        skip, left = self.first, self.count
        for chunk in self.source():
            if left <= 0:
                return
            comfy.model_management.throw_exception_if_processing_interrupted()
            if skip < len(chunk):
                yield to_bytes(chunk[skip : skip + left]).cpu()
                left -= min(left, len(chunk) - skip)
            skip = max(0, skip - len(chunk))

    def part(self, first: int, last: int, audio: dict[str, Any] | None) -> StreamedVideo:
        return StreamedVideo(self.source, self.size, last - first, self.frame_rate, audio, self.first + first)


def clip_of(video: Input.Video, *, deep: bool | None = None) -> Clip:
    """Returns any native VIDEO as the encoder takes it; `deep` asks for 16 bits a channel (None: as the video has)."""
    if isinstance(video, ByteVideo):
        chunks: Iterable[torch.Tensor] = video.chunks()
        (width, height), depth = video.size, 8
        audio, frame_rate = video.audio, video.frame_rate
    else:
        components = video.get_components()
        audio, frame_rate = components.audio, components.frame_rate
        chunks, (height, width) = [components.images], components.images.shape[1:3]
        depth = video.get_bit_depth() if hasattr(video, "get_bit_depth") else 8
    deep = depth > 8 if deep is None else deep
    return Clip(
        frames=(frame for images in chunks for frame in _arrays(images, deep)),
        width=width,
        height=height,
        frame_rate=Fraction(frame_rate),
        sound=_sound(audio),
        bit_depth=16 if deep else 8,
    )


def to_bytes(images: torch.Tensor) -> torch.Tensor:
    """Returns float images in 0..1 as uint8, rounded to the nearest value, on the same device."""
    return images.float().mul(255).round_().clamp_(0, 255).to(torch.uint8)


def _arrays(images: torch.Tensor, deep: bool) -> Iterator[np.ndarray]:
    """Yields the frames one by one as uint8 or uint16 RGB; only one is converted at a time."""
    for image in images:
        rgb = image[..., :3].expand(-1, -1, 3).cpu()  # grey is three equal colours
        if deep:
            wide = rgb.float() / 255 if rgb.dtype == torch.uint8 else rgb.float()
            yield wide.mul(65535).round_().clamp_(0, 65535).numpy().astype(np.uint16)
        else:
            yield (rgb if rgb.dtype == torch.uint8 else to_bytes(rgb)).numpy()


def _sound(audio: dict[str, Any] | None) -> Sound | None:
    """Returns a native AUDIO, {waveform [1, C, T], sample_rate}, as the encoder takes it."""
    if not audio or audio["waveform"].numel() == 0:
        return None
    return Sound(audio["waveform"][0].float().cpu().numpy(), int(audio["sample_rate"]))


def _trimmed_audio(audio: dict[str, Any] | None, start: float, end: float) -> dict[str, Any] | None:
    if not audio:
        return None
    rate = audio["sample_rate"]
    return {**audio, "waveform": audio["waveform"][..., round(start * rate) : round(end * rate)]}
