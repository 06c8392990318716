"""Files that a run keeps on the disk for the next one: room for them, and which of them go first."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from ...wan_core.media.atomic import free_space

GIB = 2**30
LEAST_FREE = 2 * GIB  # bytes that are left on the disk
WRITE_ERRORS = (OSError, SafetensorError)  # the latter where a disk is full


def mark_used(path: Path) -> None:
    """Notes that a file was used now; another process may have removed it, or own it."""
    with suppress(OSError):
        os.utime(path)


def make_room(folder: Path, size: int, budget: int, keep: Iterable[Path] = ()) -> None:
    """Removes the files that were used longest ago until `size` more bytes fit into the budget.

    Raises:
        OSError: the disk would be left with too little beside them.
    """
    kept = set(keep)
    files = []
    for path in folder.iterdir():
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        if path.suffix == ".tmp" and time.time() - stat.st_mtime > 3600:  # of a process that was killed
            path.unlink(missing_ok=True)
        elif path.suffix == ".safetensors":
            files.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in files) + size
    for _, taken, path in sorted(files):
        if total <= budget:
            break
        if path not in kept:
            path.unlink(missing_ok=True)
            total -= taken
    free = free_space(folder)
    if free - size < LEAST_FREE:
        full = f"{free / GIB:.1f} GiB of this disk are free, and {LEAST_FREE / GIB:.0f} GiB are left alone"
        raise OSError(errno.ENOSPC, full, str(folder))
