"""How trained weights are kept: what comes back of them, and that others read the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from wancore.pocket import family, models, storage
from wancore.pocket.training.low_rank import Adapted

ERRORS = {"Q6_K": 0.02, "Q8_0": 0.006, "BF16": 0.003}  # of normal weights, relative


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


KEPT = {"matrix": drawn(96, 512), "narrow": drawn(64, 128), "convolution": drawn(16, 8, 3, 3, 3), "bias": drawn(77)}


def test_weights_come_back(tmp_path: Path):
    storage.save(KEPT, tmp_path / "kept.gguf", {"config": "{}"}, b"a\xff\x00")
    found = storage.load(tmp_path / "kept.gguf")
    assert {storage.kind_of(name, value) for name, value in KEPT.items()} == set(ERRORS)
    for name, value in KEPT.items():
        assert found[name].shape == value.shape
        assert (found[name].float() - value).norm() <= ERRORS[storage.kind_of(name, value)] * value.norm(), name
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


def test_a_member_on_a_base_keeps_its_difference_alone(tmp_path: Path):
    """The file of a low-rank member is small, and with its base gives the weights that were trained."""
    base, member = family.T2V_LOW, replace(family.T2V_LOW, short="other", base=family.T2V_LOW.short, rank=4)
    (tmp_path / models.weights_file(base).name).write_bytes(models.weights_file(base).read_bytes())
    adapted = Adapted(models.load_weights(models.new_transformer(base), base), member.rank)
    with torch.no_grad():
        for pair in adapted.pairs.pairs.values():
            pair["up"].weight.normal_(0, 0.1)
    models.save_stored(adapted.stored(), member, tmp_path)
    found = models.read_weights(member, tmp_path)
    name = "blocks.1.self_attn.q.weight"
    assert set(found) == set(models.read_weights(base))
    expected = adapted.pairs.weights(1)[name.removeprefix("blocks.1.")]
    assert (found[name].float() - expected).norm() <= 0.01 * expected.norm()
    assert models.weights_file(member, tmp_path).stat().st_size < 0.15 * models.weights_file(base).stat().st_size
