"""Decoding and encoding, ours and ComfyUI's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...nodes.bridge.vae import load_vae
from . import host, timing
from .timing import Row
from .workloads import Autoencoding

GREY = "picture and grey frames"


def rows(workload: Autoencoding, path: Path, device: torch.device, dtype: torch.dtype, runs: int) -> Iterator[Row]:
    """Yields the rows of both engines; the error is the difference from ComfyUI's result."""
    generator = torch.Generator(device).manual_seed(6)
    latent = torch.randn(workload.latent, device=device, dtype=dtype, generator=generator)
    size = (1, 3, workload.frames, workload.height, workload.width)
    pixels = (torch.rand(size, device=device, generator=generator) * 2 - 1).to(dtype)
    grey = torch.zeros_like(pixels)
    grey[:, :, 0] = pixels[:, :, 0]
    references: dict[str, Tensor] = {}
    vaes = {
        "ComfyUI as shipped": comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(path)), dtype=dtype),
        "WanCore": load_vae(path, dtype=dtype),
    }
    for engine, vae in vaes.items():
        management.load_models_gpu([vae.patcher], force_full_load=True)
        model = vae.first_stage_model
        calls = {
            "decode": lambda model=model: model.decode(latent),
            "encode": lambda model=model: model.encode(pixels),
            f"encode {GREY}": lambda model=model: _encode_grey(model, grey),
        }
        for what, call in calls.items():
            row = Row(workload.name, engine, what)
            out = timing.measure(row, call, runs)
            if what in references:
                row.error, row.note = timing.difference(out, references.pop(what)), "difference from ComfyUI"
            else:
                references[what] = out
            yield row
    host.unload()


def _encode_grey(model: Any, video: Tensor) -> Tensor:
    """The conditioning clip of image to video; ours computes what repeats until it has settled."""
    if not hasattr(model, "encode_parts"):
        return model.encode(video)
    return model.encode_parts(((video[:, :, :1], 1), (video[:, :, 1:5], (video.shape[2] - 1) // 4)))
