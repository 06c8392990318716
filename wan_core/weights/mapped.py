"""Files whose bytes are mapped into memory: whether they are still the ones that were read.

Touching a page that a file no longer has kills the process (SIGBUS), and no Python code can catch that. So the size is
asked again before weights are used. A file that was deleted, or replaced by another one under its name, keeps its
content for whoever has it open. What happens between the question and the use, a few milliseconds, is not seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import WeightsFileError


@dataclass(frozen=True)
class MappedFile:
    """A file as it was when its header was read."""

    path: str
    place: tuple[int, int]  # device and inode: another file under the same name has another
    size: int  # bytes
    changed: int  # nanoseconds

    @classmethod
    def of(cls, path: str | Path) -> MappedFile:
        status = os.stat(path)
        return cls(str(path), (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns)

    def check(self) -> None:
        """Raises:
        WeightsFileError: bytes of the file were taken away, or written over, since it was loaded.
        """
        try:
            status = os.stat(self.path)
        except OSError:
            return
        if (status.st_dev, status.st_ino) != self.place:
            return
        if status.st_size < self.size:
            self._refuse("cut off", f"{status.st_size} bytes of {self.size}")
        if (status.st_size, status.st_mtime_ns) != (self.size, self.changed):
            self._refuse("written over", "another size or time of change")

    def _refuse(self, what: str, found: str) -> None:
        raise WeightsFileError(
            f"The weights file was {what} while it was in use",
            where=repr(self.path),
            found=found,
            remedy="Wait until the file is complete and run again: it is then loaded anew",
        )


def check_all(files: Iterable[MappedFile]) -> None:
    """Raises:
    WeightsFileError: one of the files is no longer what was loaded.
    """
    for file in files:
        file.check()
