"""Which of the two A14B experts serves a step: the high one at or above the boundary sigma, the low one below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor


def steps_per_expert(sigmas: Tensor, boundary: float) -> tuple[int, int]:
    """sigmas [steps + 1] -> how many steps start on the high expert and how many on the low one."""
    high = int((sigmas[:-1] >= boundary).sum())
    return high, len(sigmas) - 1 - high


def boundary_after(sigmas: Tensor, steps: int) -> float:
    """The boundary that gives the high expert the first `steps` steps whole, later stages of the last one included."""
    if steps >= len(sigmas) - 1:
        return 0.0
    return float(torch.nextafter(sigmas[steps].float(), torch.tensor(2.0)))


@dataclass
class ExpertSwitch:
    """Chooses the expert of every evaluation of one run, so that no solver makes it change more than it must.

    Where the schedule falls, which is always but for schedules that put noise back, there is one change in a run:
    a solver that looks past the next step (heunpp2) does not bring it forward, and one that takes a step back
    (dpm_adaptive) does not undo it. Where the schedule climbs, the sigma alone decides.
    """

    grid: Sequence[float]  # the schedule's sigmas
    boundary: float
    step: int = -1  # the last one that the solver reported
    high: bool | None = field(default=None)  # who served the last evaluation

    @property
    def climbs(self) -> bool:
        return any(later > earlier for earlier, later in pairwise(self.grid))

    def choose(self, sigma: float) -> bool:
        """True where the high expert serves an evaluation at this sigma."""
        wanted = sigma >= self.boundary
        if self.high is not None and not self.climbs:
            looks_ahead = self.step >= 0 and sigma in self.grid[self.step + 2 :]
            wanted = self.high and (wanted or looks_ahead)
        self.high = wanted
        return wanted
