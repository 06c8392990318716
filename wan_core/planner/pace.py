"""How long a forward takes: operations and bytes over what a card does, corrected by what was measured on it before.

Rates are TFLOP/s without sparsity, float32 sums. GeForce: NVIDIA's Ampere, Ada and Blackwell whitepapers (RTX 3090 71
in bf16; RTX 4090 165 in bf16, 330 in float8), other cards by their multiprocessors and boost clocks; PRACTICE of that
is what matrix products and attention reach there. H200: measured inside a forward. Attention in 8 bits: 134, 322 and
479 TFLOP/s on RTX 3090, 4090 and 5090 where FlashAttention-2 has 70, 164 and 214, by SageAttention's README. Products
in int8: the same whitepapers (284 and 661 TOP/s), less a quarter for turning, rounding and what is not reached.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..config import TransformerConfig
from .rounding import NOTHING, InEightBits

PRACTICE = 0.92
INT8 = 3.0  # of a GeForce card's rate in bf16, where 4 is what its units do
PASSES = 22  # tensors of tokens that norms, gates and rotation read or write in a block, at two bytes a value
TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True)
class Rates:
    """What a card does in a second."""

    half: float  # TFLOP/s of bf16 products
    float8: float | None  # of float8 products; None: weights are decoded and multiplied in bf16
    int8: float  # of int8 products, rounding included
    attention: float  # TFLOP/s in bf16
    attention8: float  # in 8 bits, rounding included
    bandwidth: float  # GB/s


def _geforce(half: float, bandwidth: float, *, float8: bool) -> Rates:
    half *= PRACTICE
    return Rates(half, 2 * half if float8 else None, INT8 * half, half, 1.9 * half, bandwidth * PRACTICE)


CARDS: Mapping[str, Rates] = {
    "RTX 3060": _geforce(25.4, 360, float8=False),
    "RTX 3080": _geforce(59.5, 760, float8=False),
    "RTX 3090": _geforce(71, 936, float8=False),
    "RTX 4060 Ti": _geforce(44, 288, float8=True),
    "RTX 4070": _geforce(58, 504, float8=True),
    "RTX 4080": _geforce(97.5, 717, float8=True),
    "RTX 4090": _geforce(165, 1008, float8=True),
    "RTX 5090": _geforce(209.5, 1792, float8=True),
    "H100": Rates(690, 1300, 910, 600, 750, 1900),
    "H200": Rates(760, 1450, 1000, 690, 865, 2400),
}


def rates_of(card: str) -> Rates | None:
    """Rates of the card with this name ("NVIDIA GeForce RTX 4090"); None where nothing is known of it."""
    found = [name for name in CARDS if name in card]
    return CARDS[max(found, key=len)] if found else None


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of one forward."""

    linear: float
    attention: float
    traffic: float

    def seconds(self, rates: Rates, *, float8: bool, eight_bits: InEightBits = NOTHING) -> float:
        """With the weights at hand."""
        products = rates.float8 if float8 and rates.float8 else rates.half
        linear = self.linear / max(products, rates.int8 if eight_bits.layers else 0.0)
        attention = self.attention / (rates.attention8 if eight_bits.attention else rates.attention)
        return (linear + attention) / TERA + self.traffic / rates.bandwidth / GIGA


def work(config: TransformerConfig, tokens: int, batch: int = 1) -> Work:
    """The arithmetic of the blocks: projections, feed-forward, self- and cross-attention; VACE's blocks among them."""
    width, text = config.dim, config.text_len
    blocks = (config.num_layers + len(config.vace_blocks)) * batch
    linear = 2 * tokens * (6 * width**2 + 2 * width * config.ffn_dim) + 4 * text * width**2
    attention = 4 * width * tokens * (tokens + text)
    return Work(blocks * linear, blocks * attention, blocks * PASSES * 2 * tokens * width)


@dataclass(frozen=True)
class Pace:
    """What runs on one GPU have taken, beside what arithmetic expects: {what: measured seconds / expected ones}.

    Keys are those of plan.what ("forward, width 5120, fp8_e4m3fn scaled_fp8"); work of another size is scaled by the
    same factor.
    """

    factors: Mapping[str, float]

    def seconds(self, what: str, expected: float) -> tuple[float, bool]:
        """Seconds, and whether they rest on a measurement."""
        factor = self.factors.get(what)
        return expected * (1.0 if factor is None else factor), factor is not None

    def learned(self, what: str, measured: float, expected: float) -> Pace:
        """With one more measurement; the newest counts."""
        return Pace({**self.factors, what: measured / expected})


def read(path: Path) -> dict[str, Pace]:
    """{card: what runs on it have taken}, from the JSON that `text` makes; whatever is not of that form is left out.

    The file lies in ComfyUI's user folder, where anybody may write: what is in it never stops a run.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    cards = found if isinstance(found, dict) else {}
    return {card: _of(factors) for card, factors in cards.items() if isinstance(factors, dict)}


def _of(factors: Mapping[str, object]) -> Pace:
    return Pace({what: value for what, value in factors.items() if isinstance(value, float) and 0 < value < math.inf})


def text(cards: Mapping[str, Pace]) -> str:
    """What `read` reads."""
    return json.dumps({card: dict(known.factors) for card, known in cards.items()}, indent=1)


def duration(seconds: float) -> str:
    """Seconds as text: "7 s", "2 min 5 s", "1 h 3 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
