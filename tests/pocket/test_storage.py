"""How trained weights are kept: what comes back of them, and that others read the files."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from wancore.pocket import storage

ERRORS = {"Q6_K": 0.02, "Q8_0": 0.006, "BF16": 0.003}  # of normal weights, relative


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


KEPT = {
    "matrix": drawn(96, 512),
    "narrow": drawn(64, 128),
    "convolution": drawn(16, 8, 3, 3, 3),
    "bias": drawn(77),
}


def test_weights_come_back(tmp_path: Path):
    storage.save(KEPT, tmp_path / "kept.gguf", {"config": "{}"}, spiece=b"a\xff\x00")
    found = storage.load(tmp_path / "kept.gguf")
    assert {storage.kind_of(value) for value in KEPT.values()} == set(ERRORS)
    for name, value in KEPT.items():
        assert found[name].shape == value.shape
        assert (found[name].float() - value).norm() <= ERRORS[storage.kind_of(value)] * value.norm(), name
    assert storage.load_spiece(tmp_path / "kept.gguf") == b"a\xff\x00"


def test_the_reference_reads_the_same_numbers(tmp_path: Path):
    storage.save(KEPT, tmp_path / "kept.gguf")
    found = storage.load(tmp_path / "kept.gguf")
    for tensor in gguf.GGUFReader(tmp_path / "kept.gguf").tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type).ravel()
        assert torch.equal(torch.from_numpy(theirs.copy()).bfloat16(), found[tensor.name].flatten()), tensor.name


@pytest.mark.parametrize("kind", ["Q6_K", "Q8_0"])
def test_nothing_but_zeros_stays_zero(kind: str):
    blocks = storage.quantize(torch.zeros(256), kind)
    assert not storage.dequantize(blocks, storage.BY_NAME[kind], (256,), torch.float32).any()
