"""Which way of computing a card takes, in one table, with the reason.

Everything is decided from a `Card`, so that any card's way can be asked for, and run, on another: the variable
WANCORE_CARD ("8.9", or "8.9:12" with GiB of memory) stands in for the one that is there.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OVERRIDE = "WANCORE_CARD"
ROWS8, TENSOR8, DECODED = "rows8", "tensor8", "decoded"
INT8, EXACT = "int8", "exact"
MAJORS8 = (8, 9, 12)  # of the capabilities for ampere8.py and int8_fused.py: 10 has other tensor cores, never tried


@dataclass(frozen=True)
class Card:
    """What the table reads of a device and its software."""

    capability: tuple[int, int] | None  # CUDA's; None: no NVIDIA card
    memory: float = 0.0  # GiB
    torch: tuple[int, int] = (2, 4)
    windows: bool = False
    triton: bool = True

    def describe(self) -> str:
        """One line, for reports."""
        if self.capability is None:
            return "no NVIDIA GPU"
        major, minor = self.capability
        return f"sm_{major}{minor}, {self.memory:.0f} GiB, torch {'.'.join(map(str, self.torch))}"


@dataclass(frozen=True)
class Path:
    """A way of computing and why it is taken."""

    name: str
    why: str


@dataclass(frozen=True)
class Rule:
    """The first rule of a table that holds is taken."""

    holds: Callable[[Card], bool]
    path: Path


def _least(major: int, minor: int) -> Callable[[Card], bool]:
    return lambda card: card.capability is not None and card.capability >= (major, minor)


def _of_major(*majors: int) -> Callable[[Card], bool]:
    return lambda card: card.capability is not None and card.capability[0] in majors


FLOAT8_LINEAR = (
    Rule(lambda card: card.capability is None, Path(DECODED, "no NVIDIA GPU: weights are decoded for each layer")),
    Rule(
        lambda card: not _least(8, 9)(card), Path(DECODED, "no float8 units before sm_89: weights are decoded, in bf16")
    ),
    Rule(lambda card: card.windows, Path(TENSOR8, "torch has no row-wise float8 product on Windows")),
    Rule(lambda card: not card.triton, Path(TENSOR8, "without Triton, rounding by rows costs more than it gains")),
    Rule(
        lambda card: card.capability == (8, 9) and card.torch < (2, 12),
        Path(TENSOR8, "row-wise float8 products can hang on sm_89 before torch 2.12"),
    ),
    Rule(lambda card: True, Path(ROWS8, "a scale per token, rounded inside the norms: faster and closer")),
)


ATTENTION_IN_8_BITS = (
    Rule(lambda card: card.capability is None, Path(EXACT, "no NVIDIA GPU")),
    Rule(lambda card: not card.triton, Path(EXACT, "the kernels need Triton")),
    Rule(lambda card: card.capability == (9, 0), Path(INT8, "int8 queries and keys, float8 values")),
    Rule(_of_major(*MAJORS8), Path(INT8, "int8 queries and keys, float16 values, where that is faster than exact")),
    Rule(lambda card: True, Path(EXACT, "the kernels are written for sm_80 to sm_90 and sm_120")),
)


def float8_first(card: Card) -> bool:
    """Whether products of float8 rows are no slower than those in int8, which are turned in a pass of their own."""
    return card.capability == (9, 0)


LAYERS_IN_8_BITS = (
    Rule(lambda card: card.capability is None, Path(EXACT, "no NVIDIA GPU")),
    Rule(lambda card: not card.triton, Path(EXACT, "the kernels need Triton")),
    Rule(float8_first, Path(INT8, "turned and rounded by rows; fp8 files multiply in float8 as without")),
    Rule(_of_major(*MAJORS8), Path(INT8, "tokens and weights are turned and rounded by rows")),
    Rule(lambda card: True, Path(EXACT, "the kernels are written for sm_80 to sm_90 and sm_120")),
)


def layers_in_8_bits(card: Card) -> Path:
    """What the node Wan 8-bit Layers comes to: `int8`, or `exact` where no kernel is."""
    return next(rule.path for rule in LAYERS_IN_8_BITS if rule.holds(card))


def attention_in_8_bits(card: Card) -> Path:
    """What the node Wan 8-bit Attention comes to: `int8`, or `exact` where no kernel is."""
    return next(rule.path for rule in ATTENTION_IN_8_BITS if rule.holds(card))


def float8_linear(card: Card) -> Path:
    """How layers of float8 weights multiply: `rows8` by rows, `tensor8` and `decoded` as ComfyUI does."""
    return next(rule.path for rule in FLOAT8_LINEAR if rule.holds(card))


def named_card(card: Card) -> Card:
    """The card that WANCORE_CARD names; the given one where it names none.

    Raises:
        ValueError: it is no capability.
    """
    named = os.environ.get(OVERRIDE)
    if not named:
        return card
    found = re.fullmatch(r"(\d+)\.(\d)(?::(\d+))?", named)
    if found is None:
        raise ValueError(f"{OVERRIDE}={named} is no card: write 8.9, or 8.9:12 for 12 GiB")
    return replace(card, capability=(int(found[1]), int(found[2])), memory=float(found[3] or 0))


def card_of(device: torch.device | None = None) -> Card:
    """The card behind a device (None: the first one), or the one that WANCORE_CARD names.

    Raises:
        ValueError: WANCORE_CARD is no capability.
    """
    import torch  # takes seconds: the table is read without it

    numbers = torch.__version__.split("+")[0].split(".")
    card = Card(
        None,
        torch=(int(numbers[0]), int(numbers[1])),
        windows=platform.system() == "Windows",
        triton=find_spec("triton") is not None,
    )
    if os.environ.get(OVERRIDE):
        return named_card(card)
    is_cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
    if not is_cuda or torch.version.hip is not None:
        return card
    properties = torch.cuda.get_device_properties(device or 0)
    return replace(card, capability=(properties.major, properties.minor), memory=properties.total_memory / 2**30)
