"""Control clips with masks for VACE, and clips with holes for inpainting: laid out in time, cut apart by their masks.

Pixels are [1, 3, F, H, W] in -1..1, mid grey (0) where there is nothing; masks are [F, H, W], 1 where the model is to
make something new. Source: Wan-Video/Wan2.1 wan/vace.py at 9737cba, aigc-apps/VideoX-Fun
videox_fun/pipeline/pipeline_wan2_2_fun_inpaint.py at 804a425.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .geometry import FRAME_STRIDE, Size, latent_frames
from .image_conditioning import Keyframe, covering_size, place

THRESHOLD = 0.5  # above it a mask means "make new"


@dataclass(frozen=True)
class MaskedClip:
    """A clip, and which of its pixels the model is to make new."""

    pixels: Tensor  # [1, 3, F, H, W]
    mask: Tensor  # [F, H, W] of 0 and 1

    @property
    def kept(self) -> Tensor:
        """The pixels outside the mask; grey inside."""
        return self.pixels * (1 - self.mask)

    @property
    def changed(self) -> Tensor:
        """The pixels inside the mask, which tell the model what to make there; grey outside."""
        return self.pixels * self.mask


def masked_clip(
    video: Tensor | None, masks: Tensor | None, keyframes: Sequence[Keyframe], frames: int, size: Size
) -> MaskedClip:
    """Lays a video [n, 3, H, W] with masks [m, H, W], and pictures that are kept whole, out in a clip of `frames`.

    One mask is that of every frame of the video. Where there is no video, or no mask for it, everything is to be made
    new. All are of `size` already.

    Raises:
        InputError: masks without a video; see `place`.
    """
    if masks is not None and video is None:
        raise InputError(
            "There is a mask, and no video that it belongs to",
            where="control_masks",
            found=f"{len(masks)} mask{'s' * (len(masks) != 1)}",
            remedy="Connect the video, or disconnect the masks",
        )
    width, height = size
    pixels, mask = torch.zeros(1, 3, frames, height, width), torch.ones(frames, height, width)
    if video is not None:
        video = video[:frames]
        pixels[0, :, : len(video)] = video.movedim(0, 1)
        if masks is not None:
            alike = masks.expand(len(video), -1, -1) if len(masks) == 1 else masks[: len(video)]
            mask[: len(alike)] = (alike > THRESHOLD).float()
    for frame, (picture, _strength) in place(keyframes, frames).items():
        pixels[0, :, frame], mask[frame] = picture, 0.0
    return MaskedClip(pixels, mask)


def cover_masks(masks: Tensor, size: Size) -> Tensor:
    """Masks [n, H, W] of any size -> `size`, scaled until they cover it and cut around their centre; nearest pixel."""
    width, height = size
    columns, rows = covering_size((masks.shape[-1], masks.shape[-2]), size)
    scaled = F.interpolate(masks[None].float(), size=(rows, columns), mode="nearest-exact")[0]
    top, left = (rows - height) // 2, (columns - width) // 2
    return scaled[:, top : top + height, left : left + width]


def known_channels(mask: Tensor, rows: int, columns: int) -> Tensor:
    """A mask [F, H, W] as Fun inpainting reads it: 1 where pixels are known -> [4, T, rows, columns].

    Every latent frame has a channel for each of its four frames, the first frame counts four times; trilinear, the
    first latent frame apart.
    """
    known = 1 - torch.cat([mask[:1].expand(FRAME_STRIDE, -1, -1), mask[1:]])
    known = known.view(latent_frames(len(mask)), FRAME_STRIDE, *mask.shape[1:]).movedim(1, 0)[None]
    parts = [known[:, :, :1], known[:, :, 1:]]
    return torch.cat(
        [F.interpolate(part, size=(part.shape[2], rows, columns), mode="trilinear") for part in parts if part.shape[2]],
        dim=2,
    )[0]
