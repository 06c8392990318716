"""Where things are: the checkout, the cache outside it, and a lock so that two set-ups do not write to one folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .console import SetupError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".venv"


def cache_folder() -> Path:
    """The folder of this pack in the user's cache; made if it is not there.

    Raises:
        SetupError: it cannot be made.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        base = Path(os.environ["XDG_CACHE_HOME"])
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    folder = base.expanduser().absolute() / "comfyui-wancore"
    make_folder(folder)
    return folder


def bytecode_in_cache() -> dict[str, str]:
    """Variables for Python processes: byte code is kept in the cache folder, and none beside the sources.

    Kept also where the environment says that none is written: it means the folders of the sources, and without any a
    process that imports ComfyUI and torch takes 12 s of a core longer.
    """
    return {"PYTHONPYCACHEPREFIX": str(cache_folder() / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}


def make_folder(folder: Path) -> None:
    """Makes a folder with its parents.

    Raises:
        SetupError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(
            f"Cannot make the folder {folder}: {error.strerror}. Choose a place that can be written to."
        ) from None


@contextmanager
def lock(file: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds an exclusive lock on `file`; waits, and says so once, while another process holds it.

    The operating system drops the lock when its process ends, however that happens: nothing is ever stale.
    """
    make_folder(file.parent)
    with file.open("a+b") as handle:
        told = False
        while not _try_lock(handle):
            if not told:
                waiting("Another set-up is at work here; waiting for it.")
                told = True
            time.sleep(0.5)
        yield


def _try_lock(handle: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
