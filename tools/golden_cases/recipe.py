"""Weights from a recipe: the same numbers on every platform, from a seed, a name and a rule.

Each value is 24 bits of the CPU Mersenne twister, so no arithmetic differs between machines. The twister's seed is
the first 63 bits of sha256("<seed>|<name>"). Rules give the spread that suits the kind of tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

SPREADS = {"norm": (1.0, 0.2), "bias": (0.0, 0.1), "mod": (0.0, 0.3), "embed": (0.0, 0.5), "mix": (0.5, 0.4)}


def uniform(shape: Sequence[int], seed: int, name: str) -> Tensor:
    """Returns float32 values in -1..1 of the given shape."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") % 2**63)
    return torch.rand(tuple(shape), generator=generator) * 2.0 + -1.0


def fill(shape: Sequence[int], seed: int, name: str, rule: str) -> Tensor:
    """Returns the weight called `name` ("<file>|<key>"), [*shape] float32.

    Raises:
        ValueError: a rule that this format does not have ("keep" means that the tensor is stored).
    """
    values = uniform(shape, seed, name)
    if rule == "unit":
        return math.sqrt(3.0) * values
    if rule == "fan_in":
        return values * math.sqrt(3.0 / max(math.prod(int(size) for size in shape[1:]), 1))
    if rule not in SPREADS:
        raise ValueError(f"unknown rule {rule!r} for {name}")
    middle, spread = SPREADS[rule]
    return middle + spread * values
