"""Schedules, solver trajectories and the choice of expert against the official schedulers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from wancore.wan_core.sampling.dpmpp import sample_dpmpp
from wancore.wan_core.sampling.experts import ExpertSwitch
from wancore.wan_core.sampling.schedules import SCHEDULES, Schedule
from wancore.wan_core.sampling.unipc import sample_unipc
from wancore.wan_core.tasks import TASKS

from . import INPUT, Golden, Result

NAMES = {"unipc": "official_unipc", "dpm++": "official_dpmpp", "euler": "euler"}
SOLVERS = {"unipc": sample_unipc, "dpm++": sample_dpmpp}
GRID = re.compile(r"(?P<solver>[^_]+)_(?:traj_)?s(?P<shift>[\d.]+)_n(?P<steps>\d+)$")
EXPERT = re.compile(r"expert_(?P<task>[^_]+)_(?P<solver>[^_]+)_n(?P<steps>\d+)$")
EXACT, SIGMA, TRAJECTORY = 0.0, 1e-7, 1e-5


def schedulers(golden: Golden) -> Iterator[Result]:
    """Every case of the file: a schedule, a schedule with a whole run on it, or the experts of a schedule's steps."""
    for case in golden.cases():
        if match := EXPERT.match(case):
            task = next(task for name, task in TASKS.items() if name.startswith(match["task"] + "-"))
            sigmas = SCHEDULES[NAMES[match["solver"]]](int(match["steps"]), task.shift).sigmas.tolist()
            switch = ExpertSwitch(sigmas, task.boundary or 0.0)  # officially the timesteps are compared, not the sigmas
            is_high = torch.tensor([switch.choose(sigma) for sigma in sigmas[:-1]])
            yield golden.check(case, {"out.is_high": is_high}, EXACT)
            continue
        match = GRID.match(case)
        if match is None:
            yield Result(f"{golden.name}.{case}", float("inf"), float("inf"), EXACT, "unknown kind of case")
            continue
        schedule = SCHEDULES[NAMES[match["solver"]]](int(match["steps"]), float(match["shift"]))
        ours = {"out.sigmas": schedule.sigmas, "out.timesteps": schedule.timesteps}
        if match["solver"] == "euler":
            ours["out.timesteps"] = schedule.sigmas * 1000  # there with the 0 at the end
        inputs = golden.of(INPUT, case)
        if inputs:
            ours |= trajectory(SOLVERS[match["solver"]], schedule, **inputs)
        limits = {"out.sigmas": SIGMA, "out.timesteps": SIGMA if match["solver"] == "euler" else EXACT}
        yield golden.check(case, ours, {name: limits.get(name, TRAJECTORY) for name in ours})


def trajectory(solver: Callable[..., Tensor], schedule: Schedule, noise: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Runs a solver under the velocity of the golden file's notes; returns velocities and latents, step by step."""
    told = dict(zip(schedule.sigmas.tolist(), schedule.timesteps.tolist(), strict=False))
    velocities, visited = [], []  # the latents that the model is given: predictions, not yet corrected

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        timestep = told[float(sigma[0])]
        velocity = 0.9 * x - 1.1 * target + 0.25 * torch.sin(torch.tensor(3.0 * timestep / 1000)) * torch.tanh(x)
        velocities.append(velocity)
        visited.append(x)
        return x - sigma[0] * velocity

    last = solver(denoise, noise, schedule.sigmas)
    return {"out.velocity": torch.stack(velocities), "out.latents": torch.stack([*visited[1:], last])}


FAMILIES = {"schedulers": schedulers}
