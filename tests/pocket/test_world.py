"""The world, its captions and the judge agree with each other; no model takes part."""

from __future__ import annotations

import numpy as np
import pytest
from wancore.pocket.captions import ATTRIBUTES, caption
from wancore.pocket.judge import Seen, judge
from wancore.pocket.world import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    SHAPES,
    axes,
    clip,
    draw_scene,
    is_held_out,
    render,
    sheet,
)

SIZES = ((9, 64, 64), (9, 96, 96), (13, 64, 96), (9, 80, 128))  # frames, height, width


def drawn(count: int, seed: int) -> list:
    rng = np.random.default_rng(seed)
    scenes = [draw_scene(rng, pairs=0.0) for _ in range(count)]
    return [(scene.things[0], clip(scene, *SIZES[i % len(SIZES)])) for i, scene in enumerate(scenes)]


def test_judge_reads_the_generators_own_clips():
    answers = [(thing, judge(video)) for thing, video in drawn(120, seed=1)]
    for name in ("color", "shape", "direction"):
        right = np.mean([getattr(thing, name) == getattr(seen, name) for thing, seen in answers])
        assert right >= 0.99, name


def test_judge_is_at_chance_on_shuffled_prompts():
    answers = [(thing, judge(video)) for thing, video in drawn(120, seed=2)]
    for name, values in (("color", COLORS), ("shape", SHAPES), ("direction", DIRECTIONS)):
        told = [getattr(thing, name) for thing, _ in answers]
        seen = [getattr(found, name) for _, found in answers]
        right = np.mean([told[i] == seen[(i + step) % len(seen)] for step in range(1, 50) for i in range(len(seen))])
        assert abs(right - 1 / len(values)) < 0.07, name


def test_judge_sees_nothing_where_nothing_is():
    assert judge(np.full((9, 64, 64, 3), 0.5, dtype=np.float32)) == Seen(None, None, None)


def test_judge_finds_no_direction_in_a_still_clip():
    _, video = drawn(1, seed=3)[0]
    assert judge(np.repeat(video[:1], 9, axis=0)).direction is None


def test_judge_reads_one_of_two_things_by_its_colour():
    rng, right = np.random.default_rng(4), []
    for _ in range(40):
        scene = draw_scene(rng, pairs=1.0)
        video = clip(scene, 9, 96, 96)
        for thing in scene.things:
            seen = judge(video, thing.color)
            right.append((seen.shape, seen.direction) == (thing.shape, thing.direction))
    assert np.mean(right) >= 0.95


def test_held_out_combinations_are_never_drawn_for_training():
    rng = np.random.default_rng(5)
    training = [thing for _ in range(300) for thing in draw_scene(rng, pairs=0.5).things]
    assert not any(map(is_held_out, training))
    held_out = [thing for _ in range(300) for thing in draw_scene(rng, held_out=True).things]
    assert all(map(is_held_out, held_out))
    for name, values in (("shape", SHAPES), ("color", COLORS), ("direction", DIRECTIONS)):
        assert {getattr(thing, name) for thing in training} == set(values)
        assert {getattr(thing, name) for thing in held_out} == set(values)


def test_held_out_sentences_are_of_other_forms():
    rng = np.random.default_rng(6)
    scene = draw_scene(rng)
    training = [caption(scene, rng).text for _ in range(300)]
    held_out = [caption(scene, rng, held_out=True).text for _ in range(100)]
    assert not set(training) & set(held_out)
    assert len(set(training)) > 250


@pytest.mark.parametrize("held_out", [False, True])
def test_a_caption_tells_the_truth(held_out):
    rng = np.random.default_rng(7)
    for _ in range(50):
        scene = draw_scene(rng)
        text = caption(scene, rng, held_out=held_out, complete=True)
        thing = scene.things[0]
        assert text.told["shape 1"] == SHAPES.index(thing.shape)
        assert text.told["color 1"] == list(COLORS).index(thing.color)
        assert text.told["direction 1"] == DIRECTIONS.index(thing.direction)
        assert set(text.told) <= set(ATTRIBUTES)
        assert not any(told.endswith("2") for told in text.told) or len(scene.things) == 2


def test_torch_draws_what_numpy_draws():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    scenes = sheet([draw_scene(rng, pairs=0.5) for _ in range(6)])
    axis = axes(5, 48, 64)
    there = type(scenes)(*(torch.from_numpy(getattr(scenes, name)) for name in scenes.__dataclass_fields__))
    drawn_there = render(there, *(torch.from_numpy(a) for a in axis), xp=torch)
    np.testing.assert_allclose(drawn_there.numpy(), render(scenes, *axis), atol=2e-5)


def test_colours_stand_out_from_every_ground():
    for name, rgb in BACKGROUNDS.items():
        ground = np.broadcast_to(np.float32(rgb), (5, 32, 32, 3))
        assert judge(ground) == Seen(None, None, None), name


def test_trained_files_have_the_familys_parameters():
    from wancore.pocket import family, models
    from wancore.wan_core.weights import gguf

    trained = [member for member in family.MEMBERS if models.weights_file(member).is_file()]
    expected = {"t2v_high", "t2v_low", "i2v_high", "i2v_low", "ti2v", "text_encoder", "vae21", "vae22", "s2v"}
    assert expected <= {member.short for member in trained}
    for member in trained:
        assert member.metadata.items() <= gguf.read_header(models.weights_file(member)).metadata.items()
        weights = models.read_weights(member)
        if member in (family.S2V, family.AUDIO_ENCODER):  # kept without what is repeated or zero
            assert weights.keys() <= dict(models.shapes_of(member)).keys()
            weights = models.completed(member, weights)
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        if member is family.TEXT_ENCODER:
            assert shapes == {
                name: tuple(value.shape) for name, value in models.new_text_encoder().state_dict().items()
            }
        else:
            assert shapes == dict(models.shapes_of(member)), member.short
