"""Tells what a file is by its first bytes, and reads the header of those that hold weights.

A new container is one row in `READERS` and one in `SIGNATURES`. Pickles are recognised and never opened: reading one
can run code.
"""

from __future__ import annotations

import json
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path, PurePath

from ..errors import WeightsFileError
from .gguf import read_gguf
from .header import DOWNLOAD_AGAIN, LENGTH_BYTES, Header, TensorEntry, read_safetensors
from .published import instead_of

PEEK = 512  # bytes
INDEX = ".safetensors.index.json"
MAX_SHARDS = 1000
SHOWN = 8  # names in an error
# Parts of a model with an index: those of transformers and diffusers, and those that LightX2V's converter writes.
PART = re.compile(r"(-\d{5}-of-(?P<of>\d{5})|[/\\](non_block|block_\d+)|_part\d+)\.safetensors$")
FORMAT_LIMIT = 100_000_000  # bytes; longest header that the safetensors library writes
THE_FILE_ITSELF = "Download the file itself (its download button or 'resolve' link), not the page that shows it"

SIGNATURES: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("gguf", (b"GGUF",)),
    ("zip", (b"PK\x03\x04", b"PK\x05\x06")),
    ("archive", (b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")),
    ("pickle", (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")),
    ("lfs", (b"version https://git-lfs",)),
)

REFUSALS: dict[str, tuple[str, str]] = {  # container: (what it is, what to do; "": published.py knows the file)
    "missing": ("nothing under this name", "Check the name and the folder"),
    "special": ("a device or pipe, not a file", "Give a regular file"),
    "empty": ("an empty file (0 bytes)", DOWNLOAD_AGAIN),
    "zeros": ("only zero bytes at its start: a download that never finished", DOWNLOAD_AGAIN),
    "web page": ("a web page", THE_FILE_ITSELF),
    "lfs": ("a git-lfs pointer, not the weights", "Run `git lfs pull` in its folder, or download the file itself"),
    "zip": ("a zip archive, as PyTorch writes pickles (.pt, .pth, .ckpt, .bin)", ""),
    "archive": ("a packed archive", "Unpack it and give the .safetensors file inside"),
    "pickle": ("a Python pickle (.pt, .pth, .ckpt, .bin)", ""),
    "json": (
        "a JSON text",
        "Give the .safetensors file beside it, or the folder if this is the index of several; download it again if it "
        "should be the weights",
    ),
    "text": ("a text", THE_FILE_ITSELF),
    "unknown": ("no format that holds weights", DOWNLOAD_AGAIN),
}

READERS: dict[str, Callable[[Path, int], Header]] = {
    "safetensors": read_safetensors,
    "gguf": read_gguf,
    "folder": lambda path, _: read_folder(path),
}


def container_of(path: Path) -> tuple[str, int]:
    """Returns (container, size in bytes): a key of `READERS` or `REFUSALS`; reads at most PEEK bytes.

    Raises:
        WeightsFileError: the operating system refuses to read the file.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return "folder", 0
        if not stat.S_ISREG(status.st_mode):
            return "special", 0
        with path.open("rb") as file:
            return _kind_of(file.read(PEEK)), status.st_size
    except (FileNotFoundError, NotADirectoryError):
        return "missing", 0
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise WeightsFileError(
            "The weights file cannot be read",
            where=repr(str(path)),
            found=getattr(error, "strerror", None) or str(error),
            remedy="Check that the file exists and that ComfyUI may read it",
        ) from None


def read_header(path: str | Path) -> Header:
    """Returns the header of a weights file in any container that the pack reads.

    Raises:
        WeightsFileError: it is something else (web page, git-lfs pointer, pickle...), cut off, or damaged.
    """
    path = Path(path).absolute()
    container, size = container_of(path)
    reader = READERS.get(container)
    if reader is not None:
        return reader(path, size)
    found, remedy = REFUSALS[container]
    remedy = remedy or instead_of(path)
    raise WeightsFileError("This is no weights file", where=repr(str(path)), found=found, remedy=remedy)


def refuse_part(path: Path) -> None:
    """Raises:
    WeightsFileError: the file is one part of a model in several files.
    """
    if not (name := PART.search(str(path))):
        return
    known = [index for index in path.parent.glob("*" + INDEX) if path in _indexed(index)]
    parts = len(_indexed(known[0])) if known else int(name["of"] or 1)
    if parts > 1:
        folder = repr(str(path.parent))
        raise WeightsFileError(
            "This file is one part of a model",
            where=repr(str(path)),
            found=f"one of {parts} files",
            remedy=f"Give their folder, {folder}"
            if known
            else f"Put the other parts and their index into {folder}, and give that folder",
        )


def read_folder(path: Path) -> Header:
    """Returns the headers of a folder's weights as one: what its index lists, else its only safetensors file.

    Raises:
        WeightsFileError: a listed file is missing or damaged, or the folder holds no weights or several without index.
    """
    indices = sorted(path.glob("*" + INDEX))
    if len(indices) == 1:
        files = _indexed(indices[0])
    else:
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            inside = sorted(index.parent.name for index in path.glob("*/*" + INDEX))[:SHOWN]
            raise WeightsFileError(
                "This folder is no model",
                where=repr(str(path)),
                found=f"{len(files)} .safetensors files and {len(indices)} indices (*{INDEX})",
                remedy=f"Give one of the folders in it: {', '.join(inside)}"
                if inside
                else "Give a weights file, or a folder with all parts of one model and its index",
            )
        refuse_part(files[0])
    tensors: dict[str, TensorEntry] = {}
    metadata: dict[str, str] = {}
    for file in files:
        header = read_header(file)
        if twice := tensors.keys() & header.tensors.keys():
            raise WeightsFileError(
                "The shards of this model do not fit together",
                where=repr(str(file)),
                found=f"the tensor {min(twice)[:60]!r} in two of them",
                remedy=DOWNLOAD_AGAIN,
            )
        tensors |= header.tensors
        metadata |= header.metadata
    return Header(path, tensors, metadata, "folder", tuple(files))


def _indexed(index: Path) -> list[Path]:
    """The shards that an index lists: files beside it, by their plain names."""
    try:
        if index.stat().st_size > FORMAT_LIMIT:
            raise ValueError("too large")
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if not names or len(names) > MAX_SHARDS or any(PurePath(name).name != name for name in names):
            raise ValueError("names of other folders")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise WeightsFileError(
            "The index of this folder is damaged", where=repr(str(index)), remedy=DOWNLOAD_AGAIN
        ) from None
    for name in names:
        if not (index.parent / name).is_file():
            raise WeightsFileError(
                "A shard of this model is missing",
                where=repr(str(index.parent)),
                found=f"no {name}",
                expected=f"{len(names)} files, as {index.name} lists them",
                remedy="Download the missing file into the folder",
            )
    return [index.parent / name for name in names]


def _kind_of(start: bytes) -> str:
    if not start:
        return "empty"
    if _looks_like_safetensors(start):
        return "safetensors"
    for kind, signatures in SIGNATURES:
        if start.startswith(signatures):
            return kind
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body", b"<script")):
        return "web page"
    if text.startswith((b"{", b"[")):
        return "json"
    if not start.strip(b"\0"):
        return "zeros"
    return "text" if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in start) else "unknown"


def _looks_like_safetensors(start: bytes) -> bool:
    """A plausible header length, then the brace of a JSON table or, in a cut-off file, nothing."""
    if len(start) < LENGTH_BYTES:
        return False
    length = struct.unpack("<Q", start[:LENGTH_BYTES])[0]
    return 2 <= length <= FORMAT_LIMIT and start[LENGTH_BYTES : LENGTH_BYTES + 1] in (b"{", b"")
