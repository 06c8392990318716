"""One phase of a run as a function that can be called again and again: what the bisection tries."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.model_prefetch
import comfy_aimdo.model_vbar
import torch

from ....nodes.bridge.decoding import decode_chunks
from ....nodes.bridge.images import encode_parts
from ....nodes.bridge.text_encoder import load_text_encoder
from ....nodes.bridge.vae import load_vae
from ....pocket.models import load_spiece
from ....wan_core.planner import memory
from ....wan_core.planner.memory import GIB, Clip
from ....wan_core.weights import inspect
from . import files, sampling_runs
from .cases import UMT5, VAE21, VAE22


def prepare(phase: str, shapes: str, precision: str, clip: Clip, base: Path) -> tuple[Callable[[], Any], float]:
    """What runs the phase once, and the least VRAM that the planner says, in GiB."""
    if phase == "sampling":
        return sampling_runs.prepare(shapes, precision, clip, base / "models" / "diffusion_models")
    if phase == "text encode":
        return _text(base / "models" / "text_encoders" / UMT5)
    return _vae(phase, shapes, clip, base / "models" / "vae" / (VAE22 if shapes == "vae22" else VAE21))


def release() -> None:
    """Everything off the GPU; first what a call that failed had fetched ahead, as ComfyUI does behind every node."""
    management.reset_cast_buffers()
    comfy.model_prefetch.cleanup_prefetch_queues()
    comfy_aimdo.model_vbar.vbars_reset_watermark_limits()
    management.unload_all_models()
    gc.collect()
    management.soft_empty_cache()


def _vae(phase: str, shapes: str, clip: Clip, path: Path) -> tuple[Callable[[], Any], float]:
    if not path.is_file():
        files.vae(path, shapes)
    checkpoint, vae = inspect(path), load_vae(path)
    found = {one.name: one for one in memory.vae(memory.Part.of(checkpoint), clip, encode=True)}
    if phase == "VAE decode":
        latent = torch.randn(1, vae.latent_channels, *clip.latent(memory.compression_of(vae.latent_channels)))

        def call() -> Any:
            for frames in decode_chunks(vae, latent, stay=True):
                frames.to(device="cpu")

    else:
        picture = torch.rand(1, 3, 1, clip.height, clip.width)
        grey = torch.zeros(1, 3, 4, clip.height, clip.width)

        def call() -> Any:
            return encode_parts(vae, ((picture, 1), (grey, (clip.frames - 1) // 4)), clip.frames)

    return call, found[phase].vram / GIB


def _text(path: Path) -> tuple[Callable[[], Any], float]:
    if not path.is_file():
        files.text_encoder(path, load_spiece())
    clip = load_text_encoder(path)

    def call() -> Any:
        return clip.encode_from_tokens_scheduled(clip.tokenize("a lighthouse in a storm"))

    return call, memory.text_encode(memory.Part.of(inspect(path))).vram / GIB
