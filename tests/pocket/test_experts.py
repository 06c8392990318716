"""Each T2V expert denoises the sigmas that it was trained for better than the other one does, on held-out clips."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from wancore.pocket import family, models
from wancore.pocket.training import data, flow, report, vae
from wancore.wan_core.conditioning import Conditioning

EXPERTS = {"high": family.T2V_HIGH, "low": family.T2V_LOW}


@pytest.fixture(scope="module")
def errors() -> Callable[[str, float], Tensor]:
    """Squared error of an expert's velocity at a sigma, for each of 12 held-out clips with their prompts."""
    prompts, device = report.held_out_prompts(0, 12), torch.device("cpu")
    tokenizer = models.load_tokenizer()
    encoder = models.load_weights(models.new_text_encoder(), family.TEXT_ENCODER).requires_grad_(False)
    autoencoder = models.load_weights(models.new_vae(), family.VAE).requires_grad_(False)
    experts = {
        name: models.load_weights(models.new_transformer(member), member).requires_grad_(False)
        for name, member in EXPERTS.items()
    }
    clean = vae.encode(autoencoder, report.draw(prompts, data.Size(17, 96, 96), device))
    rows = [tokenizer.encode(prompt.text) for prompt in prompts]
    longest = max(map(len, rows))
    text = flow.embed(encoder, torch.tensor([row + [flow.PAD] * (longest - len(row)) for row in rows]))
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))

    def measured(expert: str, sigma: float) -> Tensor:
        noisy, timestep = (1 - sigma) * clean + sigma * noise, torch.full((len(clean),), 1000 * sigma)
        velocity = experts[expert](noisy, timestep, Conditioning(text=text))
        return (velocity - noise + clean).square().flatten(1).mean(1)

    return measured


@pytest.mark.parametrize(
    ("sigma", "right", "other"), [(0.98, "high", "low"), (0.7, "low", "high"), (0.3, "low", "high")]
)
def test_each_expert_is_the_better_one_on_its_side(sigma: float, right: str, other: str, errors) -> None:
    """In every clip, and by half or more: a switch at the wrong sigma costs that much."""
    own, exchanged = errors(right, sigma), errors(other, sigma)
    assert (own < exchanged).all(), (own, exchanged)
    assert own.mean() <= 0.5 * exchanged.mean(), (own.mean(), exchanged.mean())
