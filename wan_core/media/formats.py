"""The formats that a video is saved in: encoder, container and their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import av

from ..errors import OutputError

SHORT = 2  # frames


@dataclass(frozen=True)
class VideoFormat:
    """One choice of encoder and container; the defaults are an mp4's."""

    id: str
    encoders: tuple[str, ...]  # FFmpeg's names, best first
    crf: int | None  # default quality, lower is better; None: the format has none
    bits_per_pixel: float  # of a busy clip; for the check of free space
    container: str = "mp4"
    extension: str = "mp4"
    pixel_format: str = "yuv420p"
    deep_pixel_format: str | None = None  # for clips of more than 8 bits
    audio_encoder: str = "aac"
    codec_tag: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    short_options: Mapping[str, str] = field(default_factory=dict)  # in their place for SHORT frames or fewer

    @property
    def is_rgb(self) -> bool:
        return not self.pixel_format.startswith("yuv")

    @property
    def is_deep(self) -> bool:
        """Whether it always stores more than 8 bits a channel."""
        return self.pixel_format.endswith("10le")


_DEEP = "yuv420p10le"
FORMATS = {
    row.id: row
    for row in (
        VideoFormat("h264", ("libx264", "h264"), 19, 0.6, deep_pixel_format=_DEEP),
        VideoFormat(
            "h265",
            ("libx265", "hevc"),
            22,
            0.5,
            deep_pixel_format=_DEEP,
            codec_tag="hvc1",  # the tag that Apple's players ask for
            options={"x265-params": "log-level=error"},
            # x265 takes the decoding times of frames that never filled its reordering out of memory nobody wrote to
            short_options={"x265-params": "log-level=error:bframes=0"},
        ),
        VideoFormat("av1", ("libsvtav1",), 28, 0.5, deep_pixel_format=_DEEP, options={"preset": "6"}),
        VideoFormat(
            "vp9",
            ("libvpx-vp9",),
            28,
            0.5,
            container="webm",
            extension="webm",
            audio_encoder="libopus",
            options={"b": "0", "row-mt": "1", "cpu-used": "4"},  # no bit rate: quality alone decides
        ),
        VideoFormat(
            "prores",
            ("prores_ks",),
            None,
            8.0,
            container="mov",
            extension="mov",
            pixel_format="yuv422p10le",
            audio_encoder="pcm_s16le",
            options={"profile": "3", "vendor": "apl0"},  # 422 HQ
        ),
        VideoFormat(
            "ffv1",
            ("ffv1",),
            None,
            24.0,
            container="matroska",
            extension="mkv",
            pixel_format="bgr0",
            audio_encoder="flac",
            options={"level": "3", "slicecrc": "1"},
        ),
    )
}


def available_formats() -> list[str]:
    """Returns the ids of FORMATS that the installed FFmpeg can encode, H.264 first."""
    return [row.id for row in FORMATS.values() if _encoder(row) and _has_encoder(row.audio_encoder)]


def estimated_bytes(width: int, height: int, frames: int, format: VideoFormat) -> int:
    """Returns about how many bytes a busy clip takes; a still one takes far fewer."""
    return int(width * height * frames * format.bits_per_pixel / 8)


def require_encoder(format: VideoFormat) -> str:
    """FFmpeg's name of the best encoder for a format.

    Raises:
        OutputError: there is none here.
    """
    name = _encoder(format)
    if name is None:
        raise OutputError(
            f"The FFmpeg that PyAV {av.__version__} brings cannot write this format",
            where="format",
            found=format.id,
            expected=" or ".join(available_formats()),
            remedy="Choose another format",
        )
    return name


def _encoder(format: VideoFormat) -> str | None:
    return next((name for name in format.encoders if _has_encoder(name)), None)


def _has_encoder(name: str) -> bool:
    try:
        return av.Codec(name, "w").is_encoder
    except ValueError:  # UnknownCodecError
        return False
