"""Weights files: what they are, whether they fit together, and how their names map to the model's. Reads no tensor."""

from .inspect import Checkpoint, inspect
from .pairing import check_pair, check_text_encoder, check_vae, require

__all__ = ["Checkpoint", "check_pair", "check_text_encoder", "check_vae", "inspect", "require"]
