"""File names from a user's prefix: always inside the output folder, and valid on Linux, macOS and Windows.

Both separators count on every system, so that a workflow made on one runs on the other. What would lead out of the
folder is refused; what file systems do not take is replaced, because a finished clip must not fail on a colon.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

from ..errors import InputError

LONGEST_NAME = 120  # bytes of one part; leaves room for the number, the extension and the partial file's name (255)
DEFAULT_STEM = "WanCore"

_SEPARATORS = re.compile(r"[/\\]+")
_DRIVE = re.compile(r"^\s*[A-Za-z]:")
# control and bidirectional formatting characters, and those that Windows keeps for itself
_UNFIT = re.compile(r'[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff<>:"|?*]')
_DEVICES = re.compile(
    r"^(con|prn|aux|nul|conin\$|conout\$|com[0-9\u00b9\u00b2\u00b3]|lpt[0-9\u00b9\u00b2\u00b3])(\.|$)", re.I
)


def split_prefix(prefix: str) -> tuple[str, str]:
    """Splits a prefix like "video/Wan" into a relative folder with forward slashes ("" for none) and a file stem.

    Raises:
        InputError: the prefix is absolute, names a drive or a network share, or climbs out with "..".
    """
    parts = _SEPARATORS.split(prefix)
    if (len(parts) > 1 and not parts[0].strip()) or _DRIVE.match(prefix) or any(part.strip() == ".." for part in parts):
        raise InputError(
            "Files are only written inside the output folder",
            where="filename_prefix",
            found=ascii(prefix[:80]),
            expected="a relative name such as video/Wan",
            remedy="Remove the drive, the leading slash or the .. from filename_prefix",
        )
    *folders, stem = parts
    kept = [clean for part in folders if (clean := _clean(part))]
    return "/".join(kept), _clean(stem) or DEFAULT_STEM


def numbered(stem: str, extension: str, first: int = 1) -> Iterator[str]:
    """Yields ComfyUI's names for a series: stem_00001_.mp4, stem_00002_.mp4, ..."""
    return (f"{stem}_{number:05}_.{extension}" for number in count(first))


def _clean(part: str) -> str:
    """Makes one path part valid everywhere; a part of dots and spaces alone comes out empty."""
    part = _UNFIT.sub("_", part).rstrip(". ").lstrip(" ")
    part = part.encode("utf-8")[:LONGEST_NAME].decode("utf-8", "ignore").rstrip(". ")
    return f"_{part}" if _DEVICES.match(part) else part
