"""ComfyUI's own guidance, caches and windows on a pair: as on one model, and as under two native samplers."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_cfg import CFGZeroStar
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT
from wancore.nodes.bridge.schedule import with_shift

from .native_wan import SHIFT, native_model
from .test_guider import dual, pair, relative, run, two_native_runs

__all__ = ["pair"]
pytestmark = pytest.mark.usefixtures("worker")
STEPS = 20
GUIDANCE = {
    "CFG-Zero*": lambda model: CFGZeroStar.execute(model).result[0],
    "SLG": lambda model: SkipLayerGuidanceDiT.execute(model, 3.0, 0.0, 1.0, "1", "").result[0],
    "APG": lambda model: APG.execute(model, 1.0, 5.0, 0.0).result[0],  # its momentum starts anew natively
    "windows": lambda model: WanContextWindowsManualNode.execute(
        model, 5, 4, "standard_static", 1, False, "pyramid", False
    ).result[0],
}


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_equals_two_native_runs(pair, name):
    models = [GUIDANCE[name](model) for model in pair]
    ours = run(dual(*models))
    assert relative(ours, two_native_runs(*models, "euler")) < 1e-5
    assert relative(ours, run(dual(*pair))) > 1e-3


@pytest.mark.parametrize("name", GUIDANCE)
@pytest.mark.parametrize("on", ["high", "low"])
def test_guidance_on_one_expert_stays_there(pair, name, on):
    models = [GUIDANCE[name](model) if tag == on else model for model, tag in zip(pair, ("high", "low"), strict=True)]
    assert relative(run(dual(*models)), two_native_runs(*models, "euler")) < 1e-5


def test_a_momentum_goes_on_over_the_switch():
    """One APG node on a model that serves as both experts keeps its running average, as in a run of one model."""
    twins = [with_shift(native_model(1), SHIFT) for _ in range(2)]
    alone = run(dual(APG.execute(twins[0], 1.0, 5.0, 0.5).result[0], None))
    shared = APG.execute(twins[0], 1.0, 5.0, 0.5).result[0]
    assert torch.equal(run(dual(shared, shared, cfg=(4.0, 4.0))), alone)


def easy(model, kind=EasyCacheNode, threshold=1.0):
    return kind.execute(model, threshold, 0.1, 0.95, False).result[0]


@pytest.mark.parametrize("kind", [EasyCacheNode, LazyCacheNode])
@pytest.mark.parametrize("on", [("low",), ("high",), ("high", "low")], ids="+".join)
def test_native_caches_skip_steps_on_the_expert_that_carries_them(pair, kind, on, caplog):
    """Counted where the blocks of the transformer run; the node's own count says the same."""
    calls = {}
    for tag, model in zip(("high", "low"), pair, strict=True):
        calls[tag] = []
        block = model.model.diffusion_model.blocks[0]
        calls[tag, "handle"] = block.register_forward_pre_hook(lambda *_, tag=tag: calls[tag].append(1))
    plain = run(dual(*pair, cfg=(1.0, 1.0)), steps=STEPS)
    before = {tag: len(calls[tag]) for tag in ("high", "low")}
    for tag in before:
        calls[tag].clear()
    models = [easy(model, kind) if tag in on else model for model, tag in zip(pair, ("high", "low"), strict=True)]
    with caplog.at_level(logging.INFO):
        out = run(dual(*models, cfg=(1.0, 1.0)), steps=STEPS)
    skipped = {tag: before[tag] - len(calls[tag]) for tag in before}
    for tag in before:
        calls[tag, "handle"].remove()
    assert {tag for tag, count in skipped.items() if count > 0} == set(on) and sum(before.values()) == STEPS
    said = [int(count) for count in re.findall(r"skipped (\d+)/", caplog.text)]
    assert sorted(said) == sorted(skipped[tag] for tag in on)
    assert 1e-6 < relative(out, plain) < 1.0


def test_native_cache_on_the_low_expert_equals_its_native_run(pair):
    low = easy(pair[1])
    ours = run(dual(pair[0], low), steps=STEPS)
    assert relative(ours, two_native_runs(pair[0], low, "euler", steps=STEPS)) < 1e-5
