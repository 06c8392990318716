"""Normalised attention guidance against its formula, computed directly."""

from __future__ import annotations

import pytest
import torch
from wancore.wan_core.attention import attention
from wancore.wan_core.guidance import Against, NormalizedGuidance
from wancore.wan_core.hooks import Hooks

from .small_trunk import noise, prompt, relative, transformer, video

STEP = torch.tensor([500.0])


def direct(positive, negative, scale, tau, alpha):
    """Token by token, as the paper writes it."""
    out = torch.empty_like(positive)
    for b in range(positive.shape[0]):
        for i in range(positive.shape[1]):
            near, away = positive[b, i], negative[b, i]
            moved = near * scale - away * (scale - 1)
            ratio = moved.abs().sum() / near.abs().sum()
            if ratio > tau:
                moved = moved / ratio * tau
            out[b, i] = moved * alpha + near * (1 - alpha)
    return out


@pytest.mark.parametrize("scale", [1.5, 11.0])
def test_formula(scale):
    positive, negative = noise(2, 6, 48, seed=1).double(), noise(2, 6, 48, seed=2).double()
    ours = NormalizedGuidance(scale, 2.5, 0.25)(positive, negative)
    assert relative(ours, direct(positive, negative, scale, 2.5, 0.25)) < 1e-6


def test_limit_is_reached_and_not_always():
    near, far = noise(1, 6, 48, seed=1), noise(1, 6, 48, seed=2)
    grown = [NormalizedGuidance(scale, 2.5, 1.0)(near, far).norm(p=1) / near.norm(p=1) for scale in (11.0, 1.2)]
    assert grown[0] == pytest.approx(2.5, abs=1e-4) and 1 < grown[1] < 2.5


def against(rows=None, scale=11.0):
    return Against(noise(1, 4, 20, seed=8), NormalizedGuidance(scale), rows)


def test_inside_the_transformer():
    """The same by attention's hook: it sees the extra cross-attention, and computes the formula itself."""
    model, seen = transformer(), []
    out = model(video(), STEP, prompt(against=against()))
    plain = model(video(), STEP, prompt())
    negative = model._context(against().text, Hooks())
    layers = {id(block.cross_attn): block.cross_attn for block in model.blocks}

    def by_hand(q, k, v, heads):
        positive = attention(q, k, v, heads)
        seen.append(k.shape[1])
        if k.shape[1] != 8:
            return positive
        layer = list(layers.values())[len(seen) // 2 - 1]
        away = attention(q, layer.norm_k(layer.k(negative)), layer.v(negative), heads)
        return direct(positive, away, 11.0, 2.5, 0.25)

    theirs = model(video(), STEP, prompt(), Hooks(attention=by_hand))
    assert relative(out, theirs) < 1e-5 and relative(out, plain) > 1e-3


def test_costs_one_attention_per_block():
    model, calls = transformer(), []

    def count(q, k, v, heads):
        calls.append(1)
        return attention(q, k, v, heads)

    model(video(), STEP, prompt(against=against()), Hooks(attention=count))
    assert len(calls) == 3 * model.num_layers


def test_only_the_given_rows_are_steered():
    model = transformer()
    both = prompt(2, against=against(rows=(1,)))
    out, plain = model(video(2), STEP, both), model(video(2), STEP, prompt(2))
    all_rows = model(video(2), STEP, prompt(2, against=against()))
    assert torch.equal(out[0], plain[0]) and relative(out[1:], all_rows[1:]) < 1e-6
    assert relative(out[1], plain[1]) > 1e-3
    none = model(video(2), STEP, prompt(2, against=against(rows=())))
    assert torch.equal(none, plain)
