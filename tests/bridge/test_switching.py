"""Two runs of the experts against a pair of native samplers, and when they are taken."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.samplers
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from wancore.nodes.bridge.replay import ReplayLog
from wancore.nodes.bridge.schedule import native_sigmas
from wancore.nodes.bridge.switching import SegmentedGuider, why_segmented

from .native_wan import noise
from .test_guider import BOUNDARY, dual, pair, relative, run, two_native_runs

__all__ = ["pair"]
pytestmark = pytest.mark.usefixtures("worker")


segmented = partial(dual, kind=SegmentedGuider)


@pytest.mark.parametrize("name", comfy.samplers.KSampler.SAMPLERS)
def test_equals_two_native_runs_bit_for_bit(pair, name):
    steps = []
    ours = run(segmented(*pair), name, callback=lambda step, _x0, _x, total: steps.append((step, total)))
    assert torch.equal(ours, two_native_runs(*pair, name))
    if name not in ("dpm_fast", "dpm_adaptive"):  # which count their own steps
        assert sorted({step for step, _ in steps}) == [0, 1, 2, 3] and {total for _, total in steps} == {4}


def test_a_multistep_solver_and_ancestral_noise_start_anew(pair):
    """What one run is for."""
    for name in ("dpmpp_2m", "euler_ancestral"):
        assert relative(run(segmented(*pair), name), run(dual(*pair), name)) > 1e-4


def test_a_run_within_one_expert_is_not_cut(pair):
    sigmas = native_sigmas(pair[0], "simple", "dpmpp_2m", 8, 1.0)
    low = sigmas[(sigmas >= BOUNDARY).sum() :]
    mask, latent = torch.ones(1, 1, 3, 8, 8), torch.randn(noise().shape)
    for part in (sigmas[:4], low):
        ours, one = (run(kind(*pair), "dpmpp_2m", sigmas=part, mask=mask, latent=latent) for kind in (segmented, dual))
        assert torch.equal(ours, one)


def passing(executor, *args, **kwargs):
    return executor(*args, **kwargs)


def with_wrapper(model, key, kind=WrappersMP.OUTER_SAMPLE):
    clone = model.clone()
    clone.add_wrapper_with_key(kind, key, passing)
    return clone


def test_what_does_not_fit_into_one_run(pair):
    high, low = pair
    assert not why_segmented(high, low) and not why_segmented(high, None, "two runs")
    assert why_segmented(high, low, "two runs")
    assert "somebody" in why_segmented(high, with_wrapper(low, "somebody"))
    assert "a wrapper without a name" in why_segmented(high, with_wrapper(low, None, WrappersMP.SAMPLER_SAMPLE))
    assert not why_segmented(high, with_wrapper(low, "somebody"), "one run")
    assert not why_segmented(with_wrapper(high, "somebody"), with_wrapper(low, "somebody")), "as around one model"
    assert not why_segmented(with_wrapper(high, "somebody"), low)
    spread = low.clone()
    spread.set_additional_models("multigpu", [low.clone()])
    assert "several GPUs" in why_segmented(high, spread)


def test_native_wrappers_that_fit_stay_in_one_run(pair, tmp_path):
    high, low = pair
    windows = (5, 4, "standard_static", 1, False, "pyramid", True)
    for model in (
        EasyCacheNode.execute(low, 0.2, 0.15, 0.95, False).result[0],
        LazyCacheNode.execute(low, 0.2, 0.15, 0.95, False).result[0],
        WanContextWindowsManualNode.execute(low, *windows).result[0],
        ReplayLog(tmp_path).on(low, "low"),
    ):
        assert not why_segmented(high, model)
