"""The tensor types of GGUF: name, elements and bytes of a block. Imports no torch, so that headers are read at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SUPER = 256  # elements in a block of the K and IQ4_XS types


@dataclass(frozen=True)
class GgmlType:
    """One tensor type: `elements` weights in `nbytes` bytes."""

    name: str
    elements: int
    nbytes: int
    torch_name: str = ""  # the dtype where the bytes already are one

    @property
    def dtype(self) -> torch.dtype | None:
        """The torch dtype of the bytes; None for blocks."""
        import torch

        return getattr(torch, self.torch_name) if self.torch_name else None


# Type numbers of the file format (ggml.h, enum ggml_type).
TYPES: dict[int, GgmlType] = {
    0: GgmlType("F32", 1, 4, "float32"),
    1: GgmlType("F16", 1, 2, "float16"),
    30: GgmlType("BF16", 1, 2, "bfloat16"),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    10: GgmlType("Q2_K", SUPER, 84),
    11: GgmlType("Q3_K", SUPER, 110),
    12: GgmlType("Q4_K", SUPER, 144),
    13: GgmlType("Q5_K", SUPER, 176),
    14: GgmlType("Q6_K", SUPER, 210),
    20: GgmlType("IQ4_NL", 32, 18),
    23: GgmlType("IQ4_XS", SUPER, 136),
}
OTHERS: dict[int, str] = {  # types that files of other models have, and this pack does not read
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8",
    25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
    41: "Q1_0",
}  # fmt: skip
BY_NAME: dict[str, GgmlType] = {kind.name: kind for kind in TYPES.values()}
BLOCK_TYPES = frozenset(kind.name for kind in TYPES.values() if not kind.torch_name)
