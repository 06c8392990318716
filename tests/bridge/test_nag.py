"""NAG on MODELs, ours and native, at guidance 1 and above."""

from __future__ import annotations

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.sample
from safetensors.torch import save_file
from wancore.nodes import guidance as nodes
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.nag import with_nag
from wancore.nodes.bridge.schedule import with_shift
from wancore.wan_core.errors import InputError
from wancore.wan_core.guidance import NormalizedGuidance

from .native_wan import native_model, noise, prompts, relative, weights

pytestmark = pytest.mark.usefixtures("worker")
POSITIVE, NEGATIVE = prompts(tokens=512)
OTHER = prompts(9, tokens=512)[1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("nag") / "wan.safetensors"
    save_file(weights(1), path)
    return {
        "ours": with_shift(load_model(str(path), dtype=torch.float32), 5.0),
        "native": with_shift(native_model(1), 5.0),
    }


def sample(model, cfg=1.0, batch=1):
    start = torch.zeros_like(noise(batch=batch))
    common = {"disable_pbar": True, "seed": 1}
    return comfy.sample.sample(
        model, noise(batch=batch), 2, cfg, "euler", "simple", POSITIVE, NEGATIVE, start, **common
    )


def guided(model, scale=11.0, negative=OTHER):
    return nodes.WanCoreNAG.execute(model, negative, scale, 2.5, 0.25).result[0]


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("batch", [1, 2])
def test_ours_equals_native_and_changes_the_result(models, cfg, batch):
    ours, native = (sample(guided(models[name]), cfg, batch) for name in ("ours", "native"))
    assert relative(ours, native) < 1e-5
    assert relative(ours, sample(models["ours"], cfg, batch)) > 1e-3
    assert relative(ours, sample(guided(models["ours"], negative=POSITIVE), cfg, batch)) > 1e-3


@pytest.mark.parametrize("name", ["ours", "native"])
def test_off_is_bit_equal_and_the_model_stays_as_it_was(models, name):
    plain = sample(models[name])
    sample(guided(models[name]))
    assert torch.equal(sample(models[name]), plain)
    assert torch.equal(sample(guided(models[name], scale=1.0)), plain)
    assert with_nag(models[name], OTHER, NormalizedGuidance(alpha=0.0)) is models[name]


def test_only_the_positive_prompt_is_steered(models):
    """At guidance 3 the result is the guided positive run and the plain negative one, put together by hand."""
    velocity = {}
    for tag, model in (("plain", models["ours"]), ("guided", guided(models["ours"]))):
        rows = []
        clone = model.clone()
        clone.set_model_sampler_cfg_function(lambda args, rows=rows: (rows.append(args), args["cond"])[1])
        sample(clone, cfg=3.0)
        velocity[tag] = rows[0]
    assert torch.equal(velocity["plain"]["uncond"], velocity["guided"]["uncond"])
    assert relative(velocity["guided"]["cond"], velocity["plain"]["cond"]) > 1e-4


@pytest.mark.parametrize("several", [[*OTHER, *NEGATIVE], [[torch.cat([OTHER[0][0]] * 2), {}]]])
def test_several_prompts_are_refused(models, several):
    with pytest.raises(InputError, match="one negative prompt"):
        guided(models["ours"], negative=several)
