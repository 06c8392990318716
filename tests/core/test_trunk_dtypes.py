"""Which parts compute in which dtype, and how near to float64 that comes."""

from __future__ import annotations

import pytest
import torch
from wancore.wan_core.conditioning import ContextGroup
from wancore.wan_core.hooks import Hooks
from wancore.wan_core.transformer import sinusoid

from .small_trunk import noise, prompt, relative, transformer, video

STEP = torch.tensor([637.25])
HALVES = [torch.bfloat16, torch.float16]


def run(dtype: torch.dtype, residual_dtype: torch.dtype | None = None, weights: torch.dtype | None = None):
    model = transformer(dtype=weights or dtype, residual_dtype=residual_dtype)
    return model(video().to(dtype), STEP, prompt())


def rounded(dtype: torch.dtype):
    """The float64 result of the weights and inputs that the model in `dtype` has."""
    model = transformer(dtype=dtype).to(torch.float64)
    sample = prompt()
    return model(video().to(dtype).double(), STEP, type(sample)(text=sample.text.to(dtype)))


def test_float64_goes_all_through():
    exact = run(torch.float64)
    assert exact.dtype == torch.float64
    assert relative(run(torch.float32), exact) < 1e-6


@pytest.mark.parametrize("dtype", HALVES)
def test_linear_layers_compute_in_the_videos_dtype_and_islands_in_float32(dtype):
    model, seen = transformer(dtype=dtype, image_dim=12), {}

    def note(name):
        return lambda module, inputs: seen.update({name: inputs[0].dtype})

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(note(name))
    contexts = (ContextGroup(noise(1, 4, 12)),)
    streams = []
    hooks = Hooks(after_block=(lambda index, x, stream: streams.append(stream) or x,))
    out = model(video().to(dtype), STEP, prompt(contexts=contexts), hooks)
    wide = {name for name, seen_dtype in seen.items() if seen_dtype == torch.float32}
    islands = ("time_embedding", "time_projection", "head", "patch_embedding")
    assert wide == {name for name in seen if name.startswith(islands) or name.endswith("norm3")}
    assert {seen[name] for name in seen.keys() - wide} == {dtype}
    assert out.dtype == streams[0].rows.dtype == streams[0].time.dtype == torch.float32
    assert streams[0].rotation.dtype == torch.complex64


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision_is_near_and_a_float32_residual_nearer(dtype, limit):
    exact = rounded(dtype)
    fast, quality = relative(run(dtype), exact), relative(run(dtype, torch.float32), exact)
    assert quality < fast < limit


@pytest.mark.parametrize("dtype", HALVES)
def test_the_residual_dtype_is_that_of_the_tokens_between_blocks(dtype):
    for residual, expected in ((None, dtype), (torch.float32, torch.float32)):
        seen = []
        hooks = Hooks(after_block=(lambda index, x, stream, seen=seen: seen.append(x.dtype) or x,))
        transformer(dtype=dtype, residual_dtype=residual)(video().to(dtype), STEP, prompt(), hooks)
        assert seen == [expected] * 3


def test_weights_may_be_stored_narrower_than_the_video():
    """bfloat16 weights under a float32 video are those weights in float32."""
    stored = run(torch.float32, weights=torch.bfloat16)
    model = transformer(dtype=torch.bfloat16).to(torch.float32)
    assert relative(stored, model(video(), STEP, prompt())) < 1e-6


def test_the_sinusoid_is_exact_at_every_timestep():
    steps = torch.tensor([0.0, 0.5, 999.0, 1000.0])
    angles = steps.double()[:, None] / 10000.0 ** (torch.arange(4).double() / 4)
    assert torch.equal(sinusoid(steps, 8), torch.cat([angles.cos(), angles.sin()], dim=1))
    assert torch.equal(sinusoid(torch.tensor([999]), 8), sinusoid(torch.tensor([999.0]), 8))
