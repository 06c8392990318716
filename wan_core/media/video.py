"""Encodes frames to a video file, one frame at a time, in BT.709 colour with tags that say so.

RGB becomes limited-range Y'CbCr with the BT.709 matrix (ITU-R BT.709-6, section 3), and primaries, transfer, matrix
and range are written into the stream, so that no player has to guess them from the size. FFV1 stays RGB, lossless.
Knows nothing of ComfyUI; decoding belongs to it.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
from av.error import FFmpegError

from ..errors import InputError, OutputError
from .formats import SHORT, VideoFormat, require_encoder

# code points of ITU-T H.273, as FFmpeg numbers them
BT709 = 1
RGB_MATRIX = 0
LIMITED, FULL = 1, 2
COLOUR_TAGS = ("color_primaries", "color_trc", "colorspace", "color_range")
DEFAULT_AUDIO_RATE = 48_000  # samples per second, where the encoder does not take the sound's own rate
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}  # by number of channels; PyAV can neither fill nor read eight planes
LARGEST_RATE_DENOMINATOR = 1001  # keeps 24000/1001 exact


@dataclass(frozen=True)
class Sound:
    """waveform [channels, samples] float32 in -1..1, `rate` samples per second."""

    waveform: np.ndarray
    rate: int


@dataclass(frozen=True)
class Clip:
    """What is to be encoded; `frames` is read once, each [height, width, 3] RGB as uint8 or, for 10 bits, uint16."""

    frames: Iterable[np.ndarray]
    width: int
    height: int
    frame_rate: Fraction
    sound: Sound | None = None
    bit_depth: int = 8


def write_video(
    target: Path | IO[bytes],
    clip: Clip,
    format: VideoFormat,
    *,
    crf: int | float | None = None,
    metadata: Mapping[str, Any] | None = None,
    on_frame: Callable[[int], None] = lambda done: None,
) -> int:
    """Encodes the clip to a path or a seekable binary stream and returns the number of frames.

    `metadata` values are stored as JSON under their keys, as ComfyUI reads them back from a dropped file. `on_frame`
    is called after each frame with the number done; what it raises ends the encoding. The sound is cut at the end of
    the last frame. A side that is odd where the pixel format needs an even one grows by a copy of its last line.

    Raises:
        InputError: the clip has no frames, or no usable size or rate.
        OutputError: no encoder for the format here, or it failed.
        OSError: the file cannot be written (disk full, ...).
    """
    frames = iter(clip.frames)
    first = deque(islice(frames, SHORT + 1))
    where = str(target) if isinstance(target, Path) else "the video"
    destination = str(target) if isinstance(target, Path) else target
    # FFmpeg drops prompt and workflow without the first; the second opens the finished file again, by its name
    options = {"movflags": "use_metadata_tags" + ("+faststart" if isinstance(target, Path) else "")}
    options = options if format.container in ("mp4", "mov") else {}
    with _encoder_errors(format, where), av.open(destination, "w", format=format.container, options=options) as output:
        for key, value in (metadata or {}).items():
            output.metadata[key] = _json(value)
        picture = _Picture(output, clip, format, crf, is_short=len(first) <= SHORT)
        sound = _SoundTrack(output, clip.sound, format) if clip.sound else None
        done = 0
        for frame in chain(_taken(first), frames):
            picture.write(frame, done)
            done += 1
            if sound:
                sound.write_until(done / picture.rate)
            on_frame(done)
        if done == 0:
            raise InputError("The video has no frames", where="video", remedy="Connect a video with frames")
        picture.finish()
        if sound:
            sound.finish()
    return done


def _taken(frames: deque[np.ndarray]) -> Iterator[np.ndarray]:
    while frames:
        yield frames.popleft()


class _Picture:
    """The video stream of an open container."""

    def __init__(
        self, output: Any, clip: Clip, format: VideoFormat, crf: int | float | None, *, is_short: bool
    ) -> None:
        self.rate = _frame_rate(clip.frame_rate)
        self.output = output
        self.source = "rgb24" if clip.bit_depth <= 8 else "rgb48le"
        self.format = format
        deep = clip.bit_depth > 8 and format.deep_pixel_format
        self.pixel_format = deep or format.pixel_format
        self.shape = (clip.height, clip.width, 3)
        self.padding = _padding(clip.width, clip.height, self.pixel_format)
        options = {**format.options, **(format.short_options if is_short else {})}
        if format.crf is not None:
            options["crf"] = str(format.crf if crf is None else crf)
        self.stream = output.add_stream(require_encoder(format), rate=self.rate, options=options)
        self.stream.width = clip.width + self.padding[1]
        self.stream.height = clip.height + self.padding[0]
        self.stream.pix_fmt = self.pixel_format
        context = self.stream.codec_context
        if format.codec_tag:
            context.codec_tag = format.codec_tag
        context.color_primaries = context.color_trc = BT709
        context.colorspace = RGB_MATRIX if format.is_rgb else BT709
        context.color_range = FULL if format.is_rgb else LIMITED

    def write(self, rgb: np.ndarray, index: int) -> None:
        """Encodes frame `index`, [height, width, 3]."""
        assert rgb.shape == self.shape, f"frame of {rgb.shape} in a clip of {self.shape}"
        if any(self.padding):
            rgb = np.pad(rgb, ((0, self.padding[0]), (0, self.padding[1]), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=self.source)
        if self.format.is_rgb:
            frame = frame.reformat(format=self.pixel_format)
        else:
            frame = frame.reformat(
                format=self.pixel_format, src_color_range=FULL, dst_color_range=LIMITED, dst_colorspace=BT709
            )
        for tag in COLOUR_TAGS:  # ProRes writes the frame's tags, not the stream's; PyAV before 17 has two of them
            if hasattr(frame, tag):
                setattr(frame, tag, getattr(self.stream.codec_context, tag))
        frame.pts, frame.time_base = index, 1 / self.rate
        self.output.mux(self.stream.encode(frame))

    def finish(self) -> None:
        self.output.mux(self.stream.encode(None))


class _SoundTrack:
    """The audio stream of an open container, written along with the frames so that players need not seek."""

    def __init__(self, output: Any, sound: Sound, format: VideoFormat) -> None:
        channels = sound.waveform.shape[0]
        self.waveform = np.nan_to_num(sound.waveform.astype(np.float32, copy=False), posinf=1.0, neginf=-1.0)
        if channels not in LAYOUTS:
            self.waveform = self.waveform.mean(axis=0, keepdims=True)
        self.layout = LAYOUTS.get(channels, "mono")
        self.rate = sound.rate
        self.output = output
        self.done = 0
        rates = av.Codec(format.audio_encoder, "w").audio_rates
        rate = sound.rate if not rates or sound.rate in rates else DEFAULT_AUDIO_RATE
        self.stream = output.add_stream(format.audio_encoder, rate=rate, layout=self.layout)

    def write_until(self, seconds: Fraction) -> None:
        """Encodes the samples up to `seconds`; PyAV resamples and cuts them into the encoder's portions."""
        end = min(math.ceil(seconds * self.rate), self.waveform.shape[1])
        if end <= self.done:
            return
        samples = np.ascontiguousarray(self.waveform[:, self.done : end])
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.done, Fraction(1, self.rate)
        self.output.mux(self.stream.encode(frame))
        self.done = end

    def finish(self) -> None:
        if self.done:
            self.output.mux(self.stream.encode(None))


@contextmanager
def _encoder_errors(format: VideoFormat, where: str) -> Iterator[None]:
    """Turns FFmpeg's errors into an OutputError that names the format; those of the system stay OSError."""
    try:
        yield
    except FFmpegError as error:
        if isinstance(error, OSError) and not isinstance(error, ValueError):
            raise
        raise OutputError(
            f"The {format.id} encoder failed",
            where=where,
            found=f"{type(error).__name__}: {error.strerror}",
            remedy="Choose another format; the frames are kept, so only the saving is repeated",
        ) from error


def _frame_rate(rate: Fraction) -> Fraction:
    rate = Fraction(rate).limit_denominator(LARGEST_RATE_DENOMINATOR)
    if rate <= 0:
        raise InputError(
            "The video has no frame rate",
            where="video",
            found=f"{rate} frames per second",
            expected="more than 0",
            remedy="Set the frame rate where the video is made",
        )
    return rate


def _padding(width: int, height: int, pixel_format: str) -> tuple[int, int]:
    """Returns how many (rows, columns) the size lacks to what the pixel format's chroma takes."""
    if pixel_format.startswith("yuv420"):
        return height % 2, width % 2
    return 0, width % 2 if pixel_format.startswith("yuv422") else 0


def _json(value: Any) -> str:
    """Returns JSON that browsers read: they refuse the NaN that Python writes."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(value))


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
