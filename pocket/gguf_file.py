"""Writes GGUF files: a header with metadata, a table of the tensors, and their bytes.

Format: ggml-org/ggml docs/gguf.md; wan_core/weights/gguf.py reads it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..wan_core.weights.ggml_types import BY_NAME, TYPES
from ..wan_core.weights.gguf import MAGIC
from .aside import written_aside

VERSION = 3
ALIGNMENT = 32  # bytes, of every tensor's beginning
UINT8, INT32, STRING, ARRAY = 0, 5, 8, 9  # kinds of metadata
NUMBERS = {kind.name: number for number, kind in TYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor of the table."""

    name: str
    shape: tuple[int, ...]  # at most four axes, as the format has them; rows are whole blocks
    kind: str  # of ggml_types.BY_NAME

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) // BY_NAME[self.kind].elements * BY_NAME[self.kind].nbytes


def text(value: str) -> bytes:
    """A string as metadata."""
    return struct.pack("<I", STRING) + _string(value)


def array(kind: int, code: str, values: Sequence[int] | bytes) -> bytes:
    """Numbers as metadata: their kind, and its letter in the module struct."""
    return struct.pack(f"<IIQ{len(values)}{code}", ARRAY, kind, len(values), *values)


def write(
    path: Path,
    metadata: Mapping[str, bytes],
    tensors: Sequence[Stored],
    fill: Callable[[BinaryIO, Stored], object],
    *,
    by: str = "",
) -> Path:
    """Writes a whole file or none, and returns its path; `fill` writes the bytes of one tensor after the other.

    `metadata` are values of `text` and `array`; `by` is that of written_aside.

    Raises:
        ValueError: a tensor got more or fewer bytes than its shape takes.
    """
    head = MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata))
    head += b"".join(_string(key) + value for key, value in metadata.items()) + _table(tensors)
    with written_aside(path, by) as part, part.open("wb") as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for tensor in tensors:
            start = file.tell()
            fill(file, tensor)
            if file.tell() - start != tensor.nbytes:
                raise ValueError(f"{tensor.name}: {file.tell() - start} bytes instead of {tensor.nbytes}")
            file.write(bytes(-tensor.nbytes % ALIGNMENT))
    return path


def _table(tensors: Sequence[Stored]) -> bytes:
    rows, offset = [], 0
    for tensor in tensors:
        sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        rows.append(_string(tensor.name) + sizes + struct.pack("<IQ", NUMBERS[tensor.kind], offset))
        offset += tensor.nbytes + -tensor.nbytes % ALIGNMENT
    return b"".join(rows)


def _string(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw
