"""The transformer's slots: what fills one is compared with the same thing said another way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from wancore.wan_core import kernels
from wancore.wan_core.adapters import AdapterRun
from wancore.wan_core.conditioning import ContextGroup, TokenGroup
from wancore.wan_core.config import TransformerConfig
from wancore.wan_core.errors import WrongModelError
from wancore.wan_core.hooks import Hooks
from wancore.wan_core.transformer import WanTransformer

from .small_trunk import COLUMNS, FRAMES, ROWS, TOKENS_PER_FRAME, noise, prompt, relative, transformer, video

SHAPES = Path(__file__).parents[1] / "shapes"
EXACT = 1e-6  # float32, the same sums in another order
TRUNKS = ("t2v_A14B_expert", "i2v_A14B_expert", "ti2v_5B", "t2v_1.3B", "s2v_14B", "wan21_i2v_14B",
          "wan21_flf2v_14B", "vace_1.3B", "vace_14B", "fun_control_A14B", "fun_camera_A14B")  # fmt: skip


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    return transformer()


@pytest.mark.parametrize("name", TRUNKS)
def test_has_the_keys_and_shapes_of_the_real_checkpoint(name):
    shapes = json.loads((SHAPES / f"{name}.json").read_text(encoding="utf-8"))["shapes"]
    real = {key: tuple(shape) for key, shape in shapes.items()}
    ours = WanTransformer(TransformerConfig.from_shapes(real), device="meta").state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in ours.items()} == real


def test_a_timestep_per_frame_is_one_per_token(model):
    frames = torch.tensor([[0.0, 437.5, 812.0]])
    tokens = frames.repeat_interleave(TOKENS_PER_FRAME, dim=1)
    per_frame, per_token = model(video(), frames, prompt()), model(video(), tokens, prompt())
    assert relative(per_frame, per_token) < EXACT
    assert relative(per_frame, model(video(), frames[:, 2], prompt())) > 1e-2


def test_equal_timesteps_are_one_timestep(model):
    step = torch.tensor([640.0])
    assert relative(model(video(), step.expand(1, FRAMES), prompt()), model(video(), step, prompt())) < EXACT


def test_timesteps_that_cannot_be_shared_out_are_refused(model):
    with pytest.raises(ValueError, match="5 timesteps"):
        model(video(), torch.ones(1, 5), prompt())


def test_modulation_is_kept_per_timestep_not_per_token(model):
    shapes = []

    def look(index, tokens, stream):
        shapes.append(tuple(stream.rows.shape))
        return tokens

    model(video(), torch.ones(1, FRAMES), prompt(), Hooks(after_block=(look,)))
    assert shapes == [(1, FRAMES, 6, model.dim)] * model.num_layers


def test_samples_of_a_batch_do_not_mix(model):
    steps, both = torch.tensor([100.0, 900.0]), prompt(batch=2)
    together = model(video(batch=2), steps, both)
    for i in range(2):
        alone = model(video(batch=2)[i : i + 1], steps[i : i + 1], replace(both, text=both.text[i : i + 1]))
        assert relative(together[i : i + 1], alone) < EXACT


@pytest.mark.parametrize("own_step", [None, 0.0])
def test_a_token_group_is_a_frame_that_leaves_before_the_head(model, own_step):
    """The last frame as a group at its own position gives the other frames what it gives them as a frame."""
    steps = torch.tensor([[700.0, 700.0, 700.0 if own_step is None else own_step]])
    whole = model(video(), steps, prompt())
    last = model.patch_embedding(video()[:, :, -1:]).flatten(2).transpose(1, 2)
    rows, columns = torch.meshgrid(torch.arange(ROWS // 2), torch.arange(COLUMNS // 2), indexing="ij")
    positions = torch.stack([torch.full_like(rows, FRAMES - 1), rows, columns], dim=-1).reshape(-1, 3).double()
    group = TokenGroup(last, positions, None if own_step is None else torch.tensor([own_step]))
    parted = model(video()[:, :, :-1], torch.tensor([700.0]), prompt(groups=(group,)))
    assert parted.shape == (1, 16, FRAMES - 1, ROWS, COLUMNS)
    assert relative(parted, whole[:, :, :-1]) < EXACT
    assert relative(parted, model(video()[:, :, :-1], torch.tensor([700.0]), prompt())) > 1e-2


def test_several_groups_may_have_timesteps_of_their_own(model):
    """One group of both frames with one timestep is two groups of a frame each."""
    tokens, positions = noise(1, 10, model.dim), 3.0 * noise(10, 3, seed=4).abs().double()
    step = torch.tensor([250.0])
    one = TokenGroup(tokens, positions, step)
    two = tuple(TokenGroup(tokens[:, part], positions[part], step) for part in (slice(0, 4), slice(4, None)))
    frames = torch.tensor([[0.0, 500.0, 500.0]])
    ours, theirs = (model(video(), frames, prompt(groups=groups)) for groups in (two, (one,)))
    assert relative(ours, theirs) < EXACT
    other = (two[0], replace(two[1], timestep=torch.tensor([900.0])))
    assert relative(model(video(), frames, prompt(groups=other)), theirs) > 1e-3


def test_a_token_bias_acts_on_the_video_tokens(model):
    vector, group = noise(model.dim, seed=5), TokenGroup(noise(1, 4, model.dim), torch.zeros(4, 3).double())
    count = FRAMES * TOKENS_PER_FRAME
    biased = model(video(), torch.tensor([9.0]), prompt(token_bias=vector.expand(1, count, -1), groups=(group,)))
    other = transformer()
    other.patch_embedding.bias += vector
    assert relative(biased, other(video(), torch.tensor([9.0]), prompt(groups=(group,)))) < EXACT


def test_concat_channels_follow_the_latents(model):
    wide = transformer(in_dim=36)
    channels = noise(1, 20, FRAMES, ROWS, COLUMNS, seed=6)
    ours = wide(video(), torch.tensor([9.0]), prompt(concat=channels))
    assert torch.equal(ours, wide(torch.cat([video(), channels], dim=1), torch.tensor([9.0]), prompt()))
    for network, sample in ((wide, prompt()), (model, prompt(concat=channels))):
        with pytest.raises(WrongModelError) as error:
            network(video(), torch.tensor([9.0]), sample)
        assert error.value.expected == str(network.in_dim)


def test_odd_sizes_are_filled_up_circularly_and_cut(model):
    odd = video()[:, :, :, :-1, :-1]
    padded = torch.cat([odd, odd[:, :, :, :1]], dim=3)
    padded = torch.cat([padded, padded[..., :1]], dim=4)
    ours, whole = (model(x, torch.tensor([9.0]), prompt()) for x in (odd, padded))
    assert ours.shape == odd.shape
    assert torch.equal(ours, whole[:, :, :, :-1, :-1])


def test_text_is_filled_up_with_zeros_to_the_trained_length(model):
    short, step = prompt(), torch.tensor([9.0])
    filled = replace(short, text=torch.cat([short.text, torch.zeros(1, 3, 20)], dim=1))
    assert torch.equal(model(video(), step, short), model(video(), step, filled))
    longer = replace(short, text=torch.cat([filled.text, torch.zeros(1, 1, 20)], dim=1))
    assert relative(model(video(), step, longer), model(video(), step, filled)) > 1e-4


def test_picture_contexts_have_keys_and_values_of_their_own(model):
    pictured, step = transformer(image_dim=12, image_positions=6), torch.tensor([9.0])
    group = ContextGroup(noise(1, 6, 12))
    without, one = pictured(video(), step, prompt()), pictured(video(), step, prompt(contexts=(group,)))
    assert relative(one, without) > 1e-2
    for block in pictured.blocks:
        block.cross_attn.v_img.weight.zero_()
        block.cross_attn.v_img.bias.zero_()
    assert relative(pictured(video(), step, prompt(contexts=(group,))), without) < EXACT
    with pytest.raises(WrongModelError):
        model(video(), step, prompt(contexts=(group,)))


class Nudge:
    """An adapter that adds a constant after each block, and notes its calls in the run."""

    def __init__(self, amount: float = 0.0) -> None:
        self.amount, self.runs = amount, []

    def begin(self, tokens, stream, hooks):
        assert tokens.shape[1] == stream.video_tokens
        run = NudgeRun(self.amount)
        self.runs.append(run)
        return run


class NudgeRun(AdapterRun):
    def __init__(self, amount):
        self.amount, self.calls = amount, []

    def after_block(self, index, tokens):
        self.calls.append(index)
        return tokens + self.amount


def test_adapters_act_after_blocks_with_a_run_per_call(model):
    step, adapter = torch.tensor([9.0]), Nudge(0.5)
    first, second = (model(video(), step, prompt(adapters=(adapter,))) for _ in range(2))
    assert torch.equal(first, second)
    assert [run.calls for run in adapter.runs] == [list(range(model.num_layers))] * 2
    hooks = Hooks(after_block=(lambda i, x, stream: x + 0.5,))
    assert torch.equal(first, model(video(), step, prompt(), hooks))
    assert not torch.equal(first, model(video(), step, prompt(adapters=(Nudge(0.25),))))


def test_adapters_leave_the_fused_norm_of_a_block_as_it_is(model, monkeypatch):
    """Without it a block holds all tokens once more."""
    fused, calls = kernels.add_modulated_norm, []
    monkeypatch.setattr(kernels, "add_modulated_norm", lambda *args, **kw: calls.append(1) or fused(*args, **kw))
    model(video(), torch.tensor([9.0]), prompt(adapters=(Nudge(0.5),)))
    assert len(calls) == model.num_layers


def test_a_forward_leaves_nothing_on_the_modules(model):
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    model(video(), torch.tensor([9.0]), prompt(adapters=(Nudge(),)))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before


def test_every_parameter_learns():
    model = transformer(image_dim=12).requires_grad_(True)
    contexts = (ContextGroup(noise(1, 4, 12)),)
    model(video(), torch.tensor([9.0]), prompt(contexts=contexts)).square().mean().backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


def test_compiles_as_one_graph(model):
    """Without breaks: what a fused or compiled block needs."""
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(video(), torch.tensor([9.0]), prompt()), model(video(), torch.tensor([9.0]), prompt()))
