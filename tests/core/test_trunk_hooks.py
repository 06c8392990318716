"""What hooks are called with, and what comes of what they return."""

from __future__ import annotations

import gc
import math
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from wancore.wan_core import kernels
from wancore.wan_core.attention import attention
from wancore.wan_core.hooks import Hooks, PositionTransform, Recovery
from wancore.wan_core.ops import TorchOps
from wancore.wan_core.transformer import WanTransformer

from .small_trunk import COLUMNS, FRAMES, ROWS, TOKENS_PER_FRAME, prompt, relative, transformer, video

STEP = torch.tensor([500.0])
TOKENS = FRAMES * TOKENS_PER_FRAME


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    return transformer()


def test_attention_is_asked_twice_per_block(model):
    seen = []

    def ours(q, k, v, heads):
        seen.append((tuple(q.shape), tuple(k.shape), tuple(v.shape), heads))
        return attention(q, k, v, heads)

    out = model(video(), STEP, prompt(), Hooks(attention=ours))
    among, text = (1, TOKENS, 48), (1, 8, 48)
    assert seen == [(among, among, among, 2), (among, text, text, 2)] * model.num_layers
    assert torch.equal(out, model(video(), STEP, prompt()))


def test_self_attention_hooks_get_heads_and_act_before_the_projection(model):
    seen = []

    def scale(x, q, k):
        seen.append((tuple(x.shape), tuple(q.shape), tuple(k.shape)))
        return 0.5 * x

    out = model(video(), STEP, prompt(), Hooks(self_attention=(scale, scale)))
    assert seen == [((1, TOKENS, 48), (1, TOKENS, 2, 24), (1, TOKENS, 2, 24))] * (2 * model.num_layers)
    other = transformer()
    for block in other.blocks:
        block.self_attn.o.weight *= 0.25
    assert relative(out, other(video(), STEP, prompt())) < 1e-6


def test_a_replaced_block_may_call_the_block_with_other_inputs(model):
    def skip(tokens, stream, block):
        return tokens

    def through(tokens, stream, block):
        return block(tokens, stream)

    def without_text(tokens, stream, block):
        return block(tokens, replace(stream, context=torch.zeros_like(stream.context)))

    plain = model(video(), STEP, prompt())
    assert torch.equal(model(video(), STEP, prompt(), Hooks(replace_block={1: through})), plain)
    assert relative(model(video(), STEP, prompt(), Hooks(replace_block={1: without_text})), plain) > 1e-3
    shorter = transformer()
    del shorter.blocks[1]
    assert torch.equal(model(video(), STEP, prompt(), Hooks(replace_block={1: skip})), shorter(video(), STEP, prompt()))


def test_hooks_around_blocks_get_their_index_the_grid_and_the_stream(model):
    before, after = [], []

    def look(index, tokens, stream):
        after.append((index, tuple(tokens.shape), tuple(stream.video.shape), tuple(stream.time.shape)))
        return tokens

    hooks = Hooks(at_block=lambda *place: before.append(place), after_block=(look,))
    model(video()[:, :, :, :-1], STEP, prompt(), hooks)
    assert before == [(i, 3, (FRAMES, ROWS // 2, COLUMNS // 2)) for i in range(3)]
    padded = (1, 16, FRAMES, ROWS, COLUMNS)
    assert after == [(i, (1, TOKENS, 48), padded, (1, 1, 48)) for i in range(3)]


def test_positions_are_relative_and_can_be_stretched(model):
    plain = model(video(), STEP, prompt())
    moved = model(video(), STEP, prompt(), Hooks(positions=PositionTransform(shift=(7.0, -2.0, 30.5))))
    assert relative(moved, plain) < 1e-5
    for axis in range(3):
        scale = tuple(2.0 if i == axis else 1.0 for i in range(3))
        stretched = model(video(), STEP, prompt(), Hooks(positions=PositionTransform(scale=scale)))
        assert relative(stretched, plain) > 1e-3


def test_the_host_orders_the_blocks_and_casts_the_weights():
    asked = []

    class Ops(TorchOps):
        @staticmethod
        def weights(module, like):
            asked.append(("weights", like.dtype))
            return TorchOps.weights(module, like)

        @staticmethod
        def stream(blocks, device, options):
            asked.append(("stream", options))
            yield from reversed(list(enumerate(blocks)))

    forwards, order = transformer(), []
    forwards.blocks = forwards.blocks[::-1]
    hosted = transformer(ops=Ops)
    hooks = Hooks(at_block=lambda index, count, grid: order.append(index), stream_options={"any": 1})
    assert torch.equal(hosted(video(), STEP, prompt(), hooks), forwards(video(), STEP, prompt()))
    assert order == [2, 1, 0]
    assert asked[0] == ("stream", {"any": 1})
    assert asked[1:] == [("weights", torch.float32)] * (5 * 3)  # norms of queries and keys, twice, and norm3


def test_sparing_calls_take_the_feed_forward_in_parts(model, monkeypatch):
    """The same numbers; the hidden tokens of a part, 80 values in place of 48, fit where all tokens were."""
    whole, rows = model(video(), STEP, prompt()), []
    gelu = kernels.gelu
    monkeypatch.setattr(kernels, "gelu", lambda x, form: (rows.append(x.shape[1]), gelu(x, form))[1])
    out = model(video(), STEP, prompt(), Hooks(sparing=True))
    assert relative(out, whole) < 1e-6
    assert len(rows) == 2 * model.num_layers and max(rows) == math.ceil(TOKENS / 2) and sum(rows[:2]) == TOKENS


def test_parts_go_where_the_tokens_were(model, monkeypatch):
    """Tensors of other sizes would leave gaps in the memory of a small card."""
    given, got = [], []
    norm, add = kernels.add_modulated_norm, kernels.gated_add

    def noted(*args, **options):
        sums, normed = norm(*args, **options)
        given.append(normed.data_ptr())
        return sums, normed

    monkeypatch.setattr(kernels, "add_modulated_norm", noted)
    monkeypatch.setattr(kernels, "gated_add", lambda x, y, *rest: (got.append(y.data_ptr()), add(x, y, *rest))[1])
    with torch.no_grad():
        model(video(), STEP, prompt(), Hooks(sparing=True))
    assert given == got and len(got) == model.num_layers


def test_tokens_before_the_blocks_are_let_go(model):
    """Nothing keeps them while the blocks compute: on a small card they are weights that could stay."""
    first, alive = [], []

    def after(index, tokens, stream):
        alive.append(first[0]() is not None if first else None)
        return tokens

    embed = model.embed

    def noted(*args):
        tokens, stream = embed(*args)
        first.append(weakref.ref(tokens))
        return tokens, stream

    model.embed = noted
    try:
        model(video(), STEP, prompt(), Hooks(after_block=(after,)))
    finally:
        del model.embed
    assert alive == [True] + [False] * (model.num_layers - 1)


def test_attentions_hold_no_tokens_but_their_own(model):
    """What goes into a projection, or was added already, is gone: on a small card it is room for the result."""
    held = []

    def attend(q, k, v, heads):
        gc.collect()
        storages = {t.untyped_storage().data_ptr() for t in gc.get_objects() if is_tokens(t)}
        held.append(len(storages - before))
        return attention(q, k, v, heads)

    def is_tokens(found):
        return type(found) is torch.Tensor and found.shape[:2] == (1, TOKENS) and found.numel() >= TOKENS * model.dim

    before = {t.untyped_storage().data_ptr() for t in gc.get_objects() if is_tokens(t)}
    with torch.no_grad():
        model(video(), STEP, prompt(), Hooks(attention=attend))
    residual, qkv, query, earlier = 1, 3, 1, 1  # the block's own input stays, so that it can be tried again
    assert held == [residual + qkv, earlier + residual + query] * model.num_layers


class Failing:
    """Blocks whose feed-forward fails so often; notes what the host was asked."""

    def __init__(self, monkeypatch, times, helps=True):
        self.times, self.helps, self.asked, self.helped = times, helps, [], 0
        gelu = kernels.gelu
        monkeypatch.setattr(kernels, "gelu", lambda x, form: self.fail() or gelu(x, form))

    def fail(self):
        if self.times:
            self.times -= 1
            raise MemoryError("too little")

    @property
    def recovery(self):
        return Recovery(lambda error: self.asked.append(type(error)) or self.helps, self.help)

    def help(self):
        assert sys.exc_info()[0] is None, "the failed try is still held"
        self.helped += 1


def test_a_block_that_lacked_memory_is_tried_again(model, monkeypatch):
    expected, failing = model(video(), STEP, prompt()), Failing(monkeypatch, 1)
    assert torch.equal(model(video(), STEP, prompt(), Hooks(recovery=failing.recovery)), expected)
    assert failing.asked == [MemoryError] and failing.helped == 1


@pytest.mark.parametrize(("times", "helps", "helped"), [(2, True, 1), (1, False, 0)])
def test_a_block_that_fails_again_is_an_error(model, monkeypatch, times, helps, helped):
    failing = Failing(monkeypatch, times, helps)
    with pytest.raises(MemoryError, match="too little"):
        model(video(), STEP, prompt(), Hooks(recovery=failing.recovery))
    assert failing.helped == helped
