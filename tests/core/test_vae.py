"""Both VAEs: parity with the official code, independence of the chunks, memory of a call, sizes, repeated frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from wancore.tools.golden_cases import read
from wancore.tools.golden_cases.vae import vae21, vae22
from wancore.wan_core.vae.causal import CausalVAE, ChannelNorm
from wancore.wan_core.vae.latents import WAN21, WAN22, LatentStatistics
from wancore.wan_core.vae.wan21 import VAE21Config, WanVAE21
from wancore.wan_core.vae.wan22 import VAE22Config, WanVAE22

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Kind:
    """One of the two."""

    name: str  # of its golden tensors and its shapes
    golden: Callable[[Any], Iterable[Any]]
    model: Callable[..., CausalVAE]
    config: Any  # class of the sizes
    published: Any
    statistics: LatentStatistics
    channels: int  # of a latent
    compression: int  # pixels along one of its rows

    def small(self, config: Any = None) -> CausalVAE:
        """Narrow, with seeded weights."""
        vae = self.model(config or self.config(encoder_dim=4, decoder_dim=4)).requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in vae.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            values = torch.rand(parameter.shape, generator=generator) * 2 - 1
            parameter.copy_(1 + 0.2 * values if name.endswith("gamma") else values * (3 / fan_in) ** 0.5)
        return vae


KIND21 = Kind("vae21", vae21, WanVAE21, VAE21Config, VAE21Config(encoder_dim=96, decoder_dim=96), WAN21, 16, 8)
KIND22 = Kind("vae22", vae22, WanVAE22, VAE22Config, VAE22Config(), WAN22, 48, 16)


@pytest.fixture(scope="module", params=[KIND21, KIND22], ids=["2.1", "2.2"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def vae(kind: Kind) -> CausalVAE:
    return kind.small()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).norm() <= 2e-6 * expected.norm()


def test_equals_the_official_code(kind: Kind):
    results = list(kind.golden(read(TESTS / "golden" / f"{kind.name}.safetensors")))
    assert len(results) == 5
    assert all(result.ok for result in results), results


def test_full_size_names_and_shapes(kind: Kind):
    published = json.loads((TESTS / "shapes" / f"{kind.name}.json").read_text())["shapes"]
    config = kind.config.from_shapes(published)
    assert config == kind.published
    ours = kind.model(config, device=torch.device("meta")).state_dict()
    assert {name: list(tensor.shape) for name, tensor in ours.items()} == published


def test_any_width():
    config = VAE21Config(encoder_dim=6, decoder_dim=10, latent_channels=5, in_channels=4, out_channels=12)
    vae = KIND21.small(config)
    assert VAE21Config.from_shapes({name: tensor.shape for name, tensor in vae.state_dict().items()}) == config
    latent = vae.encode(noise(1, 4, 5, 16, 16))
    assert latent.shape == (1, 5, 2, 2, 2)
    assert vae.decode(latent).shape == (1, 12, 5, 16, 16)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 50])
def test_chunks_never_change_the_result(kind: Kind, vae: CausalVAE, frames: int):
    video = noise(2, 3, 13, kind.compression, 2 * kind.compression)
    latent = vae.encode(video)
    assert latent.shape == (2, kind.channels, 4, 1, 2)
    close(vae.encode(video, frames=frames), latent)
    decoded = vae.decode(latent)
    assert decoded.shape == video.shape
    close(vae.decode(latent, frames=frames), decoded)


def test_decoded_chunks_are_the_video(kind: Kind, vae: CausalVAE):
    latent = noise(1, kind.channels, 4, 3, 2)
    chunks = list(vae.decode_chunks(latent))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4]
    assert torch.equal(torch.cat(chunks, dim=2), vae.decode(latent))
    assert [chunk.shape[2] for chunk in vae.decode_chunks(latent, frames=2)] == [1, 8, 4]


def test_calls_do_not_share_memory(kind: Kind, vae: CausalVAE):
    """Two clips decoded in turns, and one given up half-way, come out as if each were alone."""
    first, second = noise(1, kind.channels, 3, 2, 2), noise(1, kind.channels, 3, 2, 2, seed=1)
    alone = vae.decode(first), vae.decode(second)
    abandoned = vae.decode_chunks(second)
    next(abandoned)
    turns = list(zip(vae.decode_chunks(first), vae.decode_chunks(second), strict=True))
    for index in (0, 1):
        assert torch.equal(torch.cat([turn[index] for turn in turns], dim=2), alone[index])
    assert not [name for name, _ in vae.named_buffers()]


def test_the_future_never_reaches_the_past(kind: Kind, vae: CausalVAE):
    video = noise(1, 3, 9, 2 * kind.compression, 2 * kind.compression)
    changed = video.clone()
    changed[:, :, 5:] = 0.5
    assert torch.equal(vae.encode(video)[:, :, :2], vae.encode(changed)[:, :, :2])
    latent = vae.encode(video)
    close(vae.decode(latent)[:, :, :5], vae.decode(latent[:, :, :2]))


def test_a_picture_meets_no_time_convolution(kind: Kind):
    vae, picture = kind.small(), noise(1, 3, 1, 2 * kind.compression, 2 * kind.compression)
    latent = vae.encode(picture)
    video = vae.decode(latent)
    for name, parameter in vae.named_parameters():
        if "time_conv" in name:
            parameter.fill_(float("nan"))
    assert torch.equal(vae.encode(picture), latent)
    assert torch.equal(vae.decode(latent), video)


def test_odd_sizes():
    vae = KIND21.small()
    for height, width in ((8, 8), (24, 40), (33, 25), (15, 17)):
        latent = vae.encode(noise(1, 3, 5, height, width))
        assert latent.shape == (1, 16, 2, height // 8, width // 8)
        assert vae.decode(latent).shape == (1, 3, 5, height // 8 * 8, width // 8 * 8)


def test_frames_past_the_last_whole_latent_frame_are_left_out(kind: Kind, vae: CausalVAE):
    video = noise(1, 3, 8, kind.compression, kind.compression)
    assert torch.equal(vae.encode(video), vae.encode(video[:, :, :5]))


def test_statistics(kind: Kind):
    about, channels = kind.statistics, kind.channels
    raw = noise(2, channels, 1, 2, 2)
    close(about.denormalise(about.normalise(raw)), raw)
    mean = torch.tensor(about.mean).view(channels, 1, 1, 1).expand(channels, 1, 2, 2)
    assert torch.allclose(about.normalise(mean[None]), torch.zeros(1, channels, 1, 2, 2), atol=1e-6)
    assert about.normalise(raw.half()).dtype == torch.float16


def test_folding_and_back():
    vae, video = KIND22.small(), noise(1, 3, 2, 4, 6)
    folded = vae.fold(video)
    assert folded.shape == (1, 12, 2, 2, 3)
    assert torch.equal(folded[0, 4 + 2 * 1 + 0], video[0, 1, :, 0::2, 1::2])  # green, right column, upper row
    assert torch.equal(vae.unfold(folded), video)


Parts = Sequence[tuple[torch.Tensor, int]]


def computed(vae: CausalVAE) -> dict[str, int]:
    """Counts the frames that meet each norm of the encoder from now on; one stands before every convolution."""
    counts: dict[str, int] = {}

    def count(name: str) -> None:
        def hook(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
            counts[name] = counts.get(name, 0) + output.shape[2]

        vae.get_submodule(name).register_forward_hook(hook)

    for name, module in vae.encoder.named_modules():
        if isinstance(module, ChannelNorm) and module.gamma.ndim == 4:  # the others are those of pictures
            count(f"encoder.{name}")
    return counts


@pytest.mark.parametrize(("chunks", "end"), [(20, False), (19, True), (45, False), (44, True)])
def test_repeated_frames_settle(kind: Kind, vae: CausalVAE, chunks: int, end: bool):
    """A picture and grey frames, with or without a last picture: computed in part, and equal to the whole clip."""
    size = (2 * kind.compression, kind.compression)
    grey = torch.zeros(1, 3, 4, *size)
    parts = [(noise(1, 3, 1, *size), 1), (grey, chunks)]
    if end:
        parts.append((torch.cat((grey[:, :, :3], noise(1, 3, 1, *size, seed=2)), dim=2), 1))
    clip = torch.cat([frames for frames, times in parts for _ in range(times)], dim=2)
    close(vae.encode_parts(parts), vae.encode(clip))


def test_what_has_settled_is_not_computed_again(kind: Kind):
    """The full-size layers see a few of 50 grey chunks; the lowest level settles last."""
    vae, size = kind.small(), (kind.compression, kind.compression)
    parts = [(noise(1, 3, 1, *size), 1), (torch.zeros(1, 3, 4, *size), 50)]
    counts = computed(vae)
    vae.encode_parts(parts)
    frames = list(counts.values())
    assert max(frames[:2]) <= 1 + 4 * 4  # the first frame, and chunks until the layers up to here have settled
    assert max(frames) <= 41
    assert counts["encoder.head.0"] < 36
