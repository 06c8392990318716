"""A sentencepiece model out of the vocabulary that GGUF text encoders carry in their metadata.

GGUF keeps the pieces, their scores and types, and a few flags, of what was once a sentencepiece file. The message is
written here by hand: ten fields do not need a protobuf library.
Format: google/sentencepiece src/sentencepiece_model.proto (field numbers), protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import WeightsFileError
from ..weights import gguf
from ..weights.vocabulary import GGUF_KEY as KEY

UNIGRAM = 1  # trainer_spec.model_type
BYTE = 6  # type of a piece that stands for one byte


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def sentencepiece_model(
    pieces: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    *,
    ids: Mapping[str, int],
    charsmap: bytes = b"",
    add_space: bool = True,
    remove_spaces: bool = True,
) -> bytes:
    """Returns the serialised model. `ids`: "unk", "eos", "pad"; `charsmap`: the compiled normalisation."""
    out = bytearray()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        entry = _bytes(1, piece.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _number(3, kind)
        out += _bytes(1, entry)
    trainer = _number(3, UNIGRAM) + _number(4, len(pieces)) + _number(35, int(BYTE in types))
    no_bos = (1 << 64) - 1  # -1: there is no such piece
    trainer += _number(40, ids["unk"]) + _number(41, no_bos) + _number(42, ids["eos"]) + _number(43, ids["pad"])
    normalizer = _bytes(1, b"identity" if not charsmap else b"nmt_nfkc")
    if charsmap:
        normalizer += _bytes(2, charsmap)
    normalizer += _number(3, int(add_space)) + _number(4, int(remove_spaces)) + _number(5, 1)
    return bytes(out + _bytes(2, trainer) + _bytes(3, normalizer))


def tokenizer_of(path: str | Path) -> bytes:
    """Rebuilds the tokenizer of a GGUF text encoder.

    Raises:
        WeightsFileError: the file has no whole vocabulary.
    """
    header = gguf.read_header(path)
    metadata = header.metadata
    try:
        pieces = gguf.strings(header, KEY + "tokens")
        scores = [float(score) for score in gguf.numbers(header, KEY + "scores")]
        types = [int(kind) for kind in gguf.numbers(header, KEY + "token_type")]
        charsmap = b""
        if KEY + "precompiled_charsmap" in metadata:
            charsmap = bytes(int(value) & 0xFF for value in gguf.numbers(header, KEY + "precompiled_charsmap"))
        ids = {
            "unk": _id(metadata, "unknown_token_id", 2),
            "eos": _id(metadata, "eos_token_id", 1),
            "pad": _id(metadata, "padding_token_id", 0),
        }
        return sentencepiece_model(
            pieces,
            scores,
            types,
            ids=ids,
            charsmap=charsmap,
            add_space=bool(metadata.get(KEY + "add_space_prefix", True)),
            remove_spaces=bool(metadata.get(KEY + "remove_extra_whitespaces", True)),
        )
    except (KeyError, ValueError, struct.error, OverflowError) as error:
        raise WeightsFileError(
            "This text encoder has no whole tokenizer",
            where=repr(str(path)),
            found=f"no usable {error}",
            remedy="Take umt5-xxl-encoder-Q8_0.gguf, or umt5_xxl_fp8_e4m3fn_scaled.safetensors",
        ) from None


def _id(metadata: Mapping[str, object], name: str, otherwise: int) -> int:
    value = metadata.get(KEY + name, otherwise)
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(name)
    return value
