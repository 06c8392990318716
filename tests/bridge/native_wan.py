"""Tiny native Wan models, conditionings and latents for tests of the samplers."""

from __future__ import annotations

import comfy.sd
import torch

SHIFT = 5.0
DIM, FFN, LAYERS, FREQ, TEXT, TOKENS = 128, 64, 2, 256, 4096, 7


def weights(seed: int, in_dim: int = 16, out_dim: int = 16) -> dict[str, torch.Tensor]:
    """A seeded T2V (in_dim 16) or I2V (36) transformer under the official names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "patch_embedding": (DIM, in_dim, 1, 2, 2),
        "text_embedding.0": (DIM, TEXT),
        "text_embedding.2": (DIM, DIM),
        "time_embedding.0": (DIM, FREQ),
        "time_embedding.2": (DIM, DIM),
        "time_projection.1": (6 * DIM, DIM),
        "head.head": (out_dim * 4, DIM),
    }
    for i in range(LAYERS):
        for attention in ("self_attn", "cross_attn"):
            shapes |= {f"blocks.{i}.{attention}.{name}": (DIM, DIM) for name in "qkvo"}
        shapes |= {f"blocks.{i}.ffn.0": (FFN, DIM), f"blocks.{i}.ffn.2": (DIM, FFN)}
    out: dict[str, torch.Tensor] = {}
    for name, shape in shapes.items():
        fan_in = torch.Size(shape[1:]).numel()
        out[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        out[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)
    out["head.modulation"] = 0.3 * torch.randn(1, 2, DIM, generator=generator)
    for i in range(LAYERS):
        out[f"blocks.{i}.modulation"] = 0.3 * torch.randn(1, 6, DIM, generator=generator)
        out[f"blocks.{i}.norm3.weight"] = 1 + 0.1 * torch.randn(DIM, generator=generator)
        out[f"blocks.{i}.norm3.bias"] = 0.1 * torch.randn(DIM, generator=generator)
        for attention in ("self_attn", "cross_attn"):
            for norm in ("norm_q", "norm_k"):
                out[f"blocks.{i}.{attention}.{norm}.weight"] = 1 + 0.1 * torch.randn(DIM, generator=generator)
    return out


def native_model(seed: int, in_dim: int = 16, out_dim: int = 16):
    """A MODEL as the native UNETLoader would give it."""
    options = {"dtype": torch.float32}
    return comfy.sd.load_diffusion_model_state_dict(weights(seed, in_dim, out_dim), model_options=options)


def prompts(seed: int = 3, tokens: int = TOKENS) -> tuple[list, list]:
    """Positive and negative CONDITIONING. ComfyUI's Wan takes any number of tokens; the text encoder makes 512."""
    generator = torch.Generator().manual_seed(seed)
    return tuple([[torch.randn(1, tokens, TEXT, generator=generator), {}]] for _ in range(2))


def noise(seed: int = 5, batch: int = 1, channels: int = 16) -> torch.Tensor:
    return torch.randn(batch, channels, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())
