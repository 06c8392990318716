"""Files that bear their names only once they are whole, for training and benchmarks.

They can be made again, and some have 28 GB: unlike in wan_core/media/atomic.py, nothing waits until the disk has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "part_"


@contextmanager
def written_aside(path: Path, by: str = "") -> Iterator[Path]:
    """Yields where to write; what lies there takes the place of `path` when the block has ended well.

    Writers of one file at the same time each need a name, `by`.
    """
    part = path.with_name(f"{PREFIX}{by}{path.name}")
    try:
        yield part
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)
