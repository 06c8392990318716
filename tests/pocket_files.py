"""The miniature files under their published names, for every server of a test run."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from make_pocket import make_pocket


def copy_pocket(models: Path) -> None:
    """What make_pocket writes into a models folder; it does so once in this process, in 5 s of a core."""
    shutil.copytree(_made(), models, dirs_exist_ok=True)


@cache
def _made() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pocket-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_pocket(folder)
    return folder
