"""The GGUF header reader: files of the `gguf` package read back, and headers that lie are refused at once."""

from __future__ import annotations

import random
import resource
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants
from wancore.wan_core.errors import WeightsFileError
from wancore.wan_core.weights import gguf
from wancore.wan_core.weights.ggml_types import BLOCK_TYPES, BY_NAME, OTHERS, TYPES


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "wan.gguf"
    writer = GGUFWriter(path, "wan")
    writer.add_array("tokenizer.ggml.tokens", ["<pad>", "</s>", "\u2581a"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, -2.0])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    weight = np.random.default_rng(0).standard_normal((6, 512), dtype=np.float32)
    writer.add_tensor("blocks.0.ffn.0.bias", weight[0])
    for kind in ("Q8_0", "Q4_0"):
        packed = quants.quantize(weight, GGMLQuantizationType[kind])
        writer.add_tensor(f"blocks.0.{kind}.weight", packed, raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_reference_writes(sample: Path) -> None:
    header = gguf.read_header(sample)
    assert header.metadata["general.architecture"] == "wan"
    assert gguf.strings(header, "tokenizer.ggml.tokens") == ["<pad>", "</s>", "\u2581a"]
    assert gguf.numbers(header, "tokenizer.ggml.scores") == (0.0, -1.5, -2.0)
    tensor = header.tensors["blocks.0.Q8_0.weight"]
    assert (tensor.shape, tensor.kind.name, tensor.nbytes) == ((6, 512), "Q8_0", 6 * 16 * 34)
    assert header.tensors["blocks.0.ffn.0.bias"].shape == (512,)


def test_every_truncation_is_refused(sample: Path, tmp_path: Path) -> None:
    whole = sample.read_bytes()
    header_end = min(tensor.start for tensor in gguf.read_header(sample).tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in [*range(1, header_end, 7), header_end, len(whole) - 33]:
        cut.write_bytes(whole[:length])
        with pytest.raises(WeightsFileError) as error:
            gguf.read_header(cut)
        assert error.value.where == repr(str(cut)) and error.value.remedy


def lie(body: bytes, tensors: int = 0, keys: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys) + body


def key(name: bytes, kind: int) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind)


def tensor(name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + axes + struct.pack("<IQ", kind, offset)


# The cases of llama.cpp's tests/test-gguf.cpp that must fail, and as many of our own.
LIES = {
    "array of 2**40 bytes": lie(key(b"a", 9) + struct.pack("<IQ", 0, 2**40)),
    "array of 2**62 texts": lie(key(b"a", 9) + struct.pack("<IQ", 8, 2**62)),
    "array in an array": lie(key(b"a", 9) + struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 9, 1)),
    "key of 2**63 bytes": lie(struct.pack("<Q", 2**63)),
    "unknown value type": lie(key(b"a", 77)),
    "2**60 tensors": lie(b"", tensors=2**60, keys=0),
    "2**60 keys": lie(b"", keys=2**60),
    "zero dimensions": lie(struct.pack("<Q", 1) + b"t" + struct.pack("<I", 0), tensors=1, keys=0),
    "shape that wraps": lie(
        struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 2**33, 2**33, 0, 0), tensors=1, keys=0
    ),
    "unknown tensor type": lie(struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 32, 999, 0), tensors=1, keys=0),
    "alignment 0": lie(key(b"general.alignment", 4) + struct.pack("<I", 0)),
    "version 9": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "little version 0": b"GGUF" + struct.pack("<IQQ", 0, 0, 0),
    "version 1": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "version 2**31": b"GGUF" + struct.pack("<IQQ", 2**31, 0, 0),
    "magic the other way round": b"FUGG" + struct.pack("<IQQ", 3, 0, 0),
    "ends after the magic": b"GGUF",
    "ends after the version": b"GGUF" + struct.pack("<I", 3),
    "ends before the number of keys": b"GGUF" + struct.pack("<IQ", 3, 1),
    "2**64 - 1 tensors": lie(b"", tensors=2**64 - 1, keys=0),
    "2**64 - 1 keys": lie(b"", keys=2**64 - 1),
    "a key too few": lie(key(b"a", 4) + struct.pack("<I", 1), keys=2),
    "a tensor too few": lie(tensor(), tensors=2, keys=0),
    "key longer than a key may be": lie(key(b"k" * 70_000, 4) + struct.pack("<I", 1)),
    "key that is no text": lie(key(b"\xff\xfe", 4) + struct.pack("<I", 1)),
    "key twice": lie((key(b"a", 4) + struct.pack("<I", 1)) * 2, keys=2),
    "value type 2**32 - 1": lie(key(b"a", 2**32 - 1)),
    "text longer than the file": lie(key(b"a", 8) + struct.pack("<Q", 2**20) + b"abc"),
    "array longer than a header may be": lie(key(b"a", 9) + struct.pack("<IQ", 0, gguf.MAX_HEADER)),
    "text of 2**64 - 1 bytes": lie(key(b"a", 8) + struct.pack("<Q", 2**64 - 1)),
    "text that is no text": lie(key(b"a", 8) + struct.pack("<Q", 2) + b"\xc3\x28"),
    "number that ends early": lie(key(b"a", 10) + b"\0\0\0"),
    "array of an unknown type": lie(key(b"a", 9) + struct.pack("<IQ", 99, 1)),
    "array of 2**61 numbers of 8 bytes": lie(key(b"a", 9) + struct.pack("<IQ", 12, 2**61)),
    "array of flags behind the end": lie(key(b"a", 9) + struct.pack("<IQ", 7, 100) + b"\1"),
    "array with a text behind the end": lie(key(b"a", 9) + struct.pack("<IQQ", 8, 1, 2**40)),
    "array of a million empty texts": lie(key(b"a", 9) + struct.pack("<IQ", 8, 10**6) + bytes(64)),
    "alignment 3": lie(key(b"general.alignment", 4) + struct.pack("<I", 3)),
    "alignment 2**31": lie(key(b"general.alignment", 4) + struct.pack("<I", 2**31)),
    "alignment as a text": lie(key(b"general.alignment", 8) + struct.pack("<Q", 2) + b"32"),
    "alignment as a fraction": lie(key(b"general.alignment", 6) + struct.pack("<f", 32.0)),
    "tensor name of 2**40 bytes": lie(struct.pack("<Q", 2**40), tensors=1, keys=0),
    "tensor name longer than one may be": lie(tensor(b"n" * 2000), tensors=1, keys=0),
    "tensor name that is no text": lie(tensor(b"\xff"), tensors=1, keys=0),
    "tensor twice": lie(tensor() * 2, tensors=2, keys=0) + bytes(256),
    "six dimensions": lie(tensor(shape=(2, 2, 2, 2, 2, 2)), tensors=1, keys=0),
    "2**32 - 1 dimensions": lie(struct.pack("<QsI", 1, b"t", 2**32 - 1), tensors=1, keys=0),
    "axis of nothing": lie(tensor(shape=(32, 0)), tensors=1, keys=0),
    "axis of 2**64 - 1": lie(tensor(shape=(2**64 - 1,)), tensors=1, keys=0),
    "rows that are no whole blocks": lie(tensor(shape=(33,), kind=8), tensors=1, keys=0) + bytes(256),
    "type that was taken out": lie(tensor(kind=4), tensors=1, keys=0) + bytes(256),
    "type 2**32 - 1": lie(tensor(kind=2**32 - 1), tensors=1, keys=0),
    "place that is not aligned": lie(tensor(offset=1), tensors=1, keys=0) + bytes(256),
    "place behind the end": lie(tensor(offset=2**40), tensors=1, keys=0) + bytes(256),
    "place of 2**64 - 32": lie(tensor(offset=2**64 - 32), tensors=1, keys=0) + bytes(256),
    "data that are missing": lie(tensor(shape=(4096, 4096)), tensors=1, keys=0) + bytes(256),
    "data that end a byte early": lie(tensor(), tensors=1, keys=0).ljust(64 + 127, b"\0"),
    "two tensors in one place": lie(tensor(b"a") + tensor(b"b"), tensors=2, keys=0) + bytes(512),
    "not GGUF": b"<!DOCTYPE html><html>",
    "two bytes": b"GG",
    "empty": b"",
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused_at_once(name: str, tmp_path: Path) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(LIES[name])
    times = []
    for _ in range(3):  # the least counts: other work on the machine only adds
        start = time.process_time()
        with pytest.raises(WeightsFileError) as error:
            gguf.read_header(path)
        times.append(time.process_time() - start)
    assert min(times) < 0.01  # seconds
    tracemalloc.start()
    try:
        with pytest.raises(WeightsFileError):
            gguf.read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20, "memory was taken for what the header says"
    finally:
        tracemalloc.stop()
    assert error.value.where == repr(str(path))


def test_there_are_as_many_lies_as_were_asked_for() -> None:
    assert len(LIES) >= 46


def test_overlapping_tensors_are_refused(sample: Path, tmp_path: Path) -> None:
    data = bytearray(sample.read_bytes())
    at = data.find(b"blocks.0.Q4_0.weight") + len(b"blocks.0.Q4_0.weight") + 4 + 16 + 4
    data[at : at + 8] = struct.pack("<Q", 0)
    path = tmp_path / "overlap.gguf"
    path.write_bytes(data)
    with pytest.raises(WeightsFileError) as error:
        gguf.read_header(path)
    assert "overlap" in error.value.found


def seed_of(kind: str, version: int, path: Path) -> bytes:
    """A small file with metadata of every sort and a matrix of one type."""
    writer, elements, nbytes = GGUFWriter(path, "wan"), BY_NAME[kind].elements, BY_NAME[kind].nbytes
    writer.add_array("tokenizer.ggml.tokens", ["<pad>", "</s>", "\u2581a"])
    writer.add_array("tokenizer.ggml.scores", [0.0, -1.5, -2.0])
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    writer.add_bool("flag", True)
    writer.add_tensor("blocks.0.ffn.0.bias", np.zeros(8, dtype=np.float32))
    number = GGMLQuantizationType[kind]
    blocks = np.zeros((3, 2 * nbytes), dtype=np.uint8)
    assert elements % 32 == 0
    writer.add_tensor("blocks.0.ffn.0.weight", blocks, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = bytearray(path.read_bytes())
    whole[4:8] = struct.pack("<I", version)  # both are written alike
    path.write_bytes(whole)
    assert gguf.read_header(path).tensors["blocks.0.ffn.0.weight"].shape == (3, 2 * elements)
    return bytes(whole)


def test_mutated_headers_raise_one_error_type(tmp_path: Path) -> None:
    """Twelve files, one for each type of blocks, of both versions."""
    kinds = sorted(BLOCK_TYPES)
    assert len(kinds) == 12
    rng, slowest, refused, most = random.Random(3), 0.0, 0, 0
    seeds = [seed_of(kind, 2 + index % 2, tmp_path / f"{kind}.gguf") for index, kind in enumerate(kinds)]
    ends = [seed.rfind(b"blocks.0.ffn.0.weight") + 60 for seed in seeds]  # of the headers
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(20_000):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(ends[number % len(seeds)])] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
        mutated = bytes(data)
        if number % 20 == 0:  # tracing makes it many times slower
            tracemalloc.start()
        start = time.process_time()
        try:
            gguf._parse(mutated, len(mutated), Path("mutated"))
        except gguf._BrokenHeaderError:
            refused += 1
        slowest = max(slowest, time.process_time() - start)
        if tracemalloc.is_tracing():
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert 10_000 < refused < 20_000
    assert slowest < 0.25  # seconds
    assert most < 2**20, "memory was taken for what a header says"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50 * 1024  # KiB, in any of them


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("patch_embedding.weight", (64, 16, 1, 2, 2)),
        ("vace_patch_embedding.weight", (64, 96, 1, 2, 2)),
        ("cond_encoder.weight", (64, 16, 1, 2, 2)),
        ("frame_packer.proj_2x.weight", (64, 16, 2, 4, 4)),
        ("frame_packer.proj_4x.weight", (64, 16, 4, 8, 8)),
    ],
)
@pytest.mark.parametrize("written", ["whole", "joined frames", "joined inputs", "flat"])
def test_convolutions_get_their_axes_back(name: str, full: tuple[int, ...], written: str, tmp_path: Path) -> None:
    width, inputs, frames, rows, columns = full
    shape = {
        "whole": full,
        "joined frames": (width, inputs * frames, rows, columns),
        "joined inputs": (width, inputs, frames * rows, columns),
        "flat": (width, inputs * frames * rows * columns),
    }[written]
    writer = GGUFWriter(tmp_path / "a.gguf", "wan")
    writer.add_tensor(name, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert gguf.read_header(tmp_path / "a.gguf").tensors[name].shape == full


def test_types_that_are_not_read_are_no_damage(tmp_path: Path) -> None:
    """Every type of the reference is read, or named with what to take; published Wan files have some of them."""
    for kind in GGMLQuantizationType:
        path = tmp_path / f"{kind.name}.gguf"
        elements, nbytes = GGML_QUANT_SIZES[kind]
        path.write_bytes(lie(tensor(shape=(elements,), kind=kind.value) + bytes(64 + nbytes), tensors=1, keys=0))
        if kind.value > max(OTHERS):
            continue  # of a newer reference
        if kind.value in TYPES:
            assert gguf.read_header(path).tensors["t"].kind.name == kind.name
            continue
        with pytest.raises(WeightsFileError) as caught:
            gguf.read_header(path)
        assert caught.value.found == f"{kind.name} in tensor 't'" and "Q4_K_M" in caught.value.remedy
