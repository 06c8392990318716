"""The step cache on MODELs under our run and native ones: each expert's own, with its report, resumable."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from wancore.nodes.bridge import kept_files, step_cache
from wancore.nodes.guidance import WanCoreStepCache
from wancore.wan_core.errors import WrongModelError

from .test_guider import dual, pair, record, relative, run
from .test_replay import interrupt_after, logged

__all__ = ["pair"]
pytestmark = pytest.mark.usefixtures("worker")
STEPS = 20


@pytest.fixture
def shown(monkeypatch):
    texts = []
    monkeypatch.setattr(step_cache, "show_on_node", lambda node_id, text: texts.append(text))
    return texts


def cached(high, low, threshold_high=0.5, threshold_low=1.0):
    stand_in = SimpleNamespace(hidden=SimpleNamespace(unique_id="3"))
    return WanCoreStepCache.execute.__func__(stand_in, high, threshold_high, threshold_low, low).result


def steps_of(models, **options):
    """How many steps the model was asked for, expert by expert, and the result."""
    calls = []
    high, low = models
    guider = dual(record(high, calls, "high"), record(low, calls, "low") if low is not None else None, cfg=(1.0, 1.0))
    out = run(guider, steps=STEPS, **options)
    return {tag: [timestep for name, timestep, _ in calls if name == tag] for tag in ("high", "low")}, out


def test_each_expert_skips_by_its_own_limit(pair, shown):
    plain, whole = steps_of(pair)
    for thresholds, skipping in (((0.5, 1.0), {"high", "low"}), ((0.5, 0.0), {"high"}), ((0.0, 1.0), {"low"})):
        asked, out = steps_of(cached(*pair, *thresholds))
        assert {tag for tag in plain if len(asked[tag]) < len(plain[tag])} == skipping
        assert 1e-6 < relative(out, whole) < 0.5
        for tag, timesteps in plain.items():
            assert asked[tag][:2] == timesteps[:2], "no expert's first steps"
            assert set(asked[tag]) <= set(timesteps)
        assert asked["low"][-2:] == plain["low"][-2:], "nor the last of the run"


def test_the_node_says_what_came_of_it(pair, shown):
    plain, _ = steps_of(pair)
    asked, _ = steps_of(cached(*pair))
    lines = shown[-1].split("\n")
    for line, tag in zip(lines, ("high", "low"), strict=True):
        count = len(plain[tag])
        assert line.startswith(f"{tag}: {count - len(asked[tag])} of {count} evaluations skipped, estimated error up")
    steps_of((cached(pair[0], None)[0], None))
    assert shown[-1].startswith("model: ") and "\n" not in shown[-1]


def test_off_is_the_model_itself(pair):
    assert cached(*pair, 0.0, 0.0) == pair


def test_each_run_starts_anew(pair, shown):
    models = cached(*pair)
    asked, out = steps_of(models)
    again, same = steps_of(models)
    assert asked == again and torch.equal(out, same)
    with pytest.raises(InterruptProcessingException):
        run(dual(*models), steps=STEPS, callback=interrupt_after(5))
    assert torch.equal(steps_of(models)[1], out)


def test_clones_of_one_cached_model_each_start_anew(pair, shown):
    model, _ = cached(pair[0], None)
    plain, _ = steps_of((pair[0], pair[0].clone()))
    asked, _ = steps_of((model, model.clone()))
    assert all(asked[tag][:2] == plain[tag][:2] for tag in plain) and asked["high"] != plain["high"]
    counts = ", then ".join(f"{len(plain[tag]) - len(asked[tag])} of {len(plain[tag])} evaluations" for tag in plain)
    told = [part.partition(" skipped")[0] for part in shown[-1].removeprefix("model: ").split(", then ")]
    assert ", then ".join(told) == counts


def test_a_sampler_that_enlarges_its_latent_is_served(pair, shown):
    sampler = SamplerLCMUpscale.execute(2.0, 2, "bilinear").result[0]
    _, out = steps_of(cached(*pair), name=sampler)
    assert out.shape[-1] == 16 and torch.isfinite(out).all()


@pytest.mark.parametrize(("models", "where"), [((None, None), "high"), (("high", object()), "low")])
def test_what_is_no_wan_is_named(pair, models, where):
    with pytest.raises(WrongModelError) as caught:
        cached(*(pair[0] if model == "high" else model for model in models))
    assert caught.value.where == where and caught.value.found == "no model"


@pytest.mark.parametrize("name", ["euler_cfg_pp", "dpmpp_2m_cfg_pp"])
def test_samplers_that_look_into_the_guidance_see_every_step(pair, shown, name):
    assert torch.equal(run(dual(*cached(*pair)), name, steps=8), run(dual(*pair), name, steps=8))


def test_a_run_with_the_cache_resumes(pair, shown, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_files, "LEAST_FREE", 0)
    models = cached(*pair)
    whole = run(dual(*models), "dpmpp_2m", steps=STEPS)
    guider, _ = logged(models, tmp_path)
    with pytest.raises(InterruptProcessingException):
        run(guider, "dpmpp_2m", steps=STEPS, callback=interrupt_after(14))
    guider, log = logged(models, tmp_path)
    assert torch.equal(run(guider, "dpmpp_2m", steps=STEPS), whole) and log.replayed > 2
