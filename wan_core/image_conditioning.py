"""Pictures that a clip starts from, ends with or passes through: fitted to its size, laid out in time, and masked.

Pictures are [n, 3, H, W] in -1..1. Source of the layout: Wan-Video/Wan2.2 wan/image2video.py and textimage2video.py at
42bf4cf; end frame: Wan-Video/Wan2.1 wan/first_last_frame2video.py at 9737cba.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .errors import InputError
from .geometry import FRAME_STRIDE, Size, latent_frames
from .vae.causal import chunk_bounds


@dataclass(frozen=True)
class Keyframe:
    """Pictures for consecutive frames of the clip, from frame `index` on; a strength below 1 lets the model stray.

    The models were trained with strength 1.
    """

    index: int
    pictures: Tensor  # [n, 3, H, W] in -1..1
    strength: float = 1.0
    where: str = "keyframe"  # the input that it comes from, for errors


def place(keyframes: Sequence[Keyframe], frames: int) -> dict[int, tuple[Tensor, float]]:
    """Returns {frame: (picture [3, H, W], strength)}.

    Raises:
        InputError: a picture is outside the clip, or two are for one frame.
    """
    placed: dict[int, tuple[Tensor, float]] = {}
    for keyframe in keyframes:
        for frame, picture in enumerate(keyframe.pictures, keyframe.index):
            if not 0 <= frame < frames or frame in placed:
                raise InputError(
                    "Two pictures are for one frame" if frame in placed else "A picture is outside the clip",
                    where=keyframe.where,
                    found=f"frame {frame}",
                    expected=f"frames 0 to {frames - 1}, each once",
                    remedy="Change its frame, or the length of the clip",
                )
            placed[frame] = picture, keyframe.strength
    return placed


def clip_parts(keyframes: Sequence[Keyframe], frames: int, size: Size) -> Iterator[tuple[Tensor, int]]:
    """The clip for `CausalVAE.encode_parts`: mid grey where there is no picture, grey chunks in a row as one part."""
    placed = place(keyframes, frames)
    width, height = size
    grey = torch.zeros(1, 3, FRAME_STRIDE, height, width)
    greys = 0
    for start, stop in chunk_bounds(frames, FRAME_STRIDE):
        known = {frame: placed[frame][0] for frame in range(start, stop) if frame in placed}
        if not known and stop - start == FRAME_STRIDE:
            greys += 1
            continue
        if greys:
            yield grey, greys
            greys = 0
        chunk = grey[:, :, : stop - start].clone()
        for frame, picture in known.items():
            chunk[0, :, frame - start] = picture
        yield chunk, 1
    if greys:
        yield grey, greys


def pixel_parts(clip: Tensor) -> Iterator[tuple[Tensor, int]]:
    """A clip [1, 3, F, H, W] for `CausalVAE.encode_parts`: chunks that are all mid grey, in a row, as one part."""
    greys = 0
    grey = torch.zeros_like(clip[:, :, :FRAME_STRIDE])
    for start, stop in chunk_bounds(clip.shape[2], FRAME_STRIDE):
        chunk = clip[:, :, start:stop]
        if stop - start == FRAME_STRIDE and not chunk.any():
            greys += 1
            continue
        if greys:
            yield grey, greys
            greys = 0
        yield chunk, 1
    if greys:
        yield grey, greys


def known_mask(keyframes: Sequence[Keyframe], frames: int) -> Tensor:
    """The four mask channels [4, F], the same at every position: strength where a frame is known, else 0."""
    known = torch.zeros(frames)
    for frame, (_picture, strength) in place(keyframes, frames).items():
        known[frame] = strength
    return fold_mask(known)


def fold_mask(known: Tensor) -> Tensor:
    """Frames [4n+1, ...] -> [4, n+1, ...]: the first frame four times, then four frames to a latent frame."""
    first = known[:1].expand(FRAME_STRIDE, *known.shape[1:])
    return torch.cat((first, known[1:])).unflatten(0, (latent_frames(len(known)), FRAME_STRIDE)).transpose(0, 1)


def stretch(pictures: Tensor, size: Size, *, antialias: bool = False) -> Tensor:
    """Pictures of any size -> `size`, without regard to their aspect; bicubic, as official I2V."""
    width, height = size
    if pictures.shape[-2:] == (height, width):
        return pictures
    return functional.interpolate(pictures, size=(height, width), mode="bicubic", antialias=antialias)


def cover(pictures: Tensor, size: Size, *, antialias: bool = False) -> Tensor:
    """Pictures of any size -> `size`, enlarged or reduced until they cover it and cut around their centre; bicubic."""
    width, height = size
    larger = covering_size((pictures.shape[-1], pictures.shape[-2]), size)
    scaled = stretch(pictures, larger, antialias=antialias)
    top, left = (scaled.shape[-2] - height) // 2, (scaled.shape[-1] - width) // 2
    return scaled[..., top : top + height, left : left + width]


def cover_lanczos(pictures: Tensor, size: Size) -> Tensor:
    """As `cover`, on 8-bit pictures with Pillow's Lanczos filter: official TI2V."""
    width, height = size
    larger = covering_size((pictures.shape[-1], pictures.shape[-2]), size)
    left, top = (larger[0] - width) // 2, (larger[1] - height) // 2
    cut = []
    for picture in ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1).cpu():
        scaled = Image.fromarray(picture.numpy()).resize(larger, Image.Resampling.LANCZOS)
        cut.append(np.asarray(scaled.crop((left, top, left + width, top + height))))
    return torch.from_numpy(np.stack(cut)).movedim(-1, 1).float() / 127.5 - 1


def on_white(picture: Tensor, size: Size) -> Tensor:
    """A picture [1, 3, H, W] of any size -> `size`, whole, between white bars; bilinear: official VACE references."""
    width, height = size
    if picture.shape[-2:] == (height, width):
        return picture
    scale = min(width / picture.shape[-1], height / picture.shape[-2])
    rows, columns = max(1, int(picture.shape[-2] * scale)), max(1, int(picture.shape[-1] * scale))
    canvas = picture.new_ones(1, 3, height, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    canvas[..., top : top + rows, left : left + columns] = functional.interpolate(
        picture, size=(rows, columns), mode="bilinear"
    )
    return canvas


def covering_size(picture: Size, size: Size) -> Size:
    """The smallest size of the picture's aspect that covers `size`."""
    scale = max(size[0] / picture[0], size[1] / picture[1])
    return max(size[0], round(picture[0] * scale)), max(size[1], round(picture[1] * scale))
