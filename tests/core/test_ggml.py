"""Every block format against the reference numbers of the `gguf` package, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants
from wancore.wan_core.weights.ggml import BY_NAME, TYPES, GgmlType, dequantize

QUANTISED = [kind.name for kind in TYPES.values() if kind.dtype is None]
NAN = 12345.0  # random half-precision scales are sometimes not numbers: compare where, too


def compare(blocks: np.ndarray, name: str) -> None:
    kind = BY_NAME[name]
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(quants.dequantize(blocks, GGMLQuantizationType[name]).reshape(-1))
    ours = dequantize(torch.from_numpy(blocks).flatten(), kind, (len(blocks) * kind.elements,), torch.float32)
    assert torch.equal(torch.nan_to_num(ours, nan=NAN), torch.nan_to_num(expected, nan=NAN))


@pytest.mark.parametrize("name", QUANTISED)
def test_random_bytes_equal_the_reference(name: str) -> None:
    compare(np.random.default_rng(7).integers(0, 256, (1000, BY_NAME[name].nbytes), dtype=np.uint8), name)


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x80])
def test_extreme_bytes_equal_the_reference(name: str, fill: int) -> None:
    compare(np.full((3, BY_NAME[name].nbytes), fill, dtype=np.uint8), name)


@pytest.mark.parametrize("name", [kind.name for kind in TYPES.values() if kind.dtype is not None])
def test_numbers_that_are_no_blocks_are_the_reference_s(name: str) -> None:
    kind = BY_NAME[name]
    raw = np.random.default_rng(7).integers(0, 256, 1000 * kind.nbytes, dtype=np.uint8)
    raw[: 8 * kind.nbytes] = 0xFF
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(quants.dequantize(raw, GGMLQuantizationType[name]).astype(np.float32).reshape(-1))
    assert kind.dtype is not None
    found = torch.from_numpy(raw).view(kind.dtype).float()  # as the reader does
    assert torch.equal(torch.nan_to_num(found, nan=NAN), torch.nan_to_num(expected, nan=NAN))


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
def test_sizes_are_those_of_the_format(kind: GgmlType) -> None:
    assert GGML_QUANT_SIZES[GGMLQuantizationType[kind.name]] == (kind.elements, kind.nbytes)


def test_partial_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="whole Q4_K blocks"):
        dequantize(torch.zeros(145, dtype=torch.uint8), BY_NAME["Q4_K"], (256,), torch.float32)
