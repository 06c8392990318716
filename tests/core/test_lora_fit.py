"""Which adapters fit a weight: by the shapes of their parts, whatever the kind."""

from __future__ import annotations

import pytest
from wancore.wan_core.weights.lora_fit import fits, strangers

WEIGHT = (64, 48)
CONVOLUTION = (64, 16, 1, 2, 2)
PAIR = {"lora_down.weight": (4, 48), "lora_up.weight": (64, 4)}
LOHA = {"hada_w1_a": (64, 4), "hada_w1_b": (4, 48), "hada_w2_a": (64, 4), "hada_w2_b": (4, 48)}
LOKR = {"lokr_w1": (8, 8), "lokr_w2": (8, 6)}
HALVES = {"lokr_w1_a": (8, 2), "lokr_w1_b": (2, 8), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 6)}
GLORA = {"a1.weight": (4, 64), "a2.weight": (64, 4), "b1.weight": (4, 64), "b2.weight": (64, 4)}
FITTING = [
    PAIR,
    {**PAIR, "alpha": (), "dora_scale": (64, 1)},
    {**PAIR, "dora_scale": (1, 48)},
    {**PAIR, "lora_up.weight": (64, 7), "lora_mid.weight": (7, 4)},
    {**PAIR, "diff": (64, 48), "diff_b": (64,)},
    LOHA,
    LOKR,
    HALVES,
    {**HALVES, "lokr_w1": (8, 8)},
    {"oft_blocks": (4, 16, 16)},
    {"oft_blocks": (2, 4, 16, 16), "rescale": (64, 1)},
    GLORA,
    {"diff_b": (64,)},
    {"w_norm": WEIGHT, "b_norm": (64,)},
]


@pytest.mark.parametrize("parts", FITTING, ids=" ".join)
def test_what_fits(parts):
    assert fits(parts, WEIGHT)


def test_convolutions_are_flat():
    assert fits({"lora_down.weight": (4, 64), "lora_up.weight": (64, 4)}, CONVOLUTION)
    assert fits({"lora_down.weight": (4, 16, 1, 2, 2), "lora_up.weight": (64, 4, 1, 1, 1)}, CONVOLUTION)
    assert not fits({"lora_down.weight": (4, 36, 1, 2, 2), "lora_up.weight": (64, 4, 1, 1, 1)}, CONVOLUTION)
    widens = {"lora_down.weight": (4, 32, 1, 2, 2), "lora_up.weight": (64, 4, 1, 1, 1), "reshape_weight": (5,)}
    assert fits(widens, CONVOLUTION) and not fits(widens, (64, 36, 1, 2, 2)) and not fits(widens, (80, 16, 1, 2, 2))
    core = {"hada_t1": (4, 4, 1, 2, 2), "hada_t2": (4, 4, 1, 2, 2)}
    turned = {"hada_w1_a": (4, 64), "hada_w1_b": (4, 16), "hada_w2_a": (4, 64), "hada_w2_b": (4, 16)}
    assert fits(core | turned, CONVOLUTION) and not fits(turned, CONVOLUTION)


@pytest.mark.parametrize("parts", FITTING, ids=" ".join)
def test_another_size_does_not_fit(parts):
    assert not fits(parts, (80, 48)) or "a1.weight" in parts
    if not parts.keys() & {"oft_blocks", "diff_b", "a1.weight"}:  # which say nothing of the columns
        assert not fits(parts, (64, 50))


@pytest.mark.parametrize("parts", [PAIR, LOHA, HALVES, GLORA], ids=" ".join)
def test_every_part_is_needed(parts):
    for left_out in parts:
        assert not fits({name: shape for name, shape in parts.items() if name != left_out}, WEIGHT), left_out
    assert not fits({"alpha": ()}, WEIGHT)


def test_ranks_have_to_agree():
    assert not fits({**PAIR, "lora_up.weight": (64, 5)}, WEIGHT)
    assert not fits({**LOHA, "hada_w2_b": (5, 48)}, WEIGHT)
    assert not fits({**HALVES, "lokr_w2_a": (8, 3)}, WEIGHT)


def test_rotations_have_to_reach_the_rows():
    """Each stage of BOFT mixes rows twice as far apart as the one before."""
    assert fits({"oft_blocks": (3, 4, 16, 16)}, WEIGHT) and not fits({"oft_blocks": (4, 4, 16, 16)}, WEIGHT)
    assert not fits({"oft_blocks": (2, 4, 15, 15)}, (60, 48))
    assert not fits({"oft_blocks": (4, 16, 16), "rescale": (32, 1)}, WEIGHT)


def test_only_the_input_can_be_widened():
    parts = {"lora_down.weight": (4, 32, 1, 2, 2), "lora_up.weight": (64, 4, 1, 1, 1), "reshape_weight": (5,)}
    layers = "diffusion_model.patch_embedding", "diffusion_model.vace_patch_embedding"
    shapes = {f"{layer}.{part}": shape for layer in layers for part, shape in parts.items()}
    assert strangers(shapes, dict.fromkeys(layers, CONVOLUTION).get) == ([], {layers[1]}, {layers[0]})


def test_layers_are_judged_by_all_their_parts():
    shapes = {f"m.blocks.{block}.q.{part}": shape for block in (0, 1, 9) for part, shape in LOKR.items()}
    shapes |= {"m.blocks.0.k.hada_w1_a": (64, 4), "m.blocks.0.modulation.diff": (1, 6, 64)}
    weights = {
        "m.blocks.0.q": WEIGHT,
        "m.blocks.1.q": (80, 48),
        "m.blocks.0.k": WEIGHT,
        "m.blocks.0.modulation": (1, 6, 64),
    }
    unknown, misfit, fitting = strangers(shapes, weights.get)
    assert unknown == ["m.blocks.9.q"] and misfit == {"m.blocks.1.q", "m.blocks.0.k"}
    assert fitting == {"m.blocks.0.q", "m.blocks.0.modulation"}
