"""The world of VACE and Animate: drawings, their judge; and what training computes in the place of the pack."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from comfy_host import import_comfy

import_comfy()

import led as starts
from led_scenes import CPU, answers, asked
from make_pocket import build
from studio import Studio
from wancore.pocket import drawings, family, models, world
from wancore.pocket.following import path_of_drawing, path_of_thing
from wancore.pocket.training import animate, led, led_stages, vace
from wancore.pocket.training.blocks import TEXT_ROWS, training_hooks
from wancore.wan_core.conditioning import Conditioning
from wancore.wan_core.sampling.presets import Settings

CHANCE = 0.25  # largest share of clips that seem to follow what they were not led by
ONE_STEP = Settings(preset="balanced", steps=1)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_judge_reads_what_the_generator_draws():
    """Every path, colour and shape of clips straight from the generator; chance where the drawings are exchanged."""
    count = 18
    scenes = led_stages.held_out_scenes(count)
    sheet, (times, *axes) = world.sheet(scenes), world.axes(17, 96, 96)
    paths = drawings.draw_paths(np.random.default_rng(0), sheet.radius[:, 0]).at(times)
    clips = world.render(sheet, times, *axes, paths=paths)
    depth, outline = (draw(sheet, paths, *axes) for draw in (drawings.depth, drawings.outline))
    for drawing in (depth, outline, drawings.pose(sheet.radius[:, 0], paths, *axes)):
        assert min(answers(scenes, drawing, clips).values()) == 1.0
    exchanged = answers([scenes[k - 7] for k in range(count)], np.roll(depth, 7, 0), clips)
    assert exchanged["path"] <= 0.1 and exchanged["color"] <= CHANCE + 0.1 and exchanged["shape"] <= CHANCE + 0.2


def test_paths_are_held_apart_by_motion_and_place():
    times = np.linspace(0, 1, 17)
    still = np.stack([0.3 + 0 * times, 0.5 + 0 * times], 1)
    one = path_of_drawing(_dots(np.stack([0.2 + 0.6 * times, 0.5 + 0 * times], 1)))
    assert one.likeness(path_of_drawing(_dots(still))) == 0.0
    beside = path_of_drawing(_dots(np.stack([0.2 + 0.6 * times, 0.9 + 0 * times], 1)))
    assert one.likeness(beside) > 0.99 and not one.follows(beside) and one.follows(one)
    assert not path_of_thing(np.zeros((17, 64, 64, 3))).follows(one)


def _dots(places: np.ndarray) -> np.ndarray:
    """A white dot at each place, [F, 64, 64, 3]."""
    grid = (np.arange(64) + 0.5) / 64
    away = np.hypot(grid[None, None, :] - places[:, None, None, 0], grid[None, :, None] - places[:, None, None, 1])
    return np.repeat((away < 0.08)[..., None], 3, -1).astype(np.float32)


def test_drawings_are_the_same_in_numpy_and_torch():
    scenes, _, batch = asked(3)
    sheet = world.sheet(scenes)
    times, rows, columns = world.axes(17, 96, 96)
    paths = drawings.draw_paths(np.random.default_rng((8000, 7)), sheet.radius[:, 0]).at(times)
    assert np.abs(paths - batch.places.numpy()).max() < 1e-5
    shown = world.render(sheet, times, rows, columns, paths=paths)
    for kind, expected in (
        ("depth", drawings.depth(sheet, paths, rows, columns)),
        ("outline", drawings.outline(sheet, paths, rows, columns)),
    ):
        clips, control, _ = vace.controls(batch, kind)
        assert np.abs(led.pictures(control) - expected).max() < 1e-3
        assert np.abs(led.pictures(clips) - shown).max() < 1e-3
    pose = drawings.pose(sheet.radius[:, 0], paths, rows, columns)
    assert np.abs(led.pictures(animate.pictures(batch)[2]) - pose).max() < 1e-3


def test_held_out_things_are_never_drawn_for_training():
    rng = np.random.default_rng(3)
    for held_out in (False, True):
        things = [drawings.draw_led(rng, held_out).things[0] for _ in range(40)]
        assert {drawings.is_held_out(thing) for thing in things} == {held_out}
        assert not any(set(drawings.tell_led(drawings.draw_led(rng, held_out), rng).told) & {"direction 1", "speed 1"})


@pytest.fixture
def conditions(monkeypatch: pytest.MonkeyPatch) -> list[Conditioning]:
    """What the transformers get from now on."""
    found: list[Conditioning] = []
    plain = models.WanTransformer.forward

    def forward(self, video, timestep, conditioning, hooks=None):
        found.append(replace(conditioning, concat=video[:, 16:] if video.shape[1] > 16 else None))
        return plain(self, video, timestep, conditioning, hooks)

    monkeypatch.setattr(models.WanTransformer, "forward", forward)
    return found


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal but for the rounding of bfloat16, in which training keeps latents."""
    return float((found.float() - expected.float()).norm() / expected.float().norm()) < 3e-3


@pytest.mark.parametrize("kind", list(vace.KINDS))
def test_vace_is_trained_on_what_its_node_gives(kind: str, vace_studio: Studio, conditions: list[Conditioning]):
    _, texts, batch = asked(2)
    _, control, mask = vace.controls(batch, kind)
    with torch.no_grad():
        seen = vace.read(models.load_weights(models.new_vae(), family.VAE).requires_grad_(False), control, mask)
    drawn = None if kind == "text" else led.pictures(control)
    start = starts.vace(vace_studio, drawn, masks=mask.numpy() if kind == "box" else None)
    vace_studio.film_from(texts, ONE_STEP, start)
    latent = conditions[0].adapters[0].clips[0].latent[:2]  # pyright: ignore[reportAttributeAccessIssue]
    assert near(latent[:, :32], seen["control"]) and torch.equal(latent[:, 32:].float(), seen["mask"].float())


def test_animate_is_trained_on_what_its_node_gives(animate_studio: Studio, conditions: list[Conditioning]):
    _, texts, batch = asked(2)
    batch = replace(batch, chance=torch.ones(2))
    vae, model = models.load_weights(models.new_vae(), family.VAE).requires_grad_(False), animate.new_model()
    model.load_state_dict({name: value.float() for name, value in build(family.ANIMATE, fp8=False).items()})
    _, pictures, poses = (led.pictures(one) for one in animate.pictures(batch))
    start = starts.animate(animate_studio, pictures[:, 0], poses)
    animate_studio.film_from(texts, ONE_STEP, start, batch=1)
    with torch.no_grad():
        part = animate.encode_batch(vae, batch)
        for index, found in enumerate(conditions):
            own = slice(index, index + 1)
            expected = animate.condition(
                model,
                torch.zeros_like(part["values"][own], dtype=torch.float32),
                torch.zeros(1, 1, 1),
                part["concat"][own].float(),
                part["poses"][own].float(),
            )
            assert found.concat is not None and expected.concat is not None and near(found.concat, expected.concat)
            assert found.token_bias is not None and expected.token_bias is not None
            assert near(found.token_bias, expected.token_bias)


def test_training_computes_vace_as_the_model_does():
    model = models.new_transformer(family.VACE_LOW).requires_grad_(False)
    torch.nn.init.normal_(model.head.head.weight)
    random = torch.Generator().manual_seed(4)
    size = SimpleNamespace(frames=3, rows=8, columns=12)
    video, control = (torch.randn((2, c, size.frames, size.rows, size.columns), generator=random) for c in (16, 96))
    text = torch.zeros((2, TEXT_ROWS, family.TEXT_DIM))
    text[:, :9] = torch.randn((2, 9, family.TEXT_DIM), generator=random)
    timestep = torch.tensor([310.0, 820.0])
    expected = model(video, timestep, vace.condition(model, text, control))
    without = model(video, timestep, Conditioning(text=text))
    hooks = training_hooks(model, video.device)
    vace.train_fast(model, video.device)
    found = model(video, timestep, vace.condition(model, text, control), hooks)
    assert (found - expected).norm() <= 2e-6 * expected.norm()
    assert (without - expected).norm() > 0.05 * expected.norm()


def test_every_kind_of_clip_is_encoded_for_training():
    count = 12
    scenes = [drawings.draw_led(np.random.default_rng(k), False) for k in range(count)]
    batch = replace(led_stages.drawn(scenes, CPU, 1), chance=torch.linspace(0, 0.99, count))
    clips, control, mask = vace.controls(batch)
    kinds = {name: vace.controls(batch, name) for name in vace.KINDS}
    of = [next(name for name, one in kinds.items() if torch.equal(one[1][k], control[k])) for k in range(count)]
    assert set(of) == set(vace.KINDS)
    assert all(torch.equal(mask[k], kinds[name][2][k]) for k, name in enumerate(of))
    assert clips.shape == control.shape
