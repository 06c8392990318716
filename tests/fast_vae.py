"""How servers that decode clips of the full size do so on a processor."""

from __future__ import annotations

import torch


def fast_vae() -> tuple[str, ...]:
    """ComfyUI's argument that has a VAE compute in bfloat16, as on a GPU, where the processor has it: half the time.

    Servers that make small clips go without, so both precisions run.
    """
    return ("--bf16-vae",) if torch.cpu._is_avx512_bf16_supported() else ()
