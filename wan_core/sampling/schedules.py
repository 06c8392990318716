"""The official noise schedules: which sigmas a run visits, and which timesteps the transformer is told there.

sigma: noise share 0..1; timestep: 1000 * sigma; shift: the schedule's shift. UniPC and DPM++ tell the transformer
integers, the Euler schedule of the step-distilled LoRAs tells it fractions.
Source: Wan-Video/Wan2.2 wan/utils/fm_solvers_unipc.py and fm_solvers.py at 42bf4cf; ModelTC/Wan2.2-Lightning.
Arithmetic is NumPy's in float64, as there: a timestep is cut to an integer, so the last bit of its sigma counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Sigma = TypeVar("Sigma", float, np.ndarray)
TIMESTEPS = 1000  # of the flow that the models are trained on
LARGEST_SIGMA = float(np.float32(1.0 - 1.0 / TIMESTEPS))  # where the official UniPC starts, before the shift


@dataclass(frozen=True)
class Schedule:
    """sigmas [steps + 1], float32, falling to 0, and timesteps [steps], int64 or float32, as the transformer sees."""

    sigmas: Tensor
    timesteps: Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def last(self, steps: int) -> Schedule:
        """The end of the schedule: its last `steps` steps, for a start from a partly noised latent."""
        first = max(0, self.steps - steps)
        return Schedule(self.sigmas[first:], self.timesteps[first:])


def shifted(sigma: Sigma, shift: float) -> Sigma:
    """Moves sigmas 0..1 towards 1 for shift > 1; 0 and 1 stay. Source: Esser et al. 2024, arXiv:2403.03206, 5.3.2."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def unipc_schedule(steps: int, shift: float) -> Schedule:
    """The default of the official code, for every task: starts at shifted 0.999, integer timesteps."""
    sigmas = shifted(np.linspace(LARGEST_SIGMA, 0.0, steps + 1)[:-1], shift)
    return _with_integer_timesteps(sigmas)


def dpmpp_schedule(steps: int, shift: float) -> Schedule:
    """The official schedule for DPM++: starts at 1, integer timesteps."""
    sigmas = shifted(np.linspace(1.0, 0.0, steps + 1)[:-1], shift)
    return _with_integer_timesteps(sigmas)


def euler_schedule(steps: int, shift: float) -> Schedule:
    """The schedule of the step-distilled LoRAs: starts at 1, fractional timesteps."""
    sigmas = torch.from_numpy(shifted(np.linspace(1.0, 0.0, steps + 1), shift).astype(np.float32))
    return Schedule(sigmas, sigmas[:-1] * TIMESTEPS)


SCHEDULES: dict[str, Callable[[int, float], Schedule]] = {
    "official_unipc": unipc_schedule,
    "official_dpmpp": dpmpp_schedule,
    "euler": euler_schedule,
}


def official_schedule(solver: str, steps: int, shift: float, denoise: float = 1.0) -> Schedule:
    """The official schedule of a solver: its own where the official code has one, else the UniPC one.

    denoise < 1 keeps the last `steps` steps of a schedule that is longer by 1 / denoise, as ComfyUI does.
    """
    build = SCHEDULES.get(solver, unipc_schedule)
    if denoise > 0.9999:
        return build(steps, shift)
    return build(int(steps / denoise), shift).last(steps)


def _with_integer_timesteps(sigmas: np.ndarray) -> Schedule:
    timesteps = torch.from_numpy((sigmas * TIMESTEPS).astype(np.int64))
    return Schedule(torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32)), timesteps)
