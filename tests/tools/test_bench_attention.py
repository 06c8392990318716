"""Candidates of the benchmark compile for what they are made for."""

from __future__ import annotations

import pytest


def test_a_candidate_compiles_for_hopper(tmp_path):
    pytest.importorskip("triton.experimental.gluon")
    from wancore.tools.benchmark.candidates import hopper16 as h

    from ..sm90 import NUMBERS, check, machine_code, tokens

    types = NUMBERS | {name: tokens("bf16", h.QUERIES, bits=16) for name in ("q", "out")}
    types |= {name: tokens("bf16", h.KEYS, bits=16) for name in ("k", "v")}
    constants = {"KEYS": h.KEYS, "HEAD": h.HEAD, "QUERIES": h.QUERIES, "STAGES": h.STAGES}
    code = machine_code(h._attention_kernel, types, constants, tmp_path)
    check(code, products=3 * 2 * 16, spills=0)  # three warpgroups, the first tile and the loop
