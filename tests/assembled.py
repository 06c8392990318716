"""Programs compiled for a card that is not there, and what Triton's assembler made of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
gl = pytest.importorskip("triton.experimental.gluon.language")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED = {90: 227 * 1024, 80: 163 * 1024}  # bytes of shared memory that a program can have, by card
SHARED_OF_OTHERS = 99 * 1024
NUMBERS = dict.fromkeys(("queries", "keys", "tiles", "heads"), "i32")


def tokens(dtype: str, rows: int, columns: int = 128, bits: int = 8) -> str:
    """Type of a tensor's descriptor."""
    return f"tensordesc<{dtype}[1, {rows}, {columns}],{gl.NVMMASharedLayout(128, bits, 3)!r}>"


def machine_code(
    kernel,
    types: dict[str, str],
    constants: dict[str, int],
    tmp_path: Path,
    *,
    card: int = 90,
    warps: int = 4,
    multiples: tuple[str, ...] = (),
    **options,
) -> list[str]:
    """Names of the instructions for a card (90 is sm_90); the program's rings fit into the shared memory.

    `multiples` are numbers that 16 divides, which Triton sees when it starts a program.
    """
    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    given = {(names.index(name),): value for name, value in constants.items()}
    even = [i for i, name in enumerate(names) if signature[name].startswith("*") or name in multiples]
    aligned = {(i,): [["tt.divisibility", 16]] for i in even}
    kind = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    target = GPUTarget("cuda", card, 32)
    compiled = triton.compile(
        kind(kernel, signature, given, aligned), target=target, options={"num_warps": warps, **options}
    )
    assert compiled.metadata.shared <= SHARED.get(card, SHARED_OF_OTHERS)
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    command = [TOOLS / "nvdisasm", "-c", tmp_path / "kernel.cubin"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"\*/\s+(?:@!?U?P\d+ )?([A-Z0-9.]+)", text)


def spills(code: list[str]) -> int:
    """Registers that are put into memory."""
    return sum(name.startswith("STL") for name in code)


def check(code: list[str], products: int, spilled: int) -> None:
    """`products` of Hopper's matrices, not made to wait for one another, and at most `spilled` registers."""
    assert sum("GMMA" in name for name in code) == products
    groups = code.count("WARPGROUP.ARRIVE")
    assert groups <= products / 4, "the assembler lets every product wait for the one before"
    assert spills(code) <= spilled
