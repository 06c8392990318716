"""Pictures and masks as the conditioning nodes take them: the clip's size, their place in it, their values."""

from __future__ import annotations

from typing import Any

from ..wan_core import geometry
from ..wan_core.errors import InputError
from ..wan_core.image_conditioning import Keyframe, cover, stretch
from .bridge.latents import LatentGrid
from .bridge.soundness import require_numbers

SIZES = {**geometry.ASPECT_SIZES, **geometry.VIDEO_SIZES}


def rgb(image: Any, name: str) -> Any:
    """IMAGE [n, H, W, C] -> [n, H, W, 3], without transparency, grey as three equal colours; None stays None.

    Raises:
        InputError: the input `name` has no pictures, or values that are not numbers.
    """
    if image is None:
        return None
    _check(image, name)
    return image[..., :3].expand(-1, -1, -1, 3)


def masks_of(mask: Any, name: str) -> Any:
    """MASK [n, H, W], or [H, W] or [n, 1, H, W] as some nodes make it -> [n, H, W]; None stays None.

    Raises:
        InputError: the input `name` has no masks, or values that are not numbers.
    """
    if mask is None:
        return None
    _check(mask, name)
    return mask.reshape(-1, *mask.shape[-2:])


def _check(values: Any, name: str) -> None:
    if not values.numel():
        raise InputError(
            f"The {name.replace('_', ' ')} is empty",
            where=name,
            found=f"{len(values)} frames of {values.shape[2]}x{values.shape[1]}" if values.ndim > 2 else "nothing",
            remedy=f"Look at the node that makes it, or disconnect {name}",
        )
    require_numbers(name, values)


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
        beginning = stretch(pictures, size) if fitted else cover(pictures, size)
        keyframes.append(Keyframe(0, beginning, where="start_image"))
    if end_image is not None:
        pictures = pictures_of(end_image[-frames:])
        alone = fitted and start_image is None
        ending = stretch(pictures, size) if alone else cover(pictures, size)
        keyframes.append(Keyframe(frames - len(ending), ending, where="end_image"))
    return keyframes


def pictures_of(image: Any) -> Any:
    """Pictures [n, H, W, 3] in 0..1 -> [n, 3, H, W] in -1..1."""
    return image.movedim(-1, 1).float() * 2 - 1
