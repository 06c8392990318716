"""Where ComfyUI keeps what it makes, and what it writes into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import Input

from ...wan_core.errors import InputError
from ...wan_core.media.atomic import disk_errors, partial_file, require_space
from ...wan_core.media.formats import FORMATS, estimated_bytes
from ...wan_core.media.names import numbered, split_prefix
from ...wan_core.media.video import write_video
from .progress import progress
from .video import clip_of


@dataclass(frozen=True)
class Saved:
    """A file in the output folder, as the front end asks for it."""

    filename: str
    subfolder: str


def save_video(
    video: Input.Video, prefix: str, format_id: str, *, crf: int | None, metadata: Mapping[str, Any] | None
) -> Saved:
    """Encodes a VIDEO into the output folder under the next free number of its prefix.

    Raises:
        InputError: the prefix leads out of the output folder, or the video has no frames, size or rate.
        OutputError: the disk is full, the folder is not writable, the encoder is missing or failed.
    """
    format = FORMATS[format_id]
    width, height = video.get_dimensions()
    folder, stem, first, subfolder = _next_place(prefix, width, height)
    frames = video.get_frame_count()
    require_space(folder, estimated_bytes(width, height, frames, format))
    clip = clip_of(video, deep=format.is_deep or None)
    with partial_file(folder, stem) as partial:
        write_video(partial.path, clip, format, crf=crf, metadata=metadata, on_frame=progress(frames))
        final = partial.publish(numbered(stem, format.extension, first))
    return Saved(final.name, subfolder)


def workflow_metadata(prompt: Any, extra: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns what native savers store beside the pictures, prompt and workflow; None with --disable-metadata."""
    if args.disable_metadata:
        return None
    return {**(extra or {}), **({"prompt": prompt} if prompt is not None else {})}


def _next_place(prefix: str, width: int, height: int) -> tuple[Path, str, int, str]:
    """Returns the folder (made), the file stem, the first number to try, and the folder relative to the output.

    ComfyUI fills in its %year%, %width% and the like, and looks for the number.
    """
    output = Path(folder_paths.get_output_directory())
    subfolder, stem = split_prefix(prefix)
    _require_inside(output, output / subfolder)
    with disk_errors(output):
        place = folder_paths.get_save_image_path(f"{subfolder}/{stem}".lstrip("/"), str(output), width, height)
    full_folder, stem, first, subfolder, _ = place
    _require_inside(output, Path(full_folder))  # again: ComfyUI before 0.27 does not look behind symbolic links
    return Path(full_folder), stem, first, subfolder


def _require_inside(output: Path, folder: Path) -> None:
    if not folder.resolve().is_relative_to(output.resolve()):
        raise InputError(
            "Files are only written inside the output folder",
            where="filename_prefix",
            found=str(folder.resolve()),
            expected=f"a folder in {output.resolve()}",
            remedy="Choose another filename_prefix, or start ComfyUI with that folder as --output-directory",
        )
