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
from ....nodes.bridge.model import load_model
from ....nodes.bridge.text_encoder import load_text_encoder
from ....nodes.bridge.vae import load_vae
from ....pocket.models import load_spiece
from ....wan_core.planner import memory
from ....wan_core.planner.memory import GIB, Clip
from ....wan_core.weights import inspect
from . import files
from .cases import UMT5, VAE21, VAE22

LAYERS = {"vace_14B": 8, "animate_14B": 8}  # of 40; VACE's control blocks stand at equal distances
FEW = 3
SOUND = 73 + 80  # frames of sound features: those before the clip, and its own


def prepare(phase: str, shapes: str, precision: str, clip: Clip, base: Path) -> tuple[Callable[[], Any], float]:
    """What runs the phase once, and the least VRAM that the planner says, in GiB."""
    if phase == "sampling":
        return _sampling(shapes, precision, clip, base / "models" / "diffusion_models")
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


def _sampling(shapes: str, precision: str, clip: Clip, folder: Path) -> tuple[Callable[[], Any], float]:
    path = folder / f"least_{shapes}_{precision}{'.gguf' if precision in files.GGUF else '.safetensors'}"
    if not path.is_file():
        files.transformer(path, shapes, precision, layers=LAYERS.get(shapes, FEW))
    checkpoint = inspect(path)
    config = checkpoint.config
    assert config is not None
    patcher, device = load_model(str(path)), management.get_torch_device()
    scale = memory.compression_of(config.out_dim)
    size = clip.latent(scale)
    x = torch.randn(1, config.out_dim, *size, device=device)
    text, sigma = torch.randn(1, 512, 4096, device=device), torch.tensor([0.7], device=device)
    conds = _conds(config, size, device)
    if config.in_dim > config.out_dim:
        conds["c_concat"] = torch.randn(1, config.in_dim - config.out_dim, *size, device=device)

    def call() -> Any:
        management.load_models_gpu([patcher])
        options = {"sample_sigmas": torch.tensor([1.0, 0.7, 0.0])}
        patcher.pre_run()  # from here on weights are fetched ahead and have their places, as in a run
        try:
            return patcher.model.apply_model(x, sigma, c_crossattn=text, transformer_options=options, **conds)
        finally:
            patcher.cleanup()

    return call, memory.sampling(memory.Part.of(checkpoint), clip).vram / GIB


def _conds(config: Any, size: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
    """What the variants are given beside the latent."""
    frames, rows, columns = size

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, device=device)

    if config.vace_dim:
        return {"vace_context": noise(1, config.vace_dim, *size), "vace_strength": [1.0]}
    if config.audio_dim:
        return {
            "audio_embed": noise(config.audio_layers, config.audio_dim, SOUND),
            "reference_latent": noise(16, 1, rows, columns),
            "reference_motion": noise(16, 19, rows, columns),
        }
    if config.pose_dim:
        return {
            "pose_latents": noise(config.pose_dim, frames - 1, rows, columns),
            "face_pixel_values": noise(3, 4 * frames - 7, 512, 512),
        }
    return {}


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
