"""Writes a file so that its final name is either absent or whole, and never one that was there before.

The file grows under a hidden name in the same folder; when it is whole it is synced to disk and takes its final name
in one step that fails if the name is taken. A killed process leaves at most the hidden partial file, which a later
one that writes to the same folder removes.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError

MIB = 2**20  # bytes
ABANDONED = 600.0  # seconds without a write after which a dead process's partial file is removed
_PARTIAL = re.compile(r"\..+\.(\d+)\.\d+\.partial")  # hint, process, number: see _create_partial
_FULL = {errno.ENOSPC, errno.EDQUOT}
_READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_FOLDER = {errno.ENOTDIR, errno.EEXIST}
LONGEST_HINT = 200  # bytes; with process and number below the 255 that file systems take


@dataclass(frozen=True)
class Remedies:
    """What to do about a folder that cannot be written to; it depends on what is written there, and when."""

    full: str  # no room on its disk
    taken: str  # a file has its name
    refused: str  # no right to write there


OUTPUT_FOLDER = Remedies(
    "Free some space and press Run again: only the saving is repeated",
    "Choose another filename_prefix, or rename that file: only the saving is repeated",
    "Give ComfyUI the right to write there, or start it with another --output-directory",
)
TEMP_FOLDER = Remedies(
    "Free some space and press Run again: clips that could be kept are not sampled again",
    "Rename that file and press Run again",
    "Give ComfyUI the right to write there, or start it with another --temp-directory",
)
USER_FOLDER = Remedies(
    "Free some space there before the next run",
    "Rename that file before the next run",
    "Give ComfyUI the right to write there, or start it with another --user-directory",
)


class PartialFile:
    """A file that is being written at `path`; `publish` or `replace` gives it its name."""

    def __init__(self, folder: Path, hint: str) -> None:
        self.path = _create_partial(folder, hint)
        self.published: Path | None = None

    def publish(self, names: Iterable[str]) -> Path:
        """Takes the first of `names` that no file in the folder has, and returns its path.

        Threads and processes that publish at once get different names: the file system decides.
        """
        _sync(self.path)
        for name in names:
            final = self.path.with_name(name)
            if _claim(self.path, final):
                return self._done(final)
        raise FileExistsError(errno.EEXIST, "every name is taken", str(self.path.parent))

    def replace(self, final: Path) -> Path:
        """Takes the name `final` in the same folder, also where a file has it already, and returns it."""
        _sync(self.path)
        os.replace(self.path, final)
        return self._done(final)

    def _done(self, final: Path) -> Path:
        self.published = final
        _sync_folder(final.parent)
        return final


@contextmanager
def partial_file(folder: Path, hint: str, remedies: Remedies = OUTPUT_FOLDER) -> Iterator[PartialFile]:
    """Creates an empty partial file in `folder` (made if missing) and removes it at the end unless it was published.

    Raises:
        OutputError: the disk is full or the folder is not writable, here or while the block writes.
    """
    with disk_errors(folder, remedies):
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        partial = PartialFile(folder, hint)
        try:
            yield partial
        finally:
            if partial.published is None:
                with suppress(OSError):
                    partial.path.unlink()


@contextmanager
def disk_errors(folder: Path, remedies: Remedies = OUTPUT_FOLDER) -> Iterator[None]:
    """Turns a full disk, and a folder that is not writable or is a file, into an OutputError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise OutputError(
                "The disk is full",
                where=str(folder.absolute()),
                found=error.strerror or str(error),  # a quota is another thing than a full disk
                remedy=remedies.full,
            ) from error
        if file := _file_in_the_way(error):
            raise OutputError(
                "A file has the name of the folder",
                where=str(file.absolute()),
                remedy=remedies.taken,
            ) from error
        if error.errno in _READ_ONLY:
            raise OutputError(
                "The folder cannot be written to",
                where=str(folder.absolute()),
                found=error.strerror or str(error),
                remedy=remedies.refused,
            ) from error
        raise


def _file_in_the_way(error: OSError) -> Path | None:
    """The file that stands where a folder was to be read or made, if that is what the error is about."""
    if error.errno not in _NO_FOLDER or not error.filename:
        return None
    path = Path(os.fsdecode(error.filename))
    return next((part for part in (path, *path.parents) if part.is_file()), None)


def require_space(folder: Path, needed: int) -> None:
    """Checks that `needed` bytes fit on the disk of `folder`, which exists.

    Raises:
        OutputError: fewer are free.
    """
    free = free_space(folder)
    if free < needed:
        raise OutputError(
            "There is not enough space on the disk",
            where=str(folder.absolute()),
            found=f"{free / MIB:.0f} MiB free",
            expected=f"about {max(needed / MIB, 1):.0f} MiB",
            remedy=OUTPUT_FOLDER.full,
        )


def free_space(folder: Path) -> float:
    """Bytes free on the disk; infinity where the file system does not say, as some mounted from a network."""
    with suppress(OSError):
        usage = shutil.disk_usage(folder)
        if usage.total:
            return usage.free
    return math.inf


def _create_partial(folder: Path, hint: str) -> Path:
    hint = hint.encode("utf-8")[:LONGEST_HINT].decode("utf-8", "ignore")
    for attempt in range(10_000):
        path = folder / f".{hint}.{os.getpid()}.{attempt}.partial"
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path
    raise FileExistsError(errno.EEXIST, "too many partial files", str(folder))


def _remove_abandoned(folder: Path) -> None:
    """Removes partial files whose process is gone. On a network folder it may run elsewhere: then it still writes."""
    for path in folder.glob(".*.partial"):
        name = _PARTIAL.fullmatch(path.name)
        with suppress(OSError):  # another process was faster; on Windows, an open file cannot be removed
            if name and not _runs(int(name[1])) and time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def _runs(process: int) -> bool:
    """Whether there is such a process here; False on Windows, where asking would end it."""
    if process == os.getpid():
        return True
    if os.name == "nt":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # somebody else's, or no number of a process
    return True


def _claim(source: Path, final: Path) -> bool:
    """Moves `source` to `final` unless that name is taken; tells whether it did."""
    try:
        if os.name == "nt":
            os.rename(source, final)  # refuses a name that is taken, on Windows only
            return True
        os.link(source, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _FULL or os.name == "nt":
            raise
        return _claim_without_links(source, final)  # exFAT and some network folders have no hard links
    source.unlink()
    return True


def _claim_without_links(source: Path, final: Path) -> bool:
    try:
        os.close(os.open(final, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    os.replace(source, final)
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut, where folders can be synced at all (not on Windows)."""
    if os.name == "nt":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
