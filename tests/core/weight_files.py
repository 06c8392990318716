"""Files for the weights tests: safetensors with real names and sizes whose data are a hole in the file."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

SHAPES = Path(__file__).parents[1] / "shapes"
SIZE = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U8": 1, "I8": 1}


def shapes_of(name: str) -> dict[str, list[int]]:
    return json.loads((SHAPES / f"{name}.json").read_text())["shapes"]


def header_bytes(tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The first bytes of a safetensors file, and the table's own length in front."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, (dtype, shape) in tensors.items():
        size = SIZE[dtype]
        for axis in shape:
            size *= axis
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(table).encode()
    return struct.pack("<Q", len(raw)) + raw


def data_size(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> int:
    total = 0
    for dtype, shape in tensors.values():
        size = SIZE[dtype]
        for axis in shape:
            size *= axis
        total += size
    return total


def write_hollow(
    path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> Path:
    """A valid file of full size that takes a few blocks on disk."""
    start = header_bytes(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + data_size(tensors))
    return path


def write_model(path: Path, shapes: str, dtype: str = "BF16", prefix: str = "") -> Path:
    """A model as published; beside the official text encoder lies its tokenizer."""
    if shapes == "umt5_xxl":
        path.with_suffix(".model").touch()
    return write_hollow(path, {prefix + name: (dtype, shape) for name, shape in shapes_of(shapes).items()})
