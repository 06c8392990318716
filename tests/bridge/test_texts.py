"""Keys and values of the texts are computed once in a run, with the same bits in the clip."""

from __future__ import annotations

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.hooks
import comfy.model_management as management
import comfy.sample
import comfy.utils
from comfy.patcher_extension import CallbacksMP
from safetensors.torch import save_file
from wancore.nodes.bridge import texts
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.nag import with_nag
from wancore.wan_core.guidance import NormalizedGuidance

from .native_wan import DIM, LAYERS, noise, prompts, relative, weights

STEPS = 3
POSITIVE, NEGATIVE = prompts(tokens=512)
OTHER = prompts(9, tokens=512)[1]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "wan.safetensors"
    save_file(weights(1), path)
    return str(path)


@pytest.fixture
def model(path):
    return load_model(path, dtype=torch.float32)


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    path, generator = tmp_path_factory.mktemp("texts") / "lora.safetensors", torch.Generator().manual_seed(2)
    pairs = {}
    for index in range(LAYERS):
        for name in "kv":
            layer = f"diffusion_model.blocks.{index}.cross_attn.{name}"
            pairs[f"{layer}.lora_down.weight"] = torch.randn(4, DIM, generator=generator)
            pairs[f"{layer}.lora_up.weight"] = 0.05 * torch.randn(DIM, 4, generator=generator)
    save_file(pairs, path)
    return str(path)


def without(model):
    """A clone whose runs begin no memory."""
    clone = model.clone()
    clone.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, texts.OPTION)
    return clone


def sample(model, positive=POSITIVE, negative=NEGATIVE, cfg=1.0):
    """A clip, and how often the first block's keys of texts were computed for it."""
    calls = []
    layer = model.model.diffusion_model.blocks[0].cross_attn.k
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    given = (positive, negative, torch.zeros_like(noise()))
    try:
        clip = comfy.sample.sample(model, noise(), STEPS, cfg, "euler", "simple", *given, disable_pbar=True, seed=1)
    finally:
        handle.remove()
    return clip, len(calls)


def check(model, once: int, each: int, **given):
    """The same bits, from `once` computations in place of `each`."""
    clip, calls = sample(model, **given)
    expected, expected_calls = sample(without(model), **given)
    assert torch.equal(clip, expected)
    assert (calls, expected_calls) == (once, each)
    assert not texts._RUNS, "a run has left its memory behind"
    return clip


def test_one_prompt(model) -> None:
    check(model, 1, STEPS)


def test_another_text_is_another_clip(model) -> None:
    first = check(model, 1, STEPS)
    assert relative(check(model, 1, STEPS, positive=OTHER), first) > 1e-3


def test_both_prompts_of_a_step(model, monkeypatch) -> None:
    check(model, 1, STEPS, cfg=3.0)  # one batch
    # Less than 1.5 times of what a call needs: ComfyUI calls one prompt after the other.
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: 14 * 2**24)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_, **__: 10 * 2**24)
    check(model, 2, 2 * STEPS, cfg=3.0)


def test_the_text_that_is_moved_away_from(model) -> None:
    check(with_nag(model, OTHER, NormalizedGuidance()), 2, 2 * STEPS)
    check(with_nag(model, OTHER, NormalizedGuidance()), 2, 2 * STEPS, cfg=3.0)


def test_prompts_that_hold_for_a_part_of_the_run(model) -> None:
    halves = [[POSITIVE[0][0], {"end_percent": 0.5}], [OTHER[0][0], {"start_percent": 0.5}]]
    clip = check(model, 2, STEPS, positive=halves)
    assert relative(clip, sample(model)[0]) > 1e-3


def test_a_lora_whose_strength_changes(model, lora) -> None:
    clips = {}
    for strengths, once in (((1.0,), 1), ((1.0, 1.0, 0.5), 2), ((1.0, 0.5, 1.0), 3)):
        beside = apply_lora(model, lora, "lora.safetensors", strengths, merge=False)[0]
        clips[strengths] = check(beside, once, STEPS)
    assert relative(clips[1.0, 1.0, 0.5], clips[1.0,]) > 1e-4


def test_hooks_on_a_prompt_get_no_memory(model, lora) -> None:
    hooks = comfy.hooks.create_hook_lora(comfy.utils.load_torch_file(lora), 1.0, 0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.2, 0.5)):
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start))
    hooks.set_keyframes_on_hooks(frames)
    hooked = comfy.hooks.set_hooks_for_conditioning(POSITIVE, hooks)
    check(model, STEPS, STEPS, positive=hooked)


def test_a_patch_that_changes_the_text_of_a_block(model) -> None:
    steps = []

    def patch(args, more):
        steps.append(1)
        return more["original_block"]({**args, "txt": args["txt"] * len(steps)})

    clone = model.clone()
    clone.set_model_patch_replace(patch, "dit", "double_block", 0)
    clip, calls = sample(clone)
    assert calls == STEPS
    steps.clear()
    assert torch.equal(clip, sample(without(clone))[0])


def test_a_card_without_room_keeps_nothing(model, monkeypatch) -> None:
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: 2**20)
    check(model, STEPS, STEPS)


def test_an_interrupted_run_leaves_nothing(model) -> None:
    def stop(*_):
        raise InterruptedError

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(stop)
    with pytest.raises(InterruptedError):
        sample(clone)
    assert not texts._RUNS
