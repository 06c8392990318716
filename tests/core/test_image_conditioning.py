"""Pictures in a clip: where they go, what the mask says of them, and how they are fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from wancore.wan_core.errors import InputError
from wancore.wan_core.image_conditioning import (
    Keyframe,
    clip_parts,
    cover,
    cover_lanczos,
    covering_size,
    known_mask,
    stretch,
)

SIZE = (16, 8)  # width, height


def pictures(count: int = 1, width: int = 16, height: int = 8, seed: int = 0) -> torch.Tensor:
    values = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed))
    return values / 127.5 - 1


def test_grey_chunks_in_a_row_are_one_part():
    first, middle, last = (pictures(seed=seed) for seed in range(3))
    keyframes = [Keyframe(0, first), Keyframe(22, middle), Keyframe(80, last)]
    parts = list(clip_parts(keyframes, 81, SIZE))
    assert [times for _, times in parts] == [1, 5, 1, 13, 1]
    clip = torch.cat([part for part, times in parts for _ in range(times)], dim=2)
    assert clip.shape == (1, 3, 81, 8, 16)
    for keyframe in keyframes:
        assert torch.equal(clip[:, :, keyframe.index], keyframe.pictures)
    clip[:, :, [0, 22, 80]] = 0
    assert not clip.any()


def test_a_clip_without_a_first_picture_starts_grey():
    parts = list(clip_parts([Keyframe(8, pictures())], 9, SIZE))
    assert [(part.shape[2], times) for part, times in parts] == [(1, 1), (4, 1), (4, 1)]


def test_the_mask_says_how_well_each_frame_is_known():
    mask = known_mask([Keyframe(0, pictures()), Keyframe(3, pictures(2), strength=0.5), Keyframe(8, pictures())], 9)
    assert mask.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0.5, 0], [1, 0.5, 1]]


@pytest.mark.parametrize(
    ("keyframes", "found"),
    [
        ([Keyframe(9, pictures())], "frame 9"),
        ([Keyframe(-1, pictures())], "frame -1"),
        ([Keyframe(0, pictures(3)), Keyframe(2, pictures())], "frame 2"),
    ],
)
def test_pictures_outside_the_clip_or_on_one_frame_are_refused(keyframes: list[Keyframe], found: str):
    with pytest.raises(InputError) as caught:
        list(clip_parts(keyframes, 9, SIZE))
    assert caught.value.found == found


def test_stretching_is_bicubic_and_covering_keeps_the_aspect():
    picture = pictures(1, 30, 10)
    expected = functional.interpolate(picture, size=(8, 16), mode="bicubic")
    assert torch.equal(stretch(picture, SIZE), expected)
    assert covering_size((30, 10), SIZE) == (24, 8)
    whole = functional.interpolate(picture, size=(8, 24), mode="bicubic")
    assert torch.equal(cover(picture, SIZE), whole[..., 4:20])
    assert torch.equal(cover(pictures(), SIZE), pictures())


def test_lanczos_is_pillows():
    picture = pictures(2, 30, 10)
    for given, fitted in zip(picture, cover_lanczos(picture, SIZE), strict=True):
        image = Image.fromarray(((given + 1) * 127.5).round().to(torch.uint8).movedim(0, -1).numpy())
        expected = np.asarray(image.resize((24, 8), Image.Resampling.LANCZOS))[:, 4:20]
        assert torch.allclose(fitted.movedim(0, -1), torch.from_numpy(expected.copy()) / 127.5 - 1, atol=1e-6)
    assert torch.allclose(cover_lanczos(pictures(), SIZE), pictures(), atol=1e-6)
