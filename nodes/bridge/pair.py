"""The MODELs of a run: whether they belong together, and what looks wrong about them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...wan_core.errors import WrongModelError
from ...wan_core.geometry import PATCH
from .facts import ModelFacts, model_facts
from .fitting import check_latent


@dataclass(frozen=True)
class Pair:
    """The MODELs of a run; without `low`, the high one samples alone."""

    high: Any
    low: Any | None
    facts: ModelFacts  # of the high one
    low_facts: ModelFacts | None

    @classmethod
    def of(cls, high: Any, low: Any | None) -> Pair:
        """Checks that the two belong together.

        Raises:
            WrongModelError: not Wan, or the low model is of another task.
        """
        facts, other = model_facts(high, "high"), model_facts(low, "low") if low is not None else None
        if other is not None and (other.task, other.in_dim) != (facts.task, facts.in_dim):
            raise WrongModelError(
                "The low model does not belong to the high one",
                where=other.path or "low",
                found=f"{other.task.title} with {other.in_dim} input channels",
                expected=f"{facts.task.title} with {facts.in_dim}, as {facts.path or 'the high model'}",
                remedy="Take high and low from one Wan Load Models, or files whose names differ in high and low only",
            )
        return cls(high, low, facts, other)

    def at(self, width: int, height: int) -> Pair:
        """The same with the official defaults of clips of width x height pixels."""
        return replace(self, facts=replace(self.facts, task=self.facts.task.at(width, height)))

    @property
    def distilled(self) -> bool:
        """All of them are made for a few steps without guidance."""
        return self.facts.distilled and (self.low_facts is None or self.low_facts.distilled)

    def doubts(self) -> list[str]:
        """What looks like a mistake, but may be meant."""
        if self.low_facts is None:
            return []
        out = []
        if (self.facts.expert, self.low_facts.expert) == ("low", "high"):
            out.append("the experts look exchanged: the file on input high is named low")
        if self.facts.distilled != self.low_facts.distilled:
            which = "high" if self.facts.distilled else "low"
            out.append(f"only the {which} model is distilled to a few steps")
        return out


def pair_for(high: Any, low: Any | None, latent: dict[str, Any]) -> Pair:
    """The models of a run over this latent, with the official defaults for its size.

    Raises:
        WrongModelError: they do not belong together; see Pair.of.
        InputError: the latent is not one of theirs; see check_latent.
    """
    pair = Pair.of(high, low)
    check_latent(latent, pair.facts)
    rows, columns = latent["samples"].shape[-2:]
    pixels = pair.facts.task.size_multiple // PATCH
    return pair.at(columns * pixels, rows * pixels)
