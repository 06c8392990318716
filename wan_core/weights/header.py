"""Reads the header of a safetensors file: names, shapes, types and metadata, never a tensor.

Format: https://github.com/huggingface/safetensors#format (8 bytes length, JSON, data without gaps).
Stricter than the library where a damaged file would pass: duplicate names, gaps, trailing bytes and odd numbers are
refused here, with the file's path and the number of missing bytes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ..errors import WeightsFileError

LENGTH_BYTES = 8
MAX_HEADER = 32 * 2**20  # bytes; published Wan headers stay below 1 MiB, notes of LoRA trainers add a few
MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_AXIS = 2**40
BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
}  # fmt: skip
DOWNLOAD_AGAIN = "Download the file again and compare its size with the one on the download page"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header describes it; `start` and `end` are bytes after the header."""

    dtype: str  # safetensors name: "BF16", "F8_E4M3"...
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a weights file says about itself, whatever its container."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str] = field(default_factory=dict)
    container: str = "safetensors"  # or "gguf", "folder"
    files: tuple[Path, ...] = ()  # of a folder: the files that hold the tensors

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.tensors.items()}


def read_safetensors(path: Path, size: int) -> Header:
    """Returns the header of a safetensors file of `size` bytes.

    Raises:
        WeightsFileError: the header breaks the format, or the data are shorter or longer than it says.
    """
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(LENGTH_BYTES))[0]
        if length > MAX_HEADER:
            _damaged(path, f"a header of {length} bytes, the limit is {MAX_HEADER}")
        if LENGTH_BYTES + length > size:
            _truncated(path, LENGTH_BYTES + length - size)
        raw = file.read(length)
    content = _parse(path, raw)
    metadata = content.pop("__metadata__", {})
    if type(metadata) is not dict or any(type(value) is not str for value in metadata.values()):
        _damaged(path, "metadata that are not texts")
    if len(content) > MAX_TENSORS:
        _damaged(path, f"{len(content)} tensors, the limit is {MAX_TENSORS}")
    tensors = {name: _entry(path, name, value) for name, value in content.items()}
    _check_data(path, tensors, size - LENGTH_BYTES - length)
    return Header(path, tensors, metadata)


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are both ValueErrors
        raise _error(path, f"a header that is not valid JSON ({str(error)[:80]})") from None
    if type(content) is not dict:
        _damaged(path, "a header that is not a table of tensors")
    return content


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for key, value in pairs:
        if key in table:
            raise ValueError(f"the name {key[:60]!r} occurs twice")
        table[key] = value
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _entry(path: Path, name: str, value: Any) -> TensorEntry:
    if type(value) is not dict or value.keys() != {"dtype", "shape", "data_offsets"}:
        _damaged(path, f"no type, shape and place for the tensor {name[:60]!r}")
    dtype, shape, place = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or dtype not in BITS:
        _damaged(path, f"the unknown type {str(dtype)[:20]!r} of tensor {name[:60]!r}")
    if not _numbers(shape, MAX_AXIS) or len(shape) > MAX_RANK:
        _damaged(path, f"an impossible shape of tensor {name[:60]!r}")
    if not _numbers(place, 2**63) or len(place) != 2 or place[0] > place[1]:
        _damaged(path, f"an impossible place of tensor {name[:60]!r}")
    entry = TensorEntry(dtype, tuple(shape), place[0], place[1])
    if entry.count * BITS[dtype] != (entry.end - entry.start) * 8:
        _damaged(path, f"{entry.end - entry.start} bytes for tensor {name[:60]!r} of shape {shape} and type {dtype}")
    return entry


def _numbers(value: Any, limit: int) -> bool:
    """A list of whole numbers from 0 to the limit; True and 1.0 are none."""
    return type(value) is list and all(type(number) is int and 0 <= number <= limit for number in value)


def _check_data(path: Path, tensors: Mapping[str, TensorEntry], available: int) -> None:
    """The tensors lie one after another, from byte 0 to the end of the file."""
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            _damaged(path, f"a gap or an overlap before tensor {name[:60]!r}")
        position = entry.end
    if position > available:
        _truncated(path, position - available)
    if position < available:
        _damaged(path, f"{available - position} bytes after the last tensor")


def _error(path: Path, found: str) -> WeightsFileError:
    return WeightsFileError("The weights file is damaged", where=repr(str(path)), found=found, remedy=DOWNLOAD_AGAIN)


def _damaged(path: Path, found: str) -> NoReturn:
    raise _error(path, found)


def _truncated(path: Path, missing: int) -> NoReturn:
    raise WeightsFileError(
        "The weights file is cut off", where=repr(str(path)), found=f"{missing} bytes missing", remedy=DOWNLOAD_AGAIN
    )
