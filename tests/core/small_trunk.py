"""Small transformers with random weights, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from wancore.wan_core.conditioning import Conditioning
from wancore.wan_core.config import TransformerConfig
from wancore.wan_core.ops import Ops, TorchOps
from wancore.wan_core.transformer import WanTransformer

FRAMES, ROWS, COLUMNS = 3, 4, 6  # latent; 2 x 3 tokens per frame
TOKENS_PER_FRAME = ROWS // 2 * COLUMNS // 2


def transformer(
    *,
    in_dim: int = 16,
    image_dim: int = 0,
    image_positions: int = 0,
    ops: type[Ops] = TorchOps,
    dtype: torch.dtype = torch.float32,
    residual_dtype: torch.dtype | None = None,
    **variant: Any,
) -> WanTransformer:
    """48 wide, 2 heads of 24 values, 3 blocks; the same weights each time, whatever the dtype. `variant` are
    further fields of the configuration."""
    config = TransformerConfig(
        dim=48, ffn_dim=80, num_heads=2, num_layers=3, in_dim=in_dim, text_dim=20, text_len=8, freq_dim=32,
        image_dim=image_dim, image_positions=image_positions, **variant,
    )  # fmt: skip
    model = WanTransformer(config, ops=ops, dtype=dtype, residual_dtype=residual_dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if name.endswith("modulation"):
                values = 0.3 * values
            elif parameter.ndim == 1:
                values = 0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
            else:
                values = values / parameter[0].numel() ** 0.5
            parameter.copy_(values)
    return model.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 2) -> Tensor:
    """Normal values, the same for the same shape and seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def video(batch: int = 1, channels: int = 16) -> Tensor:
    """A noisy latent."""
    return noise(batch, channels, FRAMES, ROWS, COLUMNS)


def prompt(batch: int = 1, length: int = 5, **slots: object) -> Conditioning:
    """Random text, and whatever other slots are given."""
    return Conditioning(text=noise(batch, length, 20, seed=3), **slots)  # type: ignore[arg-type]


def relative(ours: Tensor, theirs: Tensor) -> float:
    """|ours - theirs| / |theirs| in the 2-norm."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
