"""Before the switch the low expert's file is in the page cache and its conditionings are prepared; nothing stays."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.memory_management
from wancore.nodes.bridge import read_ahead
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.schedule import with_shift
from wancore.pocket import family
from wancore.wan_core.weights import gguf

from .native_wan import SHIFT
from .quantised_files import write_format
from .test_guider import StopHereError, dual, pair, record, run

__all__ = ["pair"]
pytestmark = pytest.mark.usefixtures("worker")
POSITIVE, NEGATIVE = (
    [[torch.randn(1, 8, family.TEXT_DIM, generator=torch.Generator().manual_seed(i)), {}]] for i in (1, 2)
)


def resident(path: Path) -> float:
    """Share of a file's pages that are in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        pages = -(-len(mapping) // mmap.PAGESIZE)
        seen = (ctypes.c_ubyte * pages)()
        view = np.frombuffer(mapping, np.uint8)
        address, size = ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapping))
        assert ctypes.CDLL(None, use_errno=True).mincore(address, size, seen) == 0
        del view
        return sum(page & 1 for page in seen) / pages


def evict(path: Path) -> None:
    """Out of the page cache, and first out of what the model has mapped of it, which holds it there."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path.resolve())):
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED) == 0
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def files(tmp_path):
    """The two experts as GGUF, whose weights stay in their files; the low one's is out of the page cache."""
    if sys.platform != "linux":
        pytest.skip("the page cache is looked at by Linux's mincore")
    high, low = (Path(write_format(tmp_path / name, "Q8_0")) for name in ("high", "low"))
    models = [with_shift(load_model(str(path)), SHIFT) for path in (high, low)]
    (tmp_path / "plain").write_bytes(bytes(2**20))
    for path in (low, tmp_path / "plain"):
        evict(path)
    if resident(tmp_path / "plain"):
        pytest.skip("this file system keeps its files in memory")
    assert resident(low) == 0
    return low, models


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "wan-read-ahead"]


def test_the_low_file_is_in_memory_before_the_switch(files):
    low, models = files
    guider, seen = dual(*models, conds=(POSITIVE, NEGATIVE), cfg=(1.0, 1.0)), []

    def look(step, *_):
        if guider.other.read_ahead is not None:
            guider.other.read_ahead.wait()
            seen.append((step, resident(low), guider.other.joined))

    out = run(guider, callback=look)
    assert seen == [(0, 1.0, False), (1, 1.0, False)]
    assert not threads() and guider.other.read_ahead is None
    assert torch.equal(run(guider), out)


def test_a_stopped_run_stops_reading(files):
    _, models = files
    guider = dual(*models, conds=(POSITIVE, NEGATIVE), cfg=(1.0, 1.0))

    def interrupt(*_):
        assert guider.other.read_ahead is not None
        raise StopHereError

    with pytest.raises(StopHereError):
        run(guider, callback=interrupt)
    assert not threads() and guider.other.read_ahead is None


def test_only_where_it_helps_and_has_room(files, monkeypatch):
    low, (high, model) = files
    reader = read_ahead.read_ahead_of(model, high)
    assert reader is not None and reader.left == low.stat().st_size
    monkeypatch.setattr(read_ahead, "SPARE", 2**62)
    assert read_ahead.read_ahead_of(model, high) is None
    monkeypatch.undo()
    run(dual(model, None, conds=(POSITIVE, NEGATIVE)))
    assert read_ahead.read_ahead_of(model, high) is None, "its weights are loaded"
    low.unlink()
    assert read_ahead.files_of(model) == []


def copied(model, path: Path, share: float) -> tuple[list, list]:
    """Marks a model as Dynamic VRAM does when it holds pinned copies of its first layers; (copied, other) places."""
    header, layers = gguf.read_header(path), [layer for layer in model.model.modules() if layer._parameters]
    places = {tensor.start: (tensor.start, tensor.nbytes) for tensor in header.tensors.values()}
    base = min(tensor.data_ptr() for tensor in read_ahead.plain_parameters(model.model)) - min(places)
    found: tuple[list, list] = [], []
    for number, layer in enumerate(layers):
        is_copied = number < share * len(layers)
        if is_copied:
            layer.__dict__["_pins"] = {"weights": {}, "weights-loaded": {"pin": torch.empty(0), "registered": True}}
        else:
            layer.__dict__["_pins"] = {"weights": {"registered": False}}  # given up again
        for tensor in read_ahead.plain_parameters(layer, recurse=False):
            place = places.get(tensor.data_ptr() - base)
            if place is not None:  # others were decoded when the file was read
                mark = comfy.memory_management.TensorFileSlice(0, None, *place)
                tensor.untyped_storage()._comfy_tensor_file_slice = mark
                found[not is_copied].append(place)
    return found


def test_what_is_copied_is_not_read_again(files, monkeypatch):
    low, (high, model) = files
    monkeypatch.setattr(read_ahead, "GAP", 0)
    held, others = copied(model, low, 0.5)
    assert held and others
    reader = read_ahead.read_ahead_of(model, high)
    assert reader is not None and reader.left == sum(size for _, size in others)
    covered = [(part.start, part.start + part.size) for part in reader.parts]
    assert all(any(a <= start and start + size <= b for a, b in covered) for start, size in others)
    reader.start()
    reader.wait()
    assert reader.done == sum(size for _, size in others) and reader.left == 0
    copied(model, low, 1.0)
    assert read_ahead.read_ahead_of(model, high) is None, "nothing is left to read"


def test_a_running_model_that_is_copied_needs_no_room_for_its_file(files, monkeypatch):
    low, (high, model) = files
    (path,) = read_ahead.files_of(high)
    free = read_ahead.SPARE + path.stat().st_size // 2
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    assert read_ahead.read_ahead_of(model, high) is None
    copied(high, path, 1.0)
    reader = read_ahead.read_ahead_of(model, high)
    assert reader is not None and reader.left == min(path.stat().st_size // 2, low.stat().st_size)


def test_places_that_lie_together_are_one_part(tmp_path):
    places = [(100, 10), (0, 50), (50, 20), (200, 5), (60, 4)]
    parts = read_ahead.joined(tmp_path, places)
    assert parts == [read_ahead.Part(tmp_path, 0, 205)]  # gaps of a few bytes
    far = read_ahead.joined(tmp_path, [(2 * read_ahead.GAP, 7), (0, 5)])
    assert far == [read_ahead.Part(tmp_path, 0, 5), read_ahead.Part(tmp_path, 2 * read_ahead.GAP, 7)]


def test_reading_ends_within_a_chunk(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(4096 * read_ahead.CHUNK)  # a hole: costs no disk
    whole = [read_ahead.Part(path, 0, 4096 * read_ahead.CHUNK)]
    reader = read_ahead.ReadAhead(whole, 3 * read_ahead.CHUNK)
    reader.start()
    reader.wait()
    assert reader.done == 3 * read_ahead.CHUNK
    reader = read_ahead.ReadAhead(whole, 4096 * read_ahead.CHUNK)
    reader.start()
    reader.stop()
    assert reader.done < 4096 * read_ahead.CHUNK and not threads()
    missing = read_ahead.ReadAhead([read_ahead.Part(tmp_path / "none", 0, 1), *whole], read_ahead.CHUNK)
    missing.start()
    missing.wait()
    assert missing.done == read_ahead.CHUNK


@pytest.mark.parametrize("shared", [False, True], ids=["two modules", "clones"])
def test_conditionings_are_prepared_before_the_switch(pair, shared, monkeypatch):
    """And with the low model's own sampling, whose patch is not in its module yet."""
    high, low = pair[0], pair[0].clone() if shared else pair[1]
    calls, prepared = [], []
    native = type(low.model).extra_conds

    def note(self, **kwargs):
        if self is low.model:
            prepared.append(len(calls))
        return native(self, **kwargs)

    monkeypatch.setattr(type(low.model), "extra_conds", note)
    run(dual(record(high, calls, "high"), record(low, calls, "low")))
    high_calls = sum(tag == "high" for tag, *_ in calls)
    assert prepared == ([0, 0, high_calls, high_calls] if shared else [0, 0])
