"""Gluon programs compiled for sm_90 without a GPU, and what Triton's assembler made of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
gl = pytest.importorskip("triton.experimental.gluon.language")

from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED = 227 * 1024  # bytes of shared memory that a program can have
NUMBERS = dict.fromkeys(("queries", "keys", "tiles", "heads"), "i32")


def tokens(dtype: str, rows: int, columns: int = 128, bits: int = 8) -> str:
    """Type of a tensor's descriptor."""
    return f"tensordesc<{dtype}[1, {rows}, {columns}],{gl.NVMMASharedLayout(128, bits, 3)!r}>"


def machine_code(kernel, types: dict[str, str], constants: dict[str, int], tmp_path: Path) -> list[str]:
    """Names of the instructions; the program's rings fit into the shared memory."""
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    given = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = GluonASTSource(kernel, signature, given, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert compiled.metadata.shared <= SHARED
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [TOOLS / "nvdisasm", "-c", tmp_path / "kernel.cubin"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"\*/\s+(?:@!?U?P\d+ )?([A-Z0-9.]+)", text)


def check(code: list[str], products: int, spills: int) -> None:
    """`products` of matrices, not made to wait for one another, and at most `spills` registers put into memory."""
    assert sum("GMMA" in name for name in code) == products
    groups = code.count("WARPGROUP.ARRIVE")
    assert groups <= products / 4, "the assembler lets every product wait for the one before"
    assert sum(name.startswith("STL") for name in code) <= spills
