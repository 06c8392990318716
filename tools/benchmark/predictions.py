"""What a forward should take on cards that are not here: the planner's arithmetic over rates, never a measurement.

The H200's rates were measured inside a forward, so that its row checks the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...wan_core.config import TransformerConfig
from ...wan_core.planner import pace
from ...wan_core.planner.rounding import NOTHING, InEightBits
from .weights import shapes_of
from .workloads import Forward

SHOWN = ("RTX 3060", "RTX 3090", "RTX 4060 Ti", "RTX 4070", "RTX 4090", "RTX 5090", "H200")


def work(workload: Forward) -> pace.Work:
    """The arithmetic of the blocks."""
    _, _, frames, rows, columns = workload.latent
    config = TransformerConfig.from_shapes(shapes_of(workload.shapes))
    return pace.work(config, frames * (rows // 2) * (columns // 2))


def seconds(workload: Forward, card: str, *, float8: bool, eight_bits: InEightBits = NOTHING) -> float:
    """One forward with the weights at hand; at the lengths of a clip streaming hides."""
    return work(workload).seconds(pace.CARDS[card], float8=float8, eight_bits=eight_bits)


def markdown(workloads: dict[str, Forward]) -> str:
    """The table, which says that it is one of predictions."""
    names = [workload.name for workload in workloads.values()]
    attention = "PyTorch's attention (H200: the pack's own kernel)"
    files = "bf16 / fp8 files / with Wan 8-bit Attention / and Wan 8-bit Layers"
    lines = [f"Predictions, not measured: seconds per forward, {files}, {attention}", ""]
    lines += [f"| card | {' | '.join(names)} |", f"|{'---|' * (1 + len(names))}"]
    lines += [f"| {card} | {' | '.join(_cells(workloads, card))} |" for card in SHOWN]
    return "\n".join(lines)


def _cells(workloads: dict[str, Forward], card: str) -> Iterator[str]:
    for workload in workloads.values():
        ways = ((False, NOTHING), (True, NOTHING), (True, InEightBits(attention=True)), (True, InEightBits(True, True)))
        found = (seconds(workload, card, float8=float8, eight_bits=eight_bits) for float8, eight_bits in ways)
        yield " / ".join(f"{value:.2g}" if value < 10 else f"{value:.0f}" for value in found)
