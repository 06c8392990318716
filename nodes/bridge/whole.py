"""Whether a file holds all tensors of what it is, by its header: what every loader asks before it reads one.

The networks are built without weights for it, so that no list of their tensors has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...wan_core.weights import Checkpoint
from ...wan_core.weights.families import DIFFUSION_MODEL, TEXT_ENCODER, VAE
from .model import check_model_file
from .text_encoder import check_text_encoder_file
from .vae import check_vae_file

CHECKS: Mapping[str, Callable[[Checkpoint], Any]] = {
    DIFFUSION_MODEL: check_model_file,
    TEXT_ENCODER: check_text_encoder_file,
    VAE: check_vae_file,
}


def check_whole(checkpoint: Checkpoint) -> None:
    """For a file of Wan's families.

    Raises:
        WrongModelError: tensors are missing, left over, or of another shape or type.
    """
    check = CHECKS.get(checkpoint.kind)
    if check is not None:
        check(checkpoint)
