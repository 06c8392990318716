"""VACE, Fun Control and Fun Camera beside the transformer: what fills their slots, said another way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from wancore.wan_core.adapters.camera import camera_bias
from wancore.wan_core.adapters.reference import reference_group
from wancore.wan_core.adapters.vace import ControlClip, mask_channels, vace_adapters
from wancore.wan_core.errors import InputError
from wancore.wan_core.hooks import Hooks, PositionTransform

from .small_trunk import COLUMNS, FRAMES, ROWS, noise, prompt, relative, transformer, video

EXACT = 1e-6
STEP = torch.tensor([640.0])
GRID = (FRAMES, ROWS // 2, COLUMNS // 2)


@pytest.fixture(scope="module")
def vace():
    return transformer(vace_dim=12, vace_blocks=(0, 2))


def clip(strength: float = 1.0, seed: int = 7) -> ControlClip:
    return ControlClip(noise(1, 12, FRAMES, ROWS, COLUMNS, seed=seed), strength)


def controlled(model, *clips, hooks=None):
    return model(video(), STEP, prompt(adapters=vace_adapters(model, model.config, clips)), hooks)


def test_hints_come_from_the_tokens_that_enter_the_first_block(vace):
    """All hints first, then the blocks, as the official code does it."""
    tokens, stream = vace.embed(video(), STEP, prompt(), Hooks())
    c = vace.vace_patch_embedding(clip().latent).flatten(2).transpose(1, 2)
    c = vace.vace_blocks[0].before_proj(c) + tokens
    hints = []
    for block in vace.vace_blocks:
        c = block(c, stream, Hooks())
        hints.append(block.after_proj(c))
    added = {0: hints[0], 2: hints[1]}
    hooks = Hooks(after_block=(lambda i, x, stream: x + 0.5 * added[i] if i in added else x,))
    assert relative(controlled(vace, clip(0.5)), vace(video(), STEP, prompt(), hooks)) < EXACT


def test_several_control_clips_add_up_and_strength_nothing_is_none(vace):
    plain, one = vace(video(), STEP, prompt()), controlled(vace, clip())
    assert relative(one, plain) > 1e-2
    assert torch.equal(controlled(vace, clip(0.0)), plain)
    assert relative(controlled(vace, clip(0.25), clip(0.75)), one) < EXACT
    assert relative(controlled(vace, clip(), clip(seed=8)), one) > 1e-2


def test_hooks_of_the_call_reach_the_vace_blocks(vace):
    calls = []

    def attend(q, k, v, heads):
        calls.append(tuple(q.shape))
        return v if v.shape[1] == q.shape[1] else torch.zeros_like(q)

    controlled(vace, clip(), hooks=Hooks(attention=attend))
    assert len(calls) == 2 * (len(vace.blocks) + len(vace.vace_blocks))


def test_tokens_beside_the_video_get_no_hint(vace):
    seen = []

    def look(index, tokens, stream):
        seen.append(tokens[:, stream.video_tokens :])
        return tokens

    from wancore.wan_core.conditioning import TokenGroup

    group = TokenGroup(noise(1, 4, vace.dim, seed=9), torch.zeros(4, 3, dtype=torch.float64))
    adapters = vace_adapters(vace, vace.config, [clip()])
    for given in (prompt(groups=(group,)), prompt(groups=(group,), adapters=adapters)):
        vace(video(), STEP, given, Hooks(after_block=(look,)))
    assert torch.equal(seen[0], seen[3])


def test_a_control_clip_of_another_size_is_refused(vace):
    longer = ControlClip(noise(1, 12, FRAMES + 1, ROWS, COLUMNS))
    with pytest.raises(InputError) as caught:
        controlled(vace, longer)
    assert (caught.value.found, caught.value.expected) == ("4 latent frames of 2x3 tokens", "3 of 2x3")


def test_masks_of_one_frame_and_of_four_become_latent_frames():
    mask = torch.zeros(5, 16, 24)
    mask[1, 0, 1] = mask[3, 8:, :8] = 1  # of five frames the second and the fourth are taken
    channels = mask_channels(mask, references=2)
    assert channels.shape == (64, 4, 2, 3)
    assert channels[:, :2].sum() == 0
    assert channels[1, 2, 0, 0] == 1 and channels[:, 3, 1, 0].sum() == 64


@pytest.mark.parametrize("positions", [None, PositionTransform(scale=(0.5, 2.0, 1.5), shift=(3.0, 1.0, -2.0))])
def test_a_reference_picture_is_a_frame_before_the_clip(positions):
    """With the patch embedding's own weights for the picture, it is the first of four frames that nobody asks for."""
    model = transformer(reference_dim=16)
    model.ref_conv.weight.copy_(model.patch_embedding.weight[:, :, 0])
    model.ref_conv.bias.copy_(model.patch_embedding.bias)
    picture, hooks = noise(1, 16, ROWS, COLUMNS, seed=11), Hooks(positions=positions)
    whole = model(torch.cat([picture.unsqueeze(2), video()], dim=2), STEP, prompt(), hooks)
    group = reference_group(model.ref_conv, picture, positions)
    assert relative(model(video(), STEP, prompt(groups=(group,)), hooks), whole[:, :, 1:]) < 5e-6


def test_camera_rays_are_added_to_the_tokens_of_their_place():
    model = transformer(camera_dim=24)
    rays = noise(1, 24, FRAMES, 8 * ROWS, 8 * COLUMNS, seed=12)
    bias = camera_bias(model.control_adapter, rays, GRID)
    assert bias.shape == (1, FRAMES * GRID[1] * GRID[2], model.dim)
    moved = rays.clone()
    moved[:, :, 1] += 1
    changed = (camera_bias(model.control_adapter, moved, GRID) - bias).abs().amax(dim=(0, 2)).unflatten(0, GRID)
    assert (changed[1] > 0).all() and changed[0].max() == changed[2].max() == 0
    assert relative(model(video(), STEP, prompt(token_bias=bias)), model(video(), STEP, prompt())) > 1e-2


@pytest.mark.parametrize("shape", [(24, FRAMES + 1, 32, 48), (24, FRAMES, 48, 32), (24, FRAMES, 36, 48)])
def test_a_camera_path_of_another_size_is_refused(shape):
    model = transformer(camera_dim=24)
    with pytest.raises(InputError) as caught:
        camera_bias(model.control_adapter, noise(1, *shape), GRID)
    assert caught.value.expected == "3 of 48x32"


def test_every_parameter_of_the_variants_learns(vace):
    model = transformer(vace_dim=12, vace_blocks=(0, 2), reference_dim=16, camera_dim=24).requires_grad_(True)
    given = prompt(
        adapters=vace_adapters(model, model.config, [clip()]),
        groups=(reference_group(model.ref_conv, noise(1, 16, ROWS, COLUMNS)),),
        token_bias=camera_bias(model.control_adapter, noise(1, 24, FRAMES, 8 * ROWS, 8 * COLUMNS), GRID),
    )
    model(video(), STEP, given).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_variants_compile_as_one_graph(vace):
    given = replace(prompt(), adapters=vace_adapters(vace, vace.config, [clip()]))
    compiled = torch.compile(vace, backend="eager", fullgraph=True)
    assert torch.equal(compiled(video(), STEP, given), vace(video(), STEP, given))
