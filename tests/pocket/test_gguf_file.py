"""The writer of GGUF files: the reference package finds every tensor and value where the writer put it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import pytest
import torch
from wancore.pocket import gguf_file
from wancore.pocket.gguf_file import Stored
from wancore.tools.benchmark import weights
from wancore.tools.benchmark.memory import files

TENSORS = [Stored("bias", (5,), "F16"), Stored("matrix", (3, 256), "Q4_K"), Stored("wide", (2, 3, 2, 4), "F32")]
SHAPES = {"patch_embedding.weight": (8, 4, 1, 2, 2), "blocks.0.norm3.weight": (256,), "blocks.0.ffn.0.weight": (8, 256)}


def content(tensor: Stored) -> bytes:
    rng = np.random.default_rng(len(tensor.name))
    return rng.integers(0, 256, tensor.nbytes, dtype=np.uint8).tobytes()


def read(path: Path) -> tuple[Any, dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    return reader, {tensor.name: tensor for tensor in reader.tensors}


def test_the_reference_finds_everything(tmp_path: Path):
    metadata = {"name": gguf_file.text("é"), "axes": gguf_file.array(gguf_file.INT32, "i", (7, -1))}

    def fill(file: BinaryIO, tensor: Stored) -> None:
        file.write(content(tensor))

    reader, found = read(gguf_file.write(tmp_path / "a.gguf", metadata, TENSORS, fill))
    assert reader.fields["name"].contents() == "é" and reader.fields["axes"].contents() == [7, -1]
    assert list(found) == [tensor.name for tensor in TENSORS]
    for tensor in TENSORS:
        theirs = found[tensor.name]
        assert theirs.tensor_type.name == tensor.kind and tuple(theirs.shape[::-1]) == tensor.shape
        assert theirs.data.tobytes() == content(tensor)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_tensor_of_another_length_leaves_no_file(more: int, tmp_path: Path):
    with pytest.raises(ValueError, match="matrix: 4"):
        gguf_file.write(
            tmp_path / "a.gguf",
            {},
            TENSORS,
            lambda file, tensor: file.write(bytes(tensor.nbytes + more * (tensor.name == "matrix"))),
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", weights.GGUF)
def test_files_of_the_benchmarks_are_of_this_form(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "shapes_of", lambda name, layers: SHAPES)
    monkeypatch.setattr(files, "PIECE", 2**16)
    cpu = torch.device("cpu")
    for path in (
        weights.write_gguf(SHAPES, kind, cpu, tmp_path / "speed.gguf"),
        files.transformer(tmp_path / "memory.gguf", "any", kind),
    ):
        found = read(path)[1]
        assert {name: tuple(map(int, tensor.shape[::-1])) for name, tensor in found.items()} == {
            **SHAPES,
            "patch_embedding.weight": (8, 4, 2, 2),
        }
        assert [tensor.tensor_type.name for tensor in found.values()] == ["F16", "F16", kind]
        values = gguf.quants.dequantize(found["blocks.0.ffn.0.weight"].data, gguf.GGMLQuantizationType[kind])
        assert np.isfinite(values).all() and 1e-4 < np.abs(values).mean() < 1
