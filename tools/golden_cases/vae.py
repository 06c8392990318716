"""Both VAEs: encode and decode of every clip in the file, raw and clamped, and the latent constants."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from wancore.wan_core.vae.causal import CausalVAE
from wancore.wan_core.vae.latents import LatentStatistics
from wancore.wan_core.vae.wan21 import VAE21Config, WanVAE21
from wancore.wan_core.vae.wan22 import VAE22Config, WanVAE22

from . import INPUT, Golden, Result, compare

TOLERANCE = 1e-5  # float32 on CPU; other convolution algorithms, same formulas


def vae21(golden: Golden) -> Iterator[Result]:
    """VAE 2.1, of any width."""
    yield from _both_ways(golden, WanVAE21(VAE21Config.from_shapes(_shapes(golden))))


def vae22(golden: Golden) -> Iterator[Result]:
    """VAE 2.2, of any width."""
    yield from _both_ways(golden, WanVAE22(VAE22Config.from_shapes(_shapes(golden))))


def _shapes(golden: Golden) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in golden.weights.items()}


@torch.inference_mode()
def _both_ways(golden: Golden, vae: CausalVAE) -> Iterator[Result]:
    """The official latents are normalised; its decoder clamps."""
    vae.load_state_dict(dict(golden.weights))
    yield from constants(golden, vae.statistics)
    for case in golden.cases():
        given = golden.of(INPUT, case)
        ours = {}
        if "video" in given:
            ours["out.latent"] = vae.statistics.normalise(vae.encode(given["video"][None]))[0]
        if "latent" in given:
            ours["out.decoded_raw"] = vae.decode(vae.statistics.denormalise(given["latent"][None]))[0]
            ours["out.decoded"] = ours["out.decoded_raw"].clamp(-1, 1)
        yield golden.check(case, ours, TOLERANCE)


def constants(golden: Golden, statistics: LatentStatistics) -> Iterator[Result]:
    """Mean and inverse standard deviation, where the file has them."""
    ours = {"const.mean": torch.tensor(statistics.mean), "const.inv_std": 1 / torch.tensor(statistics.std)}
    for name, tensor in ours.items():
        if name in golden.tensors:
            yield compare(f"{golden.name}.{name}", golden.tensors[name], tensor, name, 1e-7)


FAMILIES = {"vae21": vae21, "vae22": vae22}
