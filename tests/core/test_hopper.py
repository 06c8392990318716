"""The program for Hopper, compiled without a GPU: Triton's assembler takes it, and its products wait for nothing.

What it computes is compared on the card before its first use (`works`).
"""

from __future__ import annotations

import pytest

pytest.importorskip("triton.experimental.gluon")

from wancore.wan_core.kernels import hopper

from ..sm90 import NUMBERS, check, machine_code, tokens


def test_attention_in_8_bits(tmp_path) -> None:
    types = NUMBERS | {
        "q": tokens("i8", hopper.QUERIES),
        "k": tokens("i8", hopper.BLOCK),
        "v": tokens("fp8e4nv", hopper.HEAD, hopper.BLOCK),
    }
    types |= dict.fromkeys(("q_scale", "k_scale", "v_scale", "v_mean"), "*fp32") | {"out": "*bf16"}
    constants = {"KEYS": hopper.BLOCK, "HEAD": hopper.HEAD, "QUERIES": hopper.QUERIES, "STAGES": hopper.STAGES}
    code = machine_code(hopper._attention_kernel, types, constants, tmp_path)
    check(code, products=3 * 8, spills=12)  # in the mask of the last tile
    assert {name.split(".")[0] for name in code if "GMMA" in name} == {"IGMMA", "QGMMA"}  # int8, float8
