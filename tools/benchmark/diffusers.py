"""The same file in diffusers, where it is installed: its own WanTransformer3DModel with its default attention."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

Given = tuple[Tensor, Tensor, Tensor]


def ready(path: Path, dtype: torch.dtype | None, given: Given) -> Callable[[], Tensor]:
    """A call of the transformer, weights on the GPU; modules that diffusers keeps in float32 are in float32.

    Raises:
        RuntimeError: diffusers is not installed.
    """
    try:
        model_class = import_module("diffusers").WanTransformer3DModel
        convert = import_module("diffusers.loaders.single_file_utils").convert_wan_transformer_to_diffusers
    except ImportError as error:
        raise RuntimeError(f"diffusers is not installed: {error}") from None
    latent, sigma, text = given
    weights = load_file(path, device=str(latent.device))
    hidden, width = weights["blocks.0.ffn.0.weight"].shape
    with torch.device("meta"):
        model: Any = model_class(
            num_attention_heads=width // 128,
            in_channels=weights["patch_embedding.weight"].shape[1],
            out_channels=weights["head.head.weight"].shape[0] // 4,
            ffn_dim=hidden,
            num_layers=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks.")),
        )
    kept = tuple(model._keep_in_fp32_modules)
    state = {
        name: tensor.float() if any(part in name for part in kept) else tensor.to(dtype or torch.bfloat16)
        for name, tensor in convert(weights).items()
    }
    del weights
    model.load_state_dict(state, assign=True)
    model.rope = type(model.rope)(128, (1, 2, 2), 1024).to(latent.device)  # buffers that no file has
    dtype = dtype or torch.bfloat16
    noisy, text, step = latent.to(dtype), text.to(dtype), sigma * 1000

    def call() -> Tensor:
        velocity = model(hidden_states=noisy, timestep=step, encoder_hidden_states=text, return_dict=False)[0]
        return latent - velocity.float() * sigma

    return call


def ready_with_cudnn(path: Path, dtype: torch.dtype | None, given: Given) -> Callable[[], Tensor]:
    """The same with cuDNN's attention, which diffusers has to be asked for."""
    call = ready(path, dtype, given)
    backend = import_module("diffusers.models.attention_dispatch").attention_backend

    def with_cudnn() -> Tensor:
        with backend("_native_cudnn"):
            return call()

    return with_cudnn
