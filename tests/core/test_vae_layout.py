"""Channels stay last through a whole VAE: one layer that forgets it costs a GPU copies in all that follow."""

from __future__ import annotations

import pytest
import torch
from wancore.wan_core.vae import causal
from wancore.wan_core.vae.frames import has_channels_last, joined
from wancore.wan_core.vae.wan21 import VAE21Config, WanVAE21
from wancore.wan_core.vae.wan22 import VAE22Config, WanVAE22


@pytest.mark.parametrize(
    ("vae", "latent", "pixels"),
    [
        (lambda: WanVAE21(VAE21Config(8, 8)), (1, 16, 4, 6, 10), (1, 3, 13, 48, 80)),
        (lambda: WanVAE22(VAE22Config(16, 16)), (1, 48, 4, 6, 10), (1, 3, 13, 96, 160)),
    ],
    ids=["2.1", "2.2"],
)
def test_every_norm_gets_channels_last(vae, latent, pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    silu = causal.ChannelNorm.silu

    def watched(self, x: torch.Tensor, past: torch.Tensor | None) -> torch.Tensor:
        seen.extend(has_channels_last(part) for part in (x, past) if part is not None)
        return silu(self, x, past)

    monkeypatch.setattr(causal.ChannelNorm, "silu", watched)
    model = vae()
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.normal_(0, 0.05)
        model.decode(torch.randn(latent))
        model.encode(torch.randn(pixels))
    assert len(seen) > 100 and all(seen)


def test_joining_keeps_the_layout_of_single_frames() -> None:
    first, second = (torch.randn(1, 6, 1, 4, 5).contiguous(memory_format=torch.channels_last_3d) for _ in range(2))
    both = joined(first, first[:, :, :0], second)
    assert has_channels_last(both)
    assert torch.equal(both, torch.cat((first, second), dim=2))
    assert torch.equal(joined(first.contiguous(), second), torch.cat((first, second), dim=2))


@pytest.mark.parametrize("frames", [(1, 3), (2, 0, 1)], ids=str)
def test_joining_passes_gradients_on(frames: tuple[int, ...]) -> None:
    parts = [torch.randn(1, 8, n, 4, 4).contiguous(memory_format=torch.channels_last_3d) for n in frames]
    weights = torch.randn(1, 8, sum(frames), 4, 4)
    for part in parts:
        part.requires_grad_()
    (joined(*parts) * weights).sum().backward()
    for part, expected in zip(parts, weights.split(frames, dim=2), strict=True):
        assert part.shape[2] == 0 or torch.equal(part.grad, expected)
