"""Pictures as the conditioning nodes take them: the clip's size after them, their place in it, their values."""

from __future__ import annotations

from typing import Any

from ..wan_core import geometry
from ..wan_core.image_conditioning import Keyframe, cover, stretch
from .bridge.latents import LatentGrid

SIZES = {**geometry.ASPECT_SIZES, **geometry.VIDEO_SIZES}


def size_for(choice: str, custom: geometry.Size, grid: LatentGrid, image: Any) -> geometry.Size:
    """The clip's size: of the picture's aspect where that is chosen and there is one."""
    if choice in geometry.ASPECT_SIZES and image is not None:
        picture = image.shape[2], image.shape[1]
        return geometry.size_at_aspect(picture, geometry.ASPECT_SIZES[choice], grid.multiple)
    return geometry.choose_size(SIZES, choice, custom, grid.multiple)


def ends(start_image: Any, end_image: Any, frames: int, size: geometry.Size, *, fitted: bool) -> list[Keyframe]:
    """The first and last frames. `fitted`: the size was made for the first picture, which is stretched to it."""
    keyframes = []
    if start_image is not None:
        pictures = pictures_of(start_image[:frames])
        keyframes.append(Keyframe(0, stretch(pictures, size) if fitted else cover(pictures, size)))
    if end_image is not None:
        pictures = pictures_of(end_image[-frames:])
        alone = fitted and start_image is None
        ending = stretch(pictures, size) if alone else cover(pictures, size)
        keyframes.append(Keyframe(frames - len(ending), ending))
    return keyframes


def pictures_of(image: Any) -> Any:
    """IMAGE [n, H, W, C] in 0..1 -> [n, 3, H, W] in -1..1, without transparency."""
    return image[..., :3].movedim(-1, 1).float() * 2 - 1
