"""The programs for linear layers in int8, compiled without a GPU: Triton's assembler takes them, and makes them fast.

What they compute is compared in tests/core/test_int8.py, and on the card before the first use (`works`).
"""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("triton.experimental.gluon")

from wancore.wan_core.kernels import int8_fused

from ..assembled import machine_code, spills

CARDS = [80, 86, 89, 120]
SIZES = dict.fromkeys(("rows", "columns", "width"), "i32")
SCALES = dict.fromkeys(("x_scale", "weight_scale", "scales"), "*fp32")
TILES = ("OUT_ROWS", "OUT_COLUMNS", "INNER", "TOGETHER")


@pytest.mark.parametrize("card", CARDS)
def test_product(card: int, tmp_path) -> None:
    types = {**SIZES, **SCALES, "x": "*i8", "weight": "*i8", "bias": "*bf16", "out": "*bf16"}
    constants = {name: getattr(int8_fused, name) for name in TILES} | {"BIAS": True}
    options = {"warps": int8_fused.WARPS, "num_stages": int8_fused.STAGES, "multiples": ("columns", "width")}
    code = machine_code(int8_fused.product_kernel, types, constants, tmp_path, card=card, **options)
    found = Counter(name.split(".")[0] for name in code)
    tile = int8_fused.OUT_ROWS * int8_fused.OUT_COLUMNS * int8_fused.INNER
    assert found["IMMA"] and found["IMMA"] % (tile // int8_fused.WARPS // (16 * 8 * 32)) == 0, found
    assert spills(code) == 0


@pytest.mark.parametrize("dtype", ["*bf16", "*fp16"])
@pytest.mark.parametrize("card", CARDS)
def test_rounding(card: int, dtype: str, tmp_path) -> None:
    types = {**SIZES, **SCALES, "x": dtype, "out": "*i8"}
    options = {"warps": int8_fused.ROUND_WARPS, "multiples": ("width",)}
    code = machine_code(int8_fused.round_kernel, types, {"ROWS": int8_fused.ROWS}, tmp_path, card=card, **options)
    assert any(name.startswith("HMMA") for name in code), "rows are turned on the tensor cores"
    assert spills(code) == 0
