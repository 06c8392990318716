"""The dual-expert guider against native runs, on tiny native Wan models."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.context_windows
import comfy.hooks
import comfy.model_management
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from safetensors.torch import save_file
from wancore.nodes.bridge.guider import DualExpertGuider, with_added
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.schedule import native_sigmas, sampler_object, with_official_timesteps, with_shift
from wancore.wan_core.errors import InputError
from wancore.wan_core.sampling.schedules import unipc_schedule
from wancore.wan_core.sampling.unipc import sample_unipc

from .native_wan import SHIFT, native_model, noise, prompts, relative, weights

pytestmark = pytest.mark.usefixtures("worker")
BOUNDARY = 0.875
NAMES = comfy.samplers.KSampler.SAMPLERS


@pytest.fixture(scope="module")
def pair():
    return with_shift(native_model(1), SHIFT), with_shift(native_model(2), SHIFT)


def dual(high, low, *, cfg=(4.0, 3.0), conds=None, boundary=BOUNDARY, kind=DualExpertGuider):
    guider = kind(high, low, boundary)
    guider.set_conds(*(conds or prompts()))
    guider.set_cfg(*cfg)
    return guider


def run(guider, name="euler", steps=4, start=None, sigmas=None, mask=None, latent=None, callback=None, batch=1):
    if sigmas is None:
        sigmas = native_sigmas(guider.model_patcher, "simple", name, steps, 1.0)
    latent = torch.zeros_like(noise(batch=batch)) if latent is None else latent
    sampler = sampler_object(name) if isinstance(name, str) else name
    extra = {"denoise_mask": mask, "callback": callback, "disable_pbar": True, "seed": 11}
    return guider.sample(noise(batch=batch), latent, sampler, sigmas[start:], **extra)


def two_native_runs(high, low, name, steps=4, cfg=(4.0, 3.0), mask=None, latent=None, conds=None):
    """What two KSamplerAdvanced nodes make, split at the boundary."""
    sigmas = native_sigmas(high, "simple", name, steps, 1.0)
    split = int((sigmas[:-1] >= BOUNDARY).sum())
    latent = torch.zeros_like(noise()) if latent is None else latent
    common = {"noise_mask": mask, "disable_pbar": True, "seed": 11}
    conds = conds or prompts()
    first = comfy.sample.sample(
        high, noise(), steps, cfg[0], name, "simple", *conds, latent, start_step=0, last_step=split, **common
    )
    return comfy.sample.sample(
        low, torch.zeros_like(first), steps, cfg[1], name, "simple", *conds, first, start_step=split, **common
    )


def record(model, log, tag):
    """A clone whose transformer notes its tag, timestep and input at every call."""

    def note(executor, *args, **kwargs):
        log.append((tag, args[1].flatten()[0].item(), args[0].clone()))
        return executor(*args, **kwargs)

    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, tag, note)
    return clone


@pytest.mark.parametrize("name", ["euler", "ddim"])
def test_equals_two_native_runs(pair, name):
    assert relative(run(dual(*pair), name), two_native_runs(*pair, name)) < 1e-5


def test_image_to_video_equals_two_native_runs():
    """The start image is prepared for each expert, from the same conditioning."""
    models = [with_shift(native_model(seed, in_dim=36), SHIFT) for seed in (1, 2)]
    mask = torch.ones(1, 1, 3, 8, 8)
    mask[:, :, 0] = 0
    image = {"concat_latent_image": noise(8), "concat_mask": mask}
    conds = [[[text, {**extra, **image}] for text, extra in prompt] for prompt in prompts()]
    ours, theirs = run(dual(*models, conds=conds)), two_native_runs(*models, "euler", conds=conds)
    assert relative(ours, theirs) < 1e-5
    assert relative(ours, run(dual(*models))) > 1e-3
    assert torch.equal(image["concat_latent_image"], noise(8))


def test_each_expert_computes_on_its_own_device(pair, monkeypatch):
    """Programs start on CUDA's current device, wherever their tensors are."""
    current, seen = [], set()

    @contextmanager
    def context(device):
        current.append(device)
        yield
        current.pop()

    def note(executor, *args, **kwargs):
        seen.add((args[1].flatten()[0].item() >= 1000 * BOUNDARY, len(current), current[-1]))
        return executor(*args, **kwargs)

    monkeypatch.setattr(comfy.model_management, "cuda_device_context", context)
    models = [model.clone() for model in pair]
    for model in models:
        model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "note", note)
    run(dual(*models))
    high, low = (model.load_device for model in models)
    assert seen == {(True, 1, high), (False, 2, low)}  # the second one is the low expert's own


def test_swapped_experts_differ(pair):
    assert relative(run(dual(*pair)), run(dual(*reversed(pair)))) > 1e-2


def test_guidance_of_each_expert_counts(pair):
    assert relative(run(dual(*pair)), run(dual(*pair, cfg=(4.0, 1.0)))) > 1e-3
    assert relative(run(dual(*pair)), run(dual(*pair, cfg=(1.0, 3.0)))) > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_one_file_twice_equals_one_model(name):
    """Two patchers over two copies of the weights: nothing of the run may depend on the change of expert."""
    twins = with_shift(native_model(1), SHIFT), with_shift(native_model(1), SHIFT)
    alone = run(dual(twins[0], None, cfg=(3.0,)), name)
    calls = []
    both = run(dual(record(twins[0], calls, "high"), record(twins[1], calls, "low"), cfg=(3.0, 3.0)), name)
    assert torch.equal(alone, both)
    tags = [tag for tag, *_ in calls]
    assert set(tags) == {"high", "low"} and tags == sorted(tags), "one change of expert in a run"


@pytest.mark.parametrize("name", NAMES)
def test_two_clones_of_one_module_equal_one_model(name):
    model = with_shift(native_model(1), SHIFT)
    alone = run(dual(model, None, cfg=(3.0,)), name)
    assert torch.equal(alone, run(dual(model.clone(), model.clone(), cfg=(3.0, 3.0)), name))
    assert torch.equal(alone, run(dual(model, model, cfg=(3.0, 3.0)), name))


def test_clones_with_different_patches_each_serve_their_steps(pair):
    """One module, a LoRA-like patch on the low clone only: equals two separately loaded models."""
    key = "diffusion_model.blocks.0.ffn.0.weight"

    def patched(model):
        clone = model.clone()
        clone.add_patches({key: (0.3 * torch.ones(64, 128),)})
        return clone

    def one():
        return with_shift(native_model(1), SHIFT)

    shared = one()
    clones = run(dual(shared, patched(shared)))
    apart = run(dual(one(), patched(one())))
    assert relative(clones, apart) < 1e-6 and relative(clones, run(dual(shared, shared))) > 1e-4


@pytest.mark.parametrize(("name", "tolerance"), [("euler", 1e-6), ("dpmpp_2m", 1e-6), ("uni_pc", 2e-2)])
def test_mask_is_kept_exactly(pair, name, tolerance):
    """uni_pc itself ends at sigma 0.001, with one model too."""
    latent, mask = torch.randn(noise().shape), torch.zeros(1, 1, 3, 8, 8)
    mask[..., 4:] = 1
    ours = run(dual(*pair), name, mask=mask, latent=latent)
    kept = pair[0].model.process_latent_out(pair[0].model.process_latent_in(latent))
    assert torch.allclose(ours[..., :4], kept[..., :4], atol=tolerance)
    theirs = two_native_runs(*pair, name, mask=mask, latent=latent)
    assert not torch.allclose(theirs[..., :4], kept[..., :4], atol=1.0), "the native pair breaks the mask"


@pytest.mark.parametrize(("start", "loaded"), [(None, {"high", "low"}), (2, {"low"})])
def test_an_expert_without_a_step_is_never_loaded(pair, start, loaded, monkeypatch):
    seen = []
    native = comfy.model_management.load_models_gpu
    names = {id(pair[0].model): "high", id(pair[1].model): "low"}
    monkeypatch.setattr(
        comfy.model_management,
        "load_models_gpu",
        lambda models, *args, **kwargs: (
            seen.extend(names[id(m.model)] for m in models),
            native(models, *args, **kwargs),
        ),
    )
    run(dual(*pair), start=start)
    assert set(seen) == loaded and len(seen) == len(loaded)


def test_high_only_run_never_loads_low(pair):
    calls = []
    guider = dual(record(pair[0], calls, "high"), record(pair[1], calls, "low"))
    sigmas = native_sigmas(pair[0], "simple", "heun", 6, 1.0)
    run(guider, "heun", sigmas=sigmas[:4])
    assert {tag for tag, *_ in calls} == {"high"}


def test_low_is_loaded_after_the_last_high_step(pair):
    events, calls = [], []
    high, low = record(pair[0], calls, "high"), record(pair[1], calls, "low")
    low.add_callback(comfy.patcher_extension.CallbacksMP.ON_PRE_RUN, lambda patcher: events.append(len(calls)))
    run(dual(high, low))
    high_calls = sum(tag == "high" for tag, *_ in calls)
    assert events == [high_calls]


def test_schedule_that_climbs_may_start_on_low_and_come_back(pair):
    calls = []
    guider = dual(record(pair[0], calls, "high"), record(pair[1], calls, "low"), cfg=(1.0, 1.0))
    run(guider, sigmas=torch.tensor([0.6, 0.4, 0.9, 0.7, 0.0]))
    assert [tag for tag, *_ in calls] == ["low", "low", "high", "low"]
    assert guider.first_is_high and guider.model_patcher is not guider.other.model_patcher


@pytest.mark.parametrize("in_dim", [16, 36], ids=["T2V", "I2V"])
def test_our_models_equal_native_ones(tmp_path, in_dim):
    def both(seed):
        path = tmp_path / f"wan_{seed}.safetensors"
        save_file(weights(seed, in_dim), path)
        return load_model(str(path), dtype=torch.float32), native_model(seed, in_dim)

    (our_high, native_high), (our_low, native_low) = both(1), both(2)
    runs = [
        run(dual(with_shift(high, SHIFT), with_shift(low, SHIFT), conds=prompts(tokens=512)), "dpmpp_2m")
        for high in (our_high, native_high)
        for low in (our_low, native_low)
    ]
    assert all(relative(ours, runs[-1]) < 1e-5 for ours in runs[:-1])


class StopHereError(Exception):
    pass


@pytest.mark.parametrize("stop", range(4))
def test_interrupt_leaves_nothing_behind(pair, stop):
    whole = run(dual(*pair), "dpmpp_2m")
    guider = dual(*pair)

    def interrupt(step, *_):
        if step == stop:
            raise StopHereError

    before = set(vars(guider)), set(vars(guider.other))
    options = [dict(model.model_options) for model in pair]
    with pytest.raises(StopHereError):
        run(guider, "dpmpp_2m", callback=interrupt)
    assert (set(vars(guider)), set(vars(guider.other))) == before and guider.switch is None
    assert [dict(model.model_options) for model in pair] == options
    assert all(model.model.current_patcher is None for model in pair)
    assert torch.equal(run(guider, "dpmpp_2m"), whole)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_lack_of_memory_while_an_expert_loads_is_what_is_told(pair, monkeypatch, failing):
    native = comfy.model_management.load_models_gpu

    def load(models, *args, **kwargs):
        if any(model.model is pair[failing].model for model in models):
            raise torch.OutOfMemoryError
        return native(models, *args, **kwargs)

    whole, guider = run(dual(*pair)), dual(*pair)
    with monkeypatch.context() as patched, pytest.raises(torch.OutOfMemoryError):
        patched.setattr(comfy.model_management, "load_models_gpu", load)
        run(guider)
    assert all(model.model.current_patcher is None for model in pair)
    assert torch.equal(run(guider), whole)


def test_a_latent_of_another_model_is_refused_before_loading(pair, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(InputError) as caught:
        run(dual(*pair), latent=torch.randn(1, 48, 3, 8, 8))
    assert caught.value.where == "latent" and "48" in caught.value.found


def test_batch_and_prompts_of_different_length(pair):
    positive, negative = prompts()
    negative = [[negative[0][0][:, :3], {}]]
    ours = run(dual(*pair, conds=(positive, negative)), batch=2)
    alone = run(dual(*pair, conds=(positive, negative)), batch=1)
    assert ours.shape[0] == 2 and relative(ours[:1], alone) < 1e-5


def test_conditioning_area_and_mask_reach_both_experts(pair):
    positive, negative = prompts()
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1
    other = prompts(9)[0]
    areas = [[positive[0][0], {"mask": mask, "mask_strength": 1.0}], [other[0][0], {"area": (3, 4, 8, 0, 0, 2)}]]
    twins = with_shift(native_model(1), SHIFT), with_shift(native_model(1), SHIFT)
    alone = run(dual(twins[0], None, conds=(areas, negative)))
    assert torch.equal(alone, run(dual(*twins, cfg=(4.0, 4.0), conds=(areas, negative))))
    assert relative(alone, run(dual(twins[0], None))) > 1e-3


def test_timestep_ranges_of_conditionings_cross_the_switch(pair):
    positive, negative = prompts()
    halves = [[positive[0][0], {"start_percent": 0.0, "end_percent": 0.6}]]
    halves += [[prompts(9)[0][0][0], {"start_percent": 0.6, "end_percent": 1.0}]]
    twins = with_shift(native_model(1), SHIFT), with_shift(native_model(1), SHIFT)
    alone = run(dual(twins[0], None, conds=(halves, negative)))
    assert torch.equal(alone, run(dual(*twins, cfg=(4.0, 4.0), conds=(halves, negative))))


@pytest.mark.parametrize("shared", [True, False], ids=["clones", "two modules"])
def test_hooks_on_conditionings_reach_both_experts(shared):
    """A LoRA hook that one prompt carries, and that fades over the run, as keyframes make it."""
    lora = {
        "diffusion_model.blocks.0.ffn.0.lora_up.weight": 0.5 * torch.ones(64, 2),
        "diffusion_model.blocks.0.ffn.0.lora_down.weight": 0.5 * torch.ones(2, 128),
    }

    def hooked():
        hooks = comfy.hooks.create_hook_lora(lora, 1.0, 0.0)
        frames = comfy.hooks.HookKeyframeGroup()
        for strength, start in ((1.0, 0.0), (0.3, 0.3), (0.8, 0.7)):
            frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
        hooks.set_keyframes_on_hooks(frames)
        positive, negative = prompts()
        return comfy.hooks.set_hooks_for_conditioning(positive, hooks), negative

    model = with_shift(native_model(1), SHIFT)
    other = model.clone() if shared else with_shift(native_model(1), SHIFT)
    transformer = model.model.diffusion_model
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    alone = run(dual(model, None, conds=hooked()))
    assert torch.equal(alone, run(dual(model, other, cfg=(4.0, 4.0), conds=hooked())))
    assert relative(alone, run(dual(model, None))) > 1e-3
    assert all(torch.equal(weight, before[name]) for name, weight in transformer.state_dict().items())


def test_context_windows_with_free_noise_shuffle_the_noise_once(pair):
    def windowed(model):
        arguments = (5, 4, comfy.context_windows.ContextSchedules.STATIC_STANDARD, 1, False)
        return WanContextWindowsManualNode.execute(model, *arguments, "pyramid", True).result[0]

    twins = [windowed(with_shift(native_model(1), SHIFT)) for _ in range(2)]
    alone = run(dual(twins[0], None))
    assert torch.equal(alone, run(dual(*twins, cfg=(4.0, 4.0))))
    assert relative(alone, run(dual(pair[0], None))) > 1e-3


def test_model_options_of_each_expert_stay_its_own(pair):
    seen = []

    def post(tag):
        return lambda args: (seen.append((tag, args["cond_scale"])), args["denoised"])[1]

    high, low = pair[0].clone(), pair[1].clone()
    high.set_model_sampler_post_cfg_function(post("high"))
    low.set_model_sampler_post_cfg_function(post("low"))
    run(dual(high, low))
    assert seen == [("high", 4.0)] * 2 + [("low", 3.0)] * 2


def test_options_that_a_sampler_adds_are_passed_on():
    before = {"sampler_post_cfg_function": ["a"], "transformer_options": {"x": 1}}
    now = {"sampler_post_cfg_function": ["a", "b"], "transformer_options": {"x": 1, "y": 2}, "flag": True}
    mine = {"sampler_post_cfg_function": ["c"], "transformer_options": {"z": 3}}
    assert with_added(mine, before, now) == {
        "sampler_post_cfg_function": ["c", "b"],
        "transformer_options": {"z": 3, "y": 2},
        "flag": True,
    }
    assert mine == {"sampler_post_cfg_function": ["c"], "transformer_options": {"z": 3}}


def test_sampling_wrappers_of_both_experts_run_once_around_the_run(pair):
    log = []

    def wrapper(tag):
        def wrap(executor, *args, **kwargs):
            log.append(f"{tag} in")
            out = executor(*args, **kwargs)
            log.append(f"{tag} out")
            return out

        return wrap

    models = [model.clone() for model in pair]
    for model, tag in zip(models, ("high", "low"), strict=True):
        for kind in ("OUTER_SAMPLE", "SAMPLER_SAMPLE"):
            point = getattr(comfy.patcher_extension.WrappersMP, kind)
            model.add_wrapper_with_key(point, "test", wrapper(f"{tag} {kind}"))
    run(dual(*models))
    assert sorted(log) == sorted(set(log)) and len(log) == 8
    assert log[4:] == [entry.replace(" in", " out") for entry in reversed(log[:4])]


@pytest.mark.parametrize("node", [EasyCacheNode, LazyCacheNode])
def test_native_step_cache_works_on_either_expert(pair, node):
    plain = run(dual(*pair), steps=20)

    def cached(model):
        return node.execute(model, 0.8, 0.1, 0.95, False).result[0]

    for models in ((pair[0], cached(pair[1])), (cached(pair[0]), pair[1]), (cached(pair[0]), cached(pair[1]))):
        calls = []
        logged = record(models[0], calls, "high"), record(models[1], calls, "low")
        out = run(dual(*logged), steps=20)
        assert torch.isfinite(out).all() and 1e-6 < relative(out, plain) < 1.0
        assert run(dual(*models), steps=20).equal(out), "the cache starts anew in each run"


@pytest.mark.parametrize(("steps", "shift", "boundary", "expected"), [(40, 12.0, 0.875, 26), (40, 5.0, 0.9, 15)])
def test_official_mode_inside_the_transformer(steps, shift, boundary, expected):
    """Integer timesteps, noise unscaled at call 0, the golden's number of steps on each expert."""
    schedule, calls = unipc_schedule(steps, shift), []
    models = [with_official_timesteps(native_model(seed), shift, schedule) for seed in (1, 2)]
    guider = dual(record(models[0], calls, "high"), record(models[1], calls, "low"), cfg=(1.0, 1.0), boundary=boundary)
    out = run(guider, comfy.samplers.KSAMPLER(sample_unipc), sigmas=schedule.sigmas)
    assert torch.isfinite(out).all()
    assert torch.equal(calls[0][2], noise()), "the first latent is the noise itself"
    assert [timestep for _, timestep, _ in calls] == schedule.timesteps.tolist()
    assert [tag for tag, *_ in calls] == ["high"] * expected + ["low"] * (steps - expected)


def test_official_mode_equals_the_official_loop():
    """The whole run again by hand: velocity of the transformer at integer timesteps, then the official solver."""
    shift, schedule = 5.0, unipc_schedule(10, 5.0)
    plain = [native_model(seed) for seed in (1, 2)]
    models = [with_official_timesteps(model, shift, schedule) for model in plain]
    positive, negative = prompts()
    calls = []
    guider = dual(record(models[0], calls, "high"), record(models[1], calls, "low"), cfg=(4.0, 3.0))
    ours = run(guider, comfy.samplers.KSAMPLER(sample_unipc), sigmas=schedule.sigmas)
    told = dict(zip(schedule.sigmas.tolist(), schedule.timesteps.tolist(), strict=False))
    latents = []

    def denoise(x, sigma):
        timestep = told[float(sigma[0])]
        high = timestep >= BOUNDARY * 1000
        transformer, scale = plain[0 if high else 1].model.diffusion_model, 4.0 if high else 3.0
        latents.append(x)
        times = torch.tensor([float(timestep)])
        cond, uncond = (transformer(x, times, context=c[0][0]) for c in (positive, negative))
        return x - sigma[0] * (uncond + scale * (cond - uncond))

    theirs = sample_unipc(denoise, noise(), schedule.sigmas)
    first_low = next(i for i, (tag, *_) in enumerate(calls) if tag == "low")
    boundary_call = calls[first_low][2][:1]
    assert relative(boundary_call, latents[sum(t >= BOUNDARY * 1000 for t in told.values())]) < 1e-5
    assert relative(ours, plain[0].model.process_latent_out(theirs)) < 1e-5
