"""On trained weights in float32, our transformer rounds no more than ComfyUI's own: both against float64."""

from __future__ import annotations

import copy

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.ops
from comfy.ldm.wan.model import WanModel
from wancore.pocket import family, models
from wancore.wan_core.conditioning import Conditioning

SIGMAS = (0.99, 0.9, 0.7, 0.3)
TEXT_TOKENS = 512
SMALL = 5e-6  # relative, of one forward; guidance multiplies it
MORE = 1.25  # times ComfyUI's


@pytest.mark.parametrize("member", [family.T2V_HIGH, family.T2V_LOW], ids=["high", "low"])
def test_rounds_no_more_than_native(member: family.Member) -> None:
    ours = models.load_weights(models.new_transformer(member), member).eval().requires_grad_(False)
    config = ours.config
    native = WanModel(
        model_type="t2v", dim=config.dim, ffn_dim=config.ffn_dim, num_heads=config.num_heads, text_dim=config.text_dim,
        num_layers=config.num_layers, in_dim=config.in_dim, out_dim=config.out_dim, freq_dim=config.freq_dim,
        cross_attn_norm=True, device="cpu", dtype=torch.float32, operations=comfy.ops.manual_cast,
    ).eval().requires_grad_(False)  # fmt: skip
    native.load_state_dict(ours.state_dict())
    exact = copy.deepcopy(ours).double()
    random = torch.Generator().manual_seed(5)
    video = torch.randn(1, config.in_dim, 3, 8, 8, generator=random)
    text = 0.3 * torch.randn(1, TEXT_TOKENS, config.text_dim, generator=random)
    errors = {"ours": 0.0, "native": 0.0}
    with torch.inference_mode():
        for sigma in SIGMAS:
            timestep = torch.tensor([1000 * sigma])
            truth = exact(video.double(), timestep.double(), Conditioning(text.double()))
            errors["ours"] += relative(ours(video, timestep, Conditioning(text)), truth)
            errors["native"] += relative(native(video, timestep, text), truth)
    assert max(errors.values()) < SMALL * len(SIGMAS), errors
    assert errors["ours"] <= MORE * errors["native"], errors


def relative(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).norm() / truth.norm())
