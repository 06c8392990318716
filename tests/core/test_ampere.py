"""The program for Ampere and later cards, compiled without a GPU: Triton's assembler takes it, and makes it fast.

What it computes is compared in tests/core/test_attention8.py, and on the card before the first use (`works`).
"""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("triton.experimental.gluon")

from wancore.wan_core.kernels import ampere8

from ..assembled import machine_code, spills

TYPES = {"q": "*i8", "k": "*i8", "v": "*fp16", "out": "*bf16", "length": "i32", "heads": "i32"}
TYPES |= dict.fromkeys(("q_scale", "k_scale", "v_scale", "v_mean"), "*fp32")
CONSTANTS = {"QUERIES": ampere8.QUERIES, "KEYS": ampere8.KEYS, "BLOCK": ampere8.BLOCK, "D": 128}
IN_A_WARP = ampere8.QUERIES // ampere8.WARPS  # queries
TILES = 2  # in the loop, and the last one


@pytest.mark.parametrize("card", [80, 86, 89, 120])
def test_attention_in_8_bits(card: int, tmp_path) -> None:
    options = {"warps": ampere8.WARPS, "num_stages": ampere8.STAGES}
    code = machine_code(ampere8._attention_kernel, TYPES, CONSTANTS, tmp_path, card=card, **options)
    found = Counter(name.split(".")[0] for name in code)
    size = IN_A_WARP * ampere8.KEYS * 128
    assert found["IMMA"] == TILES * size // (16 * 8 * 32)  # int8, one instruction to so many products
    assert found["HMMA"] == TILES * size // (16 * 8 * 16)
    assert all(".F16" in name for name in code if name.startswith("HMMA")), "sums in float32 take twice the time"
    assert not found["I2F"] and not found["I2FP"], "a quarter of the rate of an addition"
    assert spills(code) <= (8 if card == 120 else 0)
