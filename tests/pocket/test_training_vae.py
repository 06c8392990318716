"""How training encodes clips, against the VAEs themselves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from wancore.pocket import family, models
from wancore.pocket.training import data, flow, vae
from wancore.pocket.training.loop import Plan

CPU = torch.device("cpu")


@pytest.mark.parametrize("member", [family.VAE, family.VAE22], ids=lambda member: member.short)
@pytest.mark.parametrize("frames", [1, 10])
def test_clips_are_encoded_and_decoded_as_the_vae_encodes_them(member: family.Member, frames: int):
    model = models.load_weights(models.new_vae(member), member).requires_grad_(False)
    clips = data.draw_clips(data.draw_pool(2, 8, CPU).scenes, data.Size(frames, 32, 48))
    expected = model.statistics.normalise(model.encode(clips))
    found = vae.encode(model, clips)
    assert found.shape == expected.shape
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    made = model.decode(model.statistics.denormalise(expected)).clamp(-1, 1)
    assert (vae.decode(model, expected) - made).norm() <= 1e-5 * made.norm()


def test_batches_of_one_size_lose_and_add_no_clip(tmp_path: Path):
    model = models.load_weights(models.new_vae(), family.VAE).requires_grad_(False)
    pool, size = data.draw_pool(7, 9, CPU), data.Size(5, 32, 32)
    plan = Plan(tmp_path, tmp_path, CPU, 3, time.monotonic() + 60)
    pixels = 3 * size.frames * size.height * size.width
    (found,) = flow.encode_pool(model, pool, ((size, 1),), plan, pictures=True, batch_pixels=pixels)
    clips = data.draw_clips(pool.scenes, size)
    for kept, expected in (
        (found.values, vae.encode(model, clips)),
        (found.pictures, flow.encode_first(model, clips)),
    ):
        assert kept is not None and kept.shape == expected.shape and len(kept) == len(found.ids) == 7
        assert (kept.float() - expected).norm() <= 4e-3 * expected.norm()
