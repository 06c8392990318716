"""Reads a model's file into the page cache before its weights are asked for, beside the run of another one.

No weight is moved: the loader finds its pages in memory, where it would have waited for the disk. Layers of which
Dynamic VRAM keeps a pinned copy in RAM are left out: their part of the file is not read again.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ...wan_core.errors import WanError
from ...wan_core.weights import inspect
from .facts import model_facts

CHUNK = 2**24  # bytes of one read: what is stopped ends within it
SPARE = 2 * 2**30  # bytes of memory that stay free for the run
GAP = 2**20  # bytes between two parts that are read as one
MAPPED = "_comfy_tensor_mmap_refs"  # mark of storages that ComfyUI maps from files itself
SLICE = "_comfy_tensor_file_slice"  # and where in the file they lie
COPIES = ("weights", "weights-loaded")  # ComfyUI's kinds of pinned copies of a layer


@dataclass(frozen=True)
class Part:
    """Bytes of a file that lie together."""

    file: Path
    start: int
    size: int


class ReadAhead:
    """Reads parts of files in a thread of its own until it is through or stopped."""

    def __init__(self, parts: Sequence[Part], limit: int) -> None:
        """`limit` is in bytes, over all parts."""
        self.parts, self.left = parts, limit
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
        for part in self.parts:
            try:
                with open(part.file, "rb", buffering=0) as source:
                    source.seek(part.start)
                    end = self.left - min(part.size, self.left)
                    while self.left > end and not self._stopped.is_set():
                        count = source.readinto(buffer[: self.left - end])
                        if not count:
                            break
                        self.done += count
                        self.left -= count
            except OSError as error:
                logging.info("Wan: %s could not be read ahead: %s", part.file, error)


def read_ahead_of(model: Any, running: Any) -> ReadAhead | None:
    """What reads the file of `model` while `running` samples; None where that would not help or has no room.

    It would not where the weights are loaded or copied, or are no longer those of the file. `running` keeps the memory
    that its own file takes in the page cache.
    """
    files = files_of(model)
    if not files or loaded(model) or not is_mapped(model, files):
        return None
    parts = parts_of(model, files)
    needed = sum(part.size for part in parts)
    kept = 0 if loaded(running) else sum(part.size for part in parts_of(running, files_of(running)))
    room = psutil.virtual_memory().available - kept - SPARE
    if needed <= 0 or room <= 0:
        return None
    return ReadAhead(parts, min(needed, room))


def parts_of(model: Any, files: Sequence[Path]) -> list[Part]:
    """What of its files a MODEL still has to read: all, or without the layers that are copied where there is one."""
    layers = list(model.model.modules())
    if len(files) > 1 or not any(is_copied(layer) for layer in layers):  # marks do not say which file it is
        return [Part(file, 0, file.stat().st_size) for file in files]
    read = [tensor for layer in layers if not is_copied(layer) for tensor in plain_parameters(layer, recurse=False)]
    marks = [getattr(tensor.untyped_storage(), SLICE, None) for tensor in read]
    places = [(mark.offset, mark.size) for mark in marks if mark is not None]
    return [part for file in files for part in joined(file, places)]


def is_copied(layer: torch.nn.Module) -> bool:
    """True if Dynamic VRAM holds a pinned copy of its weights."""
    pins = layer.__dict__.get("_pins") or {}
    return any("pin" in pins.get(kind, {}) for kind in COPIES)


def joined(file: Path, places: Iterable[tuple[int, int]]) -> list[Part]:
    """Places (start, size) in any order -> parts in order, small gaps read along."""
    parts: list[Part] = []
    for start, size in sorted(places):
        last = parts[-1] if parts else None
        if last is not None and start - (last.start + last.size) <= GAP:
            start, size = last.start, max(last.size, start + size - last.start)
            parts.pop()
        parts.append(Part(file, start, size))
    return parts


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


def plain_parameters(module: torch.nn.Module, *, recurse: bool = True) -> list[Any]:
    """The tensors that hold the parameters: of a quantised one, those within it."""
    return [getattr(parameter, "_qdata", parameter) for parameter in module.parameters(recurse)]
