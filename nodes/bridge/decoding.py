"""A VAE's frames, a few at a time: whole ones where the GPU has room for them, otherwise in tiles."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor

from ...wan_core.planner.memory import HALF, LEAST_TILE, OVERLAP, VAE_WORKING, tile
from ...wan_core.vae.causal import CausalVAE
from ...wan_core.vae.tiles import Canvas, cut
from .leftovers import cleared_on_failure
from .pins import free_ram
from .residency import held, is_lack_of_memory, reachable

SHARE = 0.8  # of the free memory that tiles may take
POOLS = 1.3  # times what a decode takes: PyTorch's memory has gaps
BYTES = 2  # of RAM for each value of finished frames: they are kept, and encoded
SHOWN = 8  # frames that come at a time where tiles were decoded


def decode_chunks(vae: comfy.sd.VAE, latent: Tensor, *, stay: bool = False) -> Iterator[Tensor]:
    """Decodes a raw latent [B, C, F, H, W] clip by clip: yields frames [f, H, W, 3] in 0..1, in order.

    With our VAE they come a few at a time, so that a long clip never lies in memory as a whole; with any other all at
    once. Where the GPU is too small for whole frames it is decoded in tiles, or the rest of it. They come where ComfyUI
    keeps images; with `stay` they may also come where they were decoded, for who goes on reducing them.
    """
    vae.throw_exception_if_invalid()
    for clip in latent.split(1):
        if isinstance(vae.first_stage_model, CausalVAE):
            chunks = _clip_chunks(vae, clip)
            yield from chunks if stay else (frames.to(vae.output_device) for frames in chunks)
        else:
            yield vae.decode(clip).flatten(0, -4)  # [1, F, H, W, 3], or [1, H, W, 3] of an image VAE


def _clip_chunks(vae: comfy.sd.VAE, latent: Tensor) -> Iterator[Tensor]:
    """latent [1, C, F, H, W] -> frames [f, H, W, 3]."""
    memory = vae.memory_used_decode(latent.shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory, force_full_load=vae.disable_offload)
    room, whole = _room(vae), _working(vae, latent)
    scarce = room < 2 * LEAST_TILE**2 * _of_a_pixel(vae)  # so that weights have to come and go
    with nullcontext() if scarce else held(vae.patcher, POOLS * min(whole, SHARE * room)):
        yield from _fitting_chunks(vae, latent, room, whole)


def _fitting_chunks(vae: comfy.sd.VAE, latent: Tensor, room: float, whole: float) -> Iterator[Tensor]:
    """The same, of whole frames where the `whole` bytes that they take fit into `room`."""
    done = 0
    if latent.shape[2] == 1 or whole <= room:  # a picture takes less
        try:
            for frames in _decoded(vae, latent):
                done += frames.shape[0]
                yield frames
            return
        except Exception as error:
            if not is_lack_of_memory(error):
                raise
        comfy.model_management.soft_empty_cache()
    logging.warning("Wan: whole frames do not fit into the GPU's memory; decoding them in tiles")
    yield from _in_tiles(vae, latent, SHARE * room, done)


def _in_tiles(vae: comfy.sd.VAE, latent: Tensor, room: float, done: int = 0) -> Iterator[Tensor]:
    """latent [1, C, F, H, W] -> frames [f, H, W, 3] from number `done` on, decoded in tiles that take `room` bytes.

    They come when all tiles are decoded, a few at a time, on the device that decodes.
    """
    scale = int(vae.spacial_compression_decode())
    rows, columns = latent.shape[-2:]
    while True:
        width, height = tile(columns * scale, rows * scale, scale, room / _values(vae))
        try:
            canvas = _canvas(vae, latent, scale, (height // scale, width // scale))
            break
        except Exception as error:
            if max(width, height) <= LEAST_TILE or not is_lack_of_memory(error):
                raise
        room = min(room, width * height * _of_a_pixel(vae)) / 2  # never the same size again
        comfy.model_management.soft_empty_cache()
    for frames in canvas.frames[done:].split(SHOWN):
        yield frames.to(vae.device, vae.vae_output_dtype())


def _canvas(vae: comfy.sd.VAE, latent: Tensor, scale: int, size: tuple[int, int]) -> Canvas:
    """All frames; `size` is rows and columns of a tile."""
    rows, columns = latent.shape[-2:]
    frames = vae.first_stage_model.decode_output_shape(latent.shape)[2]
    # float16 has eight steps for each of bfloat16's, and for each of a byte's
    dtype = torch.float32 if vae.vae_dtype.itemsize > HALF else torch.float16
    values = frames * rows * columns * scale**2 * 3
    free_ram(values * (dtype.itemsize + BYTES))
    canvas = Canvas(frames, rows * scale, columns * scale, scale, dtype)
    for part in cut(rows, columns, size, OVERLAP // scale):
        start = 0
        for images in _in_ram(_decoded(vae, latent[..., part.rows, part.columns]), dtype):
            canvas.paste(part, start, images)
            start += len(images)
    return canvas


def _in_ram(chunks: Iterator[Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """The same chunks in RAM, each while the GPU is at the next one already."""
    before: tuple[Tensor, torch.cuda.Event] | None = None
    for chunk in chunks:
        if chunk.device.type != "cuda":
            yield chunk.to("cpu", dtype)
            continue
        copy = torch.empty(chunk.shape, dtype=dtype, pin_memory=not comfy.model_management.args.disable_pinned_memory)
        copy.copy_(chunk.to(dtype), non_blocking=True)
        now = (copy, torch.cuda.Event())
        now[1].record(torch.cuda.current_stream(chunk.device))
        if before:
            before[1].synchronize()
            yield before[0]
        before = now
    if before:
        before[1].synchronize()
        yield before[0]


def _working(vae: comfy.sd.VAE, latent: Tensor) -> float:
    """Bytes that whole frames of a clip take, beside the weights."""
    rows, columns = latent.shape[-2:]
    return rows * columns * vae.spacial_compression_decode() ** 2 * _of_a_pixel(vae)


def _of_a_pixel(vae: comfy.sd.VAE) -> float:
    """Bytes that one takes."""
    return VAE_WORKING[int(vae.spacial_compression_decode())].decode * _values(vae)


def _values(vae: comfy.sd.VAE) -> float:
    """Bytes of a value, in those that the planner counts with."""
    return vae.vae_dtype.itemsize / HALF


def _room(vae: comfy.sd.VAE) -> float:
    """Bytes of the device for decoding, once all weights are there: else they come anew for every chunk.

    Weights of other models that Dynamic VRAM has there give way when memory is asked for.
    """
    return reachable(vae.patcher) - vae.model_size()


def _decoded(vae: comfy.sd.VAE, latent: Tensor) -> Iterator[Tensor]:
    """latent [1, C, F, H, W] -> images [f, H, W, 3], where they are decoded."""
    chunks = vae.first_stage_model.decode_chunks(latent, device=vae.device, dtype=vae.vae_dtype)
    while (images := _next_images(vae, chunks)) is not None:
        yield images


def _next_images(vae: comfy.sd.VAE, chunks: Iterator[Tensor]) -> Tensor | None:
    """The next decoded pixels [1, 3, f, H, W] as images [f, H, W, 3], where they were decoded; None at the end."""
    with comfy.model_management.cuda_device_context(vae.device), cleared_on_failure(vae.first_stage_model):
        chunk = next(chunks, None)
        if chunk is None:
            return None
        pixels = chunk.to(dtype=vae.vae_output_dtype(), copy=True)
        return vae.process_output(pixels)[0].movedim(0, -1).contiguous()
