"""Motion repair: the first high steps are the plain model's at real guidance, the others the distilled pair's."""

from __future__ import annotations

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.sample
from wancore.nodes.bridge import sampling
from wancore.nodes.bridge.facts import DISTILLED
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.schedule import with_shift
from wancore.wan_core.errors import InputError
from wancore.wan_core.sampling.presets import Settings
from wancore.wan_core.tasks import T2V_A14B

from .native_wan import noise, relative
from .tiny_models import text, write_lora, write_tiny

pytestmark = pytest.mark.usefixtures("worker")
LORA, SHAPES = "wan2.2_t2v_lightx2v_4steps_lora_high_noise.safetensors", "t2v_A14B_expert"
CONDS = [[text(tokens=16, seed=1), {}]], [[text(tokens=16, seed=2), {}]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repair")
    names = ("wan2.2_t2v_high_noise_14B.safetensors", "wan2.2_t2v_low_noise_14B.safetensors")
    return [load_model(write_tiny(folder / name, SHAPES, seed)) for seed, name in enumerate(names)]


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    return write_lora(tmp_path_factory.mktemp("repair") / LORA, SHAPES)


def distilled(models, lora, *, merge):
    return [with_attachment(apply_lora(model, lora, LORA, 1.0, merge=merge)[0]) for model in models]


def with_attachment(model):
    clone = model.clone()
    clone.set_attachments(DISTILLED, True)
    return clone


def sampled(models, run=None, **wishes):
    run = run or sampling.Run(seed=4)
    plan = sampling.plan(sampling.Pair.of(*models), Settings("motion", **wishes), run)
    return sampling.sample(plan, *CONDS, {"samples": torch.zeros_like(noise())}, run, None)[0]["samples"], plan


def part(model, steps, cfg, latent, start, end):
    """A native sampler over some of the steps."""
    first = noise_of() if start == 0 else torch.zeros_like(latent)
    options = {
        "start_step": start,
        "last_step": end,
        "disable_pbar": True,
        "seed": 4,
        "force_full_denoise": end == steps,
    }
    model = with_shift(model, 5.0)
    return comfy.sample.sample(model, first, steps, cfg, "euler", "simple", *CONDS, latent, **options)


def noise_of():
    return comfy.sample.prepare_noise(torch.zeros_like(noise()), 4)


@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
def test_equals_native_runs_with_and_without_the_lora(plain, lora, merge):
    high, low = distilled(plain, lora, merge=merge)
    ours, plan = sampled((high, low))
    assert plan.text.startswith("6 steps: 3 high + 3 low, cfg 4 in the first 2 without the distillation LoRA, then 1, ")
    latent = part(plain[0], 6, T2V_A14B.guidance_high, torch.zeros_like(noise()), 0, 2)
    latent = part(high, 6, 1.0, latent, 2, 3)
    assert relative(ours, part(low, 6, 1.0, latent, 3, 6)) < 1e-5
    assert relative(ours, sampled((high, low), guidance_high=1.0)[0]) > 1e-3, "the first steps' scale can be set"


def test_a_run_that_starts_later_is_repaired_for_what_is_left(plain, lora):
    models = distilled(plain, lora, merge=False)
    for start, left, guidance in ((1, 1, 4.0), (2, 0, 1.0)):
        _, plan = sampled(models, sampling.Run(seed=4, start_at_step=start))
        assert (plan.settings.repaired_steps, plan.settings.guidance_high) == (left, guidance)
    _, plan = sampled(models, boundary=1.0)
    assert plan.settings.repaired_steps == 1, "only steps of the high expert"


def test_a_model_without_such_a_lora_is_refused(plain):
    with pytest.raises(InputError) as caught:
        sampled([with_attachment(model) for model in plain])
    assert caught.value.where == "preset" and "Wan LoRA Pair" in caught.value.remedy
