"""The programs for Hopper, compiled without a GPU: Triton's assembler takes it, and their products wait for nothing.

What they compute is compared on the card before the first use (`works`).
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton.experimental.gluon")

from wancore.wan_core.kernels import hopper8, hopper16

from ..assembled import NUMBERS, check, machine_code, tokens


def test_attention_in_8_bits(tmp_path) -> None:
    types = NUMBERS | {
        "q": tokens("i8", hopper8.QUERIES),
        "k": tokens("i8", hopper8.BLOCK),
        "v": tokens("fp8e4nv", hopper8.HEAD, hopper8.BLOCK),
    }
    types |= dict.fromkeys(("q_scale", "k_scale", "v_scale", "v_mean"), "*fp32") | {"out": "*bf16"}
    constants = {"KEYS": hopper8.BLOCK, "HEAD": hopper8.HEAD, "QUERIES": hopper8.QUERIES, "STAGES": hopper8.STAGES}
    code = machine_code(hopper8._attention_kernel, types, constants, tmp_path)
    check(code, products=3 * 8, spilled=12)  # in the mask of the last tile
    assert {name.split(".")[0] for name in code if "GMMA" in name} == {"IGMMA", "QGMMA"}  # int8, float8


def test_exact_attention(tmp_path) -> None:
    types = NUMBERS | {name: tokens("bf16", hopper16.QUERIES, bits=16) for name in ("q", "out")}
    types |= {name: tokens("bf16", hopper16.KEYS, bits=16) for name in ("k", "v")}
    constants = {"KEYS": hopper16.KEYS, "HEAD": hopper16.HEAD, "QUERIES": hopper16.QUERIES, "STAGES": hopper16.STAGES}
    code = machine_code(hopper16._attention_kernel, types, constants, tmp_path)
    check(code, products=3 * 2 * 16, spilled=0)  # three warpgroups, the first tile and the loop
