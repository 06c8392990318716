"""The blocks that training computes, against the model's own."""

from __future__ import annotations

import torch
from wancore.pocket import family, models
from wancore.pocket.training.blocks import TEXT_ROWS, training_hooks
from wancore.wan_core.conditioning import Conditioning


def test_training_blocks_equal_the_models_own():
    """Trained weights, float32, a text shorter than the rows that training computes."""
    model = models.load_weights(models.new_transformer(family.T2V_LOW), family.T2V_LOW).requires_grad_(False)
    random = torch.Generator().manual_seed(3)
    video = torch.randn((2, model.config.in_dim, 3, 8, 12), generator=random)
    timestep = torch.tensor([310.0, 820.0])
    text = torch.zeros((2, TEXT_ROWS, family.TEXT_DIM))
    text[:, : TEXT_ROWS // 2] = torch.randn((2, TEXT_ROWS // 2, family.TEXT_DIM), generator=random)
    expected = model(video, timestep, Conditioning(text=text))
    found = model(video, timestep, Conditioning(text=text), training_hooks(model, video.device))
    assert (found - expected).norm() <= 2e-6 * expected.norm()
    assert expected.norm() > 0


def test_training_blocks_have_the_models_own_gradients():
    random, found = torch.Generator().manual_seed(4), []
    video = torch.randn((2, 16, 3, 8, 12), generator=random)
    text = torch.zeros((2, TEXT_ROWS, family.TEXT_DIM))
    text[:, : TEXT_ROWS // 2] = torch.randn((2, TEXT_ROWS // 2, family.TEXT_DIM), generator=random)
    wanted = torch.randn(video.shape, generator=random)
    model = models.load_weights(models.new_transformer(family.T2V_LOW), family.T2V_LOW)
    for training in (False, True):
        model.zero_grad()
        hooks = (training_hooks(model, video.device),) if training else ()
        made = model(video, torch.tensor([310.0, 820.0]), Conditioning(text=text), *hooks)
        (made - wanted).square().mean().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters()})  # type: ignore[union-attr]
    for name, expected in found[0].items():
        assert (found[1][name] - expected).norm() <= 2e-4 * expected.norm() + 1e-7, name
