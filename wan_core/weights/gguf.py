"""Reads the header of a GGUF file, strictly: every number in it is checked before it is believed.

Nothing is allocated from a length that the file states; what the header says must lie inside the file. Metadata are
inert: only numbers, flags and text come out, arrays are left where they are until asked for.
Format: ggml-org/ggml docs/gguf.md, versions 2 and 3, little endian.
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import WeightsFileError
from .ggml_types import BY_NAME, OTHERS, TYPES, GgmlType
from .header import DOWNLOAD_AGAIN, LENGTH_BYTES, Header, TensorEntry

MAGIC = b"GGUF"
MAX_HEADER = 100 * 2**20  # bytes; a tokenizer of 256,000 pieces takes about 8 MiB
MAX_ENTRIES = 2**16  # tensors, and metadata keys
MAX_NAME = 1024  # bytes
MAX_DIMENSIONS = 5  # four by the format; patched tools write the 5-D patch embedding too

KERNELS = (  # of Wan's 3-D convolutions: frames, rows, columns
    ("patch_embedding.weight", (1, 2, 2)),
    ("cond_encoder.weight", (1, 2, 2)),
    ("frame_packer.proj.weight", (1, 2, 2)),
    ("frame_packer.proj_2x.weight", (2, 4, 4)),
    ("frame_packer.proj_4x.weight", (4, 8, 8)),
)

STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Scalar = int | float | bool | str


@dataclass(frozen=True)
class GgufArray:
    """An array of the metadata, still in the file: element type, count, first byte."""

    kind: int
    count: int
    start: int


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: torch's axis order, absolute first byte, byte count."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    start: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file holds."""

    path: Path
    version: int
    metadata: dict[str, Scalar | GgufArray]
    tensors: dict[str, GgufTensor] = field(repr=False)


class _BrokenHeaderError(Exception):
    """What is wrong at which byte; turned into a WeightsFileError with the path."""


class _CutOffError(_BrokenHeaderError):
    """How many bytes are missing; at least so many where the header itself is cut off."""


class _UnreadTypeError(_BrokenHeaderError):
    """Which type that is known and not read is in which tensor."""


class _Cursor:
    """Walks over bytes and refuses to leave them."""

    def __init__(self, data: mmap.mmap | bytes, size: int) -> None:
        self.data, self.size, self.limit, self.at = data, size, min(size, MAX_HEADER), 0

    def take(self, count: int, what: str) -> int:
        """Moves past `count` bytes; returns where they start."""
        start = self.at
        if start + count > self.size:
            raise _CutOffError(f"at least {start + count - self.size} bytes missing, for {what} at byte {start}")
        if start + count > self.limit:
            raise _BrokenHeaderError(f"{what} at byte {start} needs {count} bytes, a header has {self.limit} at most")
        self.at = start + count
        return start

    def number(self, code: str, what: str) -> int | float | bool:
        size = struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, self.data, self.take(size, what))[0]

    def count(self, what: str, most: int) -> int:
        value = int(self.number("Q", what))
        if value > most:
            raise _BrokenHeaderError(f"{what} is {value}, the limit is {most}")
        return value

    def fitting(self, what: str, size: int) -> int:
        """The number of things of at least `size` bytes each that come next."""
        value, start = int(self.number("Q", f"length of {what}")), self.at
        self.take(value * size, what)
        self.at = start
        return value

    def text(self, what: str, most: int) -> str:
        size = self.count(f"length of {what}", most)
        start = self.take(size, what)
        try:
            return bytes(self.data[start : start + size]).decode()
        except UnicodeDecodeError as error:
            raise _BrokenHeaderError(f"{what} at byte {start} is not UTF-8") from error


def _array(cursor: _Cursor, what: str) -> GgufArray:
    kind = int(cursor.number("I", what))
    if kind == STRING:
        count = cursor.fitting(what, LENGTH_BYTES)
        start = cursor.at
        for _ in range(count):
            cursor.take(cursor.fitting(f"a text in {what}", 1), what)
        return GgufArray(kind, count, start)
    if kind not in SCALARS:
        raise _BrokenHeaderError(f"{what} holds values of type {kind}")
    size = struct.calcsize("<" + SCALARS[kind])
    count = cursor.fitting(what, size)
    return GgufArray(kind, count, cursor.take(count * size, what))


def _metadata(cursor: _Cursor, count: int) -> dict[str, Scalar | GgufArray]:
    out: dict[str, Scalar | GgufArray] = {}
    for _ in range(count):
        key = cursor.text("a metadata key", MAX_NAME)
        if key in out:
            raise _BrokenHeaderError(f"metadata key {key!r} stands twice")
        kind = int(cursor.number("I", f"type of {key!r}"))
        if kind == STRING:
            out[key] = cursor.text(repr(key), MAX_HEADER)
        elif kind == ARRAY:
            out[key] = _array(cursor, repr(key))
        elif kind in SCALARS:
            out[key] = cursor.number(SCALARS[kind], repr(key))
        else:
            raise _BrokenHeaderError(f"metadata {key!r} has type {kind}")
    return out


def _tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], GgmlType, int]:
    """Returns name, shape in torch's order, type and offset into the data."""
    name = cursor.text("a tensor name", MAX_NAME)
    dimensions = int(cursor.number("I", f"dimensions of {name!r}"))
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise _BrokenHeaderError(f"tensor {name!r} has {dimensions} dimensions")
    sizes = [int(cursor.number("Q", f"shape of {name!r}")) for _ in range(dimensions)]
    number = int(cursor.number("I", f"type of {name!r}"))
    if number in OTHERS:
        raise _UnreadTypeError(f"{OTHERS[number]} in tensor {name!r}")
    if number not in TYPES:
        raise _BrokenHeaderError(f"tensor {name!r} has type number {number}, which is none")
    kind = TYPES[number]
    if min(sizes) < 1 or sizes[0] % kind.elements:
        raise _BrokenHeaderError(f"tensor {name!r} of type {kind.name} has shape {sizes}")
    return name, tuple(reversed(sizes)), kind, int(cursor.number("Q", f"offset of {name!r}"))


def _tensors(cursor: _Cursor, count: int, alignment: int, size: int) -> dict[str, GgufTensor]:
    """size: bytes of the whole file."""
    raw = [_tensor(cursor) for _ in range(count)]
    data = -(-cursor.at // alignment) * alignment
    out: dict[str, GgufTensor] = {}
    for name, shape, kind, offset in raw:
        nbytes = math.prod(shape) // kind.elements * kind.nbytes
        if name in out:
            raise _BrokenHeaderError(f"tensor {name!r} stands twice")
        if offset % alignment:
            raise _BrokenHeaderError(f"tensor {name!r} starts at {offset}, not a multiple of {alignment}")
        out[name] = GgufTensor(name, _as_in_the_model(name, shape), kind, data + offset, nbytes)
    ordered = sorted(out.values(), key=lambda tensor: tensor.start)
    for before, after in itertools.pairwise(ordered):
        if before.start + before.nbytes > after.start:
            raise _BrokenHeaderError(f"tensors {before.name!r} and {after.name!r} overlap")
    if ordered and (end := ordered[-1].start + ordered[-1].nbytes) > size:
        raise _CutOffError(f"{end - size} bytes missing")
    return out


def _as_in_the_model(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The format ends at four dimensions, so converters drop or join axes of 3-D convolutions: they get them back."""
    kernel = next((kernel for end, kernel in KERNELS if name.endswith(end)), None)
    inputs, rest = divmod(math.prod(shape[1:]), math.prod(kernel)) if kernel else (0, 1)
    return shape if kernel is None or rest or len(shape) in (1, 5) else (shape[0], inputs, *kernel)


def _parse(data: mmap.mmap | bytes, size: int, path: Path) -> GgufHeader:
    cursor = _Cursor(data, size)
    if data[:4] != MAGIC:
        raise _BrokenHeaderError(f"it starts with {bytes(data[:4])!r}, not GGUF")
    cursor.take(4, "the magic")
    version = int(cursor.number("I", "the version"))
    if version not in (2, 3):
        raise _BrokenHeaderError(f"version {version}; 2 and 3 are known")
    tensor_count = cursor.count("the number of tensors", MAX_ENTRIES)
    metadata = _metadata(cursor, cursor.count("the number of metadata keys", MAX_ENTRIES))
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment > 2**16 or alignment & (alignment - 1):
        raise _BrokenHeaderError(f"general.alignment is {alignment!r}")
    return GgufHeader(path, version, metadata, _tensors(cursor, tensor_count, alignment, size))


def read_header(path: str | Path) -> GgufHeader:
    """Reads and checks the header; touches no tensor.

    Raises:
        WeightsFileError: no GGUF file, or one whose header is broken or runs past the end of the file.
    """
    path = Path(path).absolute()
    with path.open("rb") as file:
        size = path.stat().st_size
        if size == 0:
            raise WeightsFileError("This file is empty", where=repr(str(path)), remedy=DOWNLOAD_AGAIN)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(data, size, path)
            except _UnreadTypeError as unread:
                raise WeightsFileError(
                    "The quantisation of this GGUF file is not one that the pack reads",
                    where=repr(str(path)),
                    found=str(unread),
                    expected=f"one of {', '.join(BY_NAME)}",
                    remedy="Take another file of this model, such as Q4_K_M, Q4_0 or Q8_0",
                ) from None
            except _BrokenHeaderError as broken:
                what = f"The GGUF file is {'cut off' if isinstance(broken, _CutOffError) else 'damaged'}"
                raise WeightsFileError(what, where=repr(str(path)), found=str(broken), remedy=DOWNLOAD_AGAIN) from None


def strings(header: GgufHeader, key: str) -> list[str]:
    """Reads an array of text from the metadata; bytes that are no UTF-8 come as replacement characters.

    Raises:
        KeyError: no such key, or it holds something else.
    """
    array = header.metadata[key]
    if not isinstance(array, GgufArray) or array.kind != STRING:
        raise KeyError(f"{key} is no array of text")
    out = []
    with header.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = array.start
        for _ in range(array.count):
            (length,) = struct.unpack_from("<Q", data, at)
            out.append(data[at + 8 : at + 8 + length].decode(errors="replace"))
            at += 8 + length
    return out


def numbers(header: GgufHeader, key: str) -> tuple[int | float | bool, ...]:
    """Reads an array of numbers from the metadata.

    Raises:
        KeyError: no such key, or it holds something else.
    """
    array = header.metadata[key]
    if not isinstance(array, GgufArray) or array.kind == STRING:
        raise KeyError(f"{key} is no array of numbers")
    form = f"<{array.count}{SCALARS[array.kind]}"
    with header.path.open("rb") as file:
        file.seek(array.start)
        return struct.unpack(form, file.read(struct.calcsize(form)))


def read_gguf(path: Path, size: int) -> Header:
    """Returns the header in the form of every container, shapes as the model has them.

    Raises:
        WeightsFileError: as read_header.
    """
    header = read_header(path)
    tensors = {
        name: TensorEntry(tensor.kind.name, tensor.shape, tensor.start, tensor.start + tensor.nbytes)
        for name, tensor in header.tensors.items()
    }
    left = (str, GgufArray)  # arrays are named only, and stay in the file
    texts = {
        key: value if isinstance(value, str) else ""
        for key, value in header.metadata.items()
        if isinstance(value, left)
    }
    return Header(path, tensors, texts, "gguf")
