"""Our VAE as ComfyUI's VAE object, so that every native VAE node takes it.

The native class configures itself from the file's shapes: ratios, memory estimates, dtype and device are whatever this
ComfyUI gives to a Wan VAE. It does so on the meta device, without weights; then our module takes its model's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.modules.diffusionmodules.model import vae_attention
from torch import Tensor

from ...wan_core.vae.wan21 import VAE21Config, WanVAE21
from ...wan_core.vae.wan22 import VAE22Config, WanVAE22
from ...wan_core.weights.families import VAE
from ...wan_core.weights.inspect import Checkpoint, inspect
from ...wan_core.weights.mapped import MappedFile, check_all
from ...wan_core.weights.pairing import require
from ...wan_core.weights.wholeness import check_tensors, check_types, network_of, sizes_of
from .ops import wan_operations
from .reading import files_of, read_tensors
from .soundness import check_small

Shapes = Mapping[str, tuple[int, ...]]
VAE22 = "vae22"  # id of the file family


class Hosted:
    """What the native VAE object calls, over one of our VAEs."""

    comfy_has_chunked_io = True  # native code leaves whole clips in RAM, and passes the buffer for the decoded frames
    config: VAE21Config | VAE22Config
    compression: int
    where: str  # the file, for errors
    files: tuple[MappedFile, ...] = ()  # that weights are read from while it runs

    def decode(self, latent: Tensor, output_buffer: Tensor | None = None, **options: Any) -> Tensor:
        """raw latent [B, C, F, H, W] -> video [B, 3, 4F - 3, H * 8, W * 8], into `output_buffer` where one is given.

        VAE 2.2: H * 16, W * 16.
        """
        if output_buffer is None:
            return super().decode(latent)  # pyright: ignore[reportAttributeAccessIssue]
        start = 0
        for chunk in self.decode_chunks(latent):
            output_buffer[:, :, start : start + chunk.shape[2]].copy_(chunk)
            start += chunk.shape[2]
        return output_buffer

    def encode_parts(self, parts: Iterable[tuple[Tensor, int]], **options: Any) -> Tensor:
        """See CausalVAE.

        Raises:
            WeightsFileError: the file was cut off or written over, maybe since the tile before.
        """
        check_all(self.files)
        return super().encode_parts(parts, **options)  # pyright: ignore[reportAttributeAccessIssue]

    def decode_chunks(self, latent: Tensor, **options: Any) -> Iterator[Tensor]:
        """See CausalVAE; raises as `encode_parts`."""
        check_all(self.files)
        return super().decode_chunks(latent, **options)  # pyright: ignore[reportAttributeAccessIssue]

    def decode_output_shape(self, latent_shape: torch.Size) -> tuple[int, ...]:
        """Shape of the video that a latent of this shape becomes."""
        batch, _, frames, height, width = latent_shape
        size = height * self.compression, width * self.compression
        return batch, self.config.out_channels, 4 * frames - 3, *size


class HostedVAE21(Hosted, WanVAE21):
    """VAE 2.1 in ComfyUI."""


class HostedVAE22(Hosted, WanVAE22):
    """VAE 2.2 in ComfyUI."""


def load_vae(path: str | Path, *, dtype: torch.dtype | None = None) -> comfy.sd.VAE:
    """Loads a Wan VAE, 2.1 or 2.2; `dtype` is what it computes in (None: what ComfyUI chooses for this GPU).

    Raises:
        WeightsFileError: the file cannot be read as weights.
        WrongModelError: it is no Wan VAE.
    """
    checkpoint = inspect(path)
    require(checkpoint, VAE)
    check_vae_file(checkpoint)
    vae = _configured(checkpoint, dtype)
    _install(vae, checkpoint)
    return vae


def _configured(checkpoint: Checkpoint, dtype: torch.dtype | None) -> comfy.sd.VAE:
    """A native VAE object with everything but weights. The native VAE 2.2 has the published sizes only."""
    with torch.device("meta"):
        shapes = {name: torch.empty(shape) for name, shape in checkpoint.shapes.items()}
        tensors = WanVAE22(VAE22Config()).state_dict() if checkpoint.family.id == VAE22 else shapes
        return comfy.sd.VAE(sd=tensors, dtype=dtype)


def _model(shapes: Shapes) -> HostedVAE21 | HostedVAE22:
    """Our module for the tensors of a file, still without weights."""
    parts = {"ops": wan_operations(comfy.ops.disable_weight_init), "attention": vae_attention()}
    if _is_vae22(shapes):
        return HostedVAE22(VAE22Config.from_shapes(shapes), **parts)
    return HostedVAE21(VAE21Config.from_shapes(shapes), **parts)


def _is_vae22(shapes: Shapes) -> bool:
    return any(name.startswith("decoder.upsamples.0.upsamples.") for name in shapes)


def check_vae_file(checkpoint: Checkpoint) -> None:
    """Checks by the header that every tensor is there in its right shape and type.

    Raises:
        WrongModelError: one is not.
    """
    where, shapes, device = repr(str(checkpoint.path)), checkpoint.shapes, torch.device("meta")
    make, sizes = (WanVAE22, VAE22Config) if _is_vae22(shapes) else (WanVAE21, VAE21Config)
    config: Any = sizes_of(sizes, shapes, where, VAE)
    with network_of(where, VAE):
        whole = make(config, device=device)
    expected = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    check_tensors(where, VAE, shapes, expected)
    check_types(where, VAE, checkpoint.types, expected)


def _install(vae: comfy.sd.VAE, checkpoint: Checkpoint, *, disable_dynamic: bool = False) -> None:
    """Puts our module with the file's weights into a configured VAE object, in the order that native code does it."""
    path = str(checkpoint.path)
    files = files_of(checkpoint)
    tensors, _ = read_tensors(checkpoint)
    check_small(tensors, repr(path))
    weights = {official: tensors[name] for name, official in checkpoint.names.items()}
    model = _model(checkpoint.shapes).eval().requires_grad_(False).to(vae.vae_dtype)
    comfy.model_management.archive_model_dtypes(model)
    patcher = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    offload_device = comfy.model_management.vae_offload_device()
    vae.first_stage_model = model
    vae.patcher = patcher(model, load_device=vae.device, offload_device=offload_device)
    model.load_state_dict(weights, strict=True, assign=vae.patcher.is_dynamic())
    model.where = repr(path)
    model.files = files if vae.patcher.is_dynamic() else ()
    vae.memory_used_encode = partial(_asked, model, vae.memory_used_encode)
    vae.memory_used_decode = partial(_asked, model, vae.memory_used_decode)
    vae.patcher.cached_patcher_init = (_patcher, (path, vae.vae_dtype))
    vae.size = None
    vae.model_size()


def _asked(model: Hosted, estimate: Callable[..., float], *args: Any, **kwargs: Any) -> float:
    """The native estimate of memory. It is asked for before weights are loaded, which touches the small ones.

    Raises:
        WeightsFileError: the file was cut off or written over since.
    """
    check_all(model.files)
    return estimate(*args, **kwargs)


def _patcher(path: str, dtype: torch.dtype, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Reads the VAE again for another device or another kind of patcher."""
    checkpoint = inspect(path)
    check_vae_file(checkpoint)
    vae = _configured(checkpoint, dtype)
    _install(vae, checkpoint, disable_dynamic=disable_dynamic)
    return vae.patcher
