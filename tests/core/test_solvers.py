"""Schedules, solvers and the choice of expert against the official ones, and where solvers could go wrong."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from wancore.tools.golden_cases import read
from wancore.tools.golden_cases.solvers import schedulers
from wancore.wan_core.sampling.dpmpp import sample_dpmpp
from wancore.wan_core.sampling.experts import ExpertSwitch, boundary_after, steps_per_expert
from wancore.wan_core.sampling.schedules import (
    dpmpp_schedule,
    euler_schedule,
    official_schedule,
    unipc_schedule,
)
from wancore.wan_core.sampling.unipc import sample_unipc
from wancore.wan_core.tasks import I2V_A14B, T2V_A14B

GOLDEN = read(Path(__file__).parents[1] / "golden" / "schedulers.safetensors")
RESULTS = list(schedulers(GOLDEN))
SOLVERS = pytest.mark.parametrize("solver", [sample_unipc, sample_dpmpp])


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: result.name)
def test_equals_the_official_schedulers(result):
    assert result.ok, result


def test_golden_file_has_every_kind_of_case():
    names = " ".join(result.name for result in RESULTS)
    assert all(kind in names for kind in ("unipc_s", "dpm++_s", "unipc_traj", "dpm++_traj", "euler_s", "expert_i2v"))


@pytest.mark.parametrize(
    ("task", "build", "steps", "shift", "expected"),
    [
        (T2V_A14B, unipc_schedule, 40, 12.0, (26, 14)),
        (I2V_A14B, unipc_schedule, 40, 5.0, (15, 25)),
        (T2V_A14B, dpmpp_schedule, 40, 12.0, (26, 14)),
        (I2V_A14B, dpmpp_schedule, 40, 5.0, (15, 25)),
        (T2V_A14B, euler_schedule, 4, 5.0, (2, 2)),
        (I2V_A14B, euler_schedule, 4, 5.0, (2, 2)),
    ],
)
def test_steps_per_expert(task, build, steps, shift, expected):
    assert steps_per_expert(build(steps, shift).sigmas, task.boundary) == expected


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_boundary_after_a_number_of_steps(steps):
    sigmas = euler_schedule(4, 5.0).sigmas
    assert steps_per_expert(sigmas, boundary_after(sigmas, steps)) == (steps, 4 - steps)


def test_denoise_keeps_the_end_of_a_longer_schedule():
    whole, end = unipc_schedule(10, 5.0), official_schedule("official_unipc", 5, 5.0, denoise=0.5)
    assert torch.equal(end.sigmas, whole.sigmas[5:]) and torch.equal(end.timesteps, whole.timesteps[5:])


@SOLVERS
@pytest.mark.parametrize("start", [1.0, 0.9998, 0.6])
def test_solver_reaches_a_constant_estimate_exactly(solver, start):
    """Whatever the start, also sigma 1 where lambda is infinite: a model that always says x0 is right at sigma 0."""
    sigmas = torch.linspace(start, 0.0, 7)
    clean, noise = torch.randn(2, 4, 3, 2, 2), torch.randn(2, 4, 3, 2, 2)
    x = (1 - start) * clean + start * noise
    torch.testing.assert_close(solver(lambda x, sigma: clean, x, sigmas), clean, rtol=0, atol=1e-6)


@SOLVERS
def test_solver_is_of_second_order(solver):
    """Halving the steps of dx/dsigma = v(x, sigma) quarters the error."""

    def denoise(x, sigma):
        return x - sigma[0] * torch.cos(3.0 * x) * sigma[0]

    def run(steps):
        return solver(denoise, torch.tensor([[0.3]], dtype=torch.float64), torch.linspace(0.9, 0.2, steps + 1))

    exact = run(4096)
    coarse, fine = (float((run(steps) - exact).abs()) for steps in (16, 64))
    assert math.log(coarse / fine, 4) > 1.7


@SOLVERS
def test_solver_calls_once_a_step_and_reports_it(solver):
    sigmas, calls, steps = unipc_schedule(6, 5.0).sigmas, [], []

    def denoise(x, sigma, tag):
        calls.append((float(sigma[0]), tag, tuple(sigma.shape)))
        return x * 0.5

    solver(denoise, torch.ones(3, 1), sigmas, {"tag": "kept"}, callback=lambda step: steps.append(step["i"]))
    assert calls == [(sigma, "kept", (3,)) for sigma in sigmas[:-1].tolist()]
    assert steps == list(range(6))


def served(grid, evaluations, boundary=0.875):
    """Who serves each evaluation: (step reported before it or None, sigma)."""
    switch = ExpertSwitch(grid, boundary)
    out = ""
    for step, sigma in evaluations:
        if step is not None:
            switch.step = step
        out += "H" if switch.choose(sigma) else "L"
    return out


def test_switch_once_for_a_plain_solver():
    grid = [1.0, 0.94, 0.83, 0.6, 0.0]
    assert served(grid, [(None, 1.0), (0, 0.94), (1, 0.83), (2, 0.6)]) == "HHLL"


def test_looking_ahead_does_not_bring_the_switch_forward():
    grid = [1.0, 0.94, 0.83, 0.6, 0.0]
    heunpp2 = [(None, 1.0), (0, 0.94), (None, 0.83), (None, 0.94), (1, 0.83), (None, 0.6), (None, 0.83), (2, 0.6)]
    assert served(grid, heunpp2) == "HHHHLLLL"


def test_a_rejected_step_does_not_switch_back():
    assert served([1.0, 0.5, 0.0], [(None, 1.0), (0, 0.9), (None, 0.85), (1, 0.9), (None, 0.88)]) == "HHLLL"


def test_a_schedule_that_climbs_switches_back():
    assert served([1.0, 0.5, 0.9, 0.0], [(None, 1.0), (0, 0.5), (1, 0.9)]) == "HLH"


def test_a_run_that_starts_below_the_boundary_is_low_throughout():
    assert served([0.8, 0.5, 0.0], [(None, 0.8), (0, 0.5)]) == "LL"
