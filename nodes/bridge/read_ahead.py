"""Reads a model's file into the page cache before its weights are asked for, beside the run of another one.

No weight is moved: the loader finds its pages in memory, where it would have waited for the disk.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from ...wan_core.errors import WanError
from ...wan_core.weights import inspect
from .facts import model_facts

CHUNK = 2**24  # bytes of one read: what is stopped ends within it
SPARE = 2 * 2**30  # bytes of memory that stay free for the run
MAPPED = "_comfy_tensor_mmap_refs"  # mark of storages that ComfyUI maps from files itself


class ReadAhead:
    """Reads files in a thread of its own until it is through or stopped."""

    def __init__(self, files: Sequence[Path], limit: int) -> None:
        """`limit` is in bytes, over all files."""
        self.files, self.left = files, limit
        self.done = 0  # bytes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="wan-read-ahead", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends it, in the middle where it is not through; afterwards nothing of it is left."""
        self._stopped.set()
        self._thread.join()

    def wait(self) -> None:
        """Until it is through."""
        self._thread.join()

    def _read(self) -> None:
        buffer = memoryview(bytearray(CHUNK))
        for file in self.files:
            try:
                with open(file, "rb", buffering=0) as source:
                    while self.left > 0 and not self._stopped.is_set():
                        count = source.readinto(buffer)
                        if not count:
                            break
                        self.done += count
                        self.left -= count
            except OSError as error:
                logging.info("Wan: %s could not be read ahead: %s", file, error)


def read_ahead_of(model: Any, running: Any) -> ReadAhead | None:
    """What reads the file of `model` while `running` samples; None where that would not help or has no room.

    It would not where the weights are loaded, or are no longer those of the file. `running` keeps the memory that its
    own file takes in the page cache.
    """
    files = files_of(model)
    if not files or loaded(model) or not is_mapped(model, files):
        return None
    needed = sum(file.stat().st_size for file in files)
    kept = 0 if loaded(running) else sum(file.stat().st_size for file in files_of(running))
    room = psutil.virtual_memory().available - kept - SPARE
    if room <= 0:
        return None
    return ReadAhead(files, min(needed, room))


def files_of(model: Any) -> list[Path]:
    """The file that a MODEL was loaded from, or the files of a folder; empty where that is not known."""
    path = model_facts(model).path
    if path is None:
        return []
    try:
        checkpoint = inspect(path)
    except (WanError, OSError):  # it was moved since
        return []
    return [Path(file) for file in checkpoint.header.files or (checkpoint.path,)]


def loaded(model: Any) -> bool:
    """True if all weights are on the device that computes."""
    return 0 < model.model_size() <= model.loaded_size()


def is_mapped(model: Any, files: Sequence[Path]) -> bool:
    """True if weights of the model are still to be read from its files."""
    if any(hasattr(parameter.untyped_storage(), MAPPED) for parameter in plain_parameters(model.model)):
        return True
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any(os.path.realpath(file) in maps for file in files)


def plain_parameters(module: torch.nn.Module) -> list[Any]:
    """The tensors that hold the parameters: of a quantised one, those within it."""
    return [getattr(parameter, "_qdata", parameter) for parameter in module.parameters()]
