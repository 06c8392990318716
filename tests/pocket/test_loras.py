"""What LoRAs do to clips: a look as strong as asked, and slow motion that the sampler's preset mends.

Measured on clips of the miniature pair, filmed in 4 steps with its step-distillation LoRAs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from comfy_host import import_comfy

import_comfy()

from make_pocket import build, build_lora, write
from studio import Studio
from wancore.pocket import family
from wancore.pocket.captions import caption
from wancore.pocket.judge import judge, lit_from_below, path_of, regions
from wancore.pocket.models import shapes_of
from wancore.pocket.world import HEADINGS, Thing, draw_scene
from wancore.wan_core.sampling.presets import Settings

from .test_meaning import one_thread

__all__ = ["one_thread"]
PROMPTS = 8
MEMBERS = {member.name: member for member in family.MEMBERS}


@dataclass(frozen=True)
class Prompt:
    text: str
    thing: Thing


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The family's LoRAs of this pair, and the one that slows motion down, by their short names."""
    folder, made = tmp_path_factory.mktemp("loras"), {}
    for lora in (*family.LORAS, *family.STYLES, family.SLOW):
        made[lora.short] = folder / lora.short / lora.name
        write(build_lora(lora, dict(shapes_of(MEMBERS[lora.base]))), made[lora.short], {})
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    folder = tmp_path_factory.mktemp("plain")
    members = (family.T2V_HIGH, family.T2V_LOW, family.TEXT_ENCODER, family.VAE)
    for member in members:
        write(build(member, fp8=False), folder / member.name, member.metadata)
    return Studio.open(*(folder / member.name for member in members))


@pytest.fixture(scope="module")
def usual(plain: Studio, loras: dict[str, Path]) -> Studio:
    return plain.with_loras(loras["lora_high"], loras["lora_low"])


def prompts(speed: str) -> list[Prompt]:
    """Prompts that ask for a speed, seen by a camera that stands still."""
    rng, found = np.random.default_rng(7), []
    while len(found) < PROMPTS:
        scene = draw_scene(rng, pairs=0.0)
        words = caption(scene, rng, complete=True)
        if scene.camera == "fixed" and scene.things[0].speed == speed and "speed 1" in words.told:
            found.append(Prompt(words.text, scene.things[0]))
    return found


def filmed(studio: Studio, preset: str, asked: list[Prompt]) -> np.ndarray:
    return studio.film([prompt.text for prompt in asked], Settings(preset))


def obeyed(clips: np.ndarray, asked: list[Prompt], attribute: str) -> int:
    """How many clips show the colour or direction that was asked for."""
    return sum(
        getattr(judge(clip), attribute) == getattr(prompt.thing, attribute)
        for clip, prompt in zip(clips, asked, strict=True)
    )


def travel(clips: np.ndarray, asked: list[Prompt]) -> float:
    """How far the things move along the direction that was asked for, in shares of the frame: the mean."""
    found = []
    for clip, prompt in zip(clips, asked, strict=True):
        path = path_of(regions(clip, prompt.thing.color))
        found.append(0.0 if path is None else float(np.dot(path, HEADINGS[prompt.thing.direction])))
    return float(np.mean(found))


@pytest.mark.slow
def test_motion_repair_quickens_what_a_distilled_lora_slows(
    plain: Studio, usual: Studio, loras: dict[str, Path], record_property
):
    """Its first steps without the LoRA bring most of the motion back that the LoRA costs."""
    asked = prompts("fast")
    slowed = plain.with_loras(loras["slow_high"], loras["lora_low"])
    clips = {
        "usual": filmed(usual, "fast", asked),
        "slowed": filmed(slowed, "fast", asked),
        "repaired": filmed(slowed, "motion", asked),
    }
    speeds = {name: travel(made, asked) for name, made in clips.items()}
    record_property("travel", speeds)
    assert speeds["slowed"] < 0.85 * speeds["usual"], speeds
    assert speeds["repaired"] - speeds["slowed"] > 0.5 * (speeds["usual"] - speeds["slowed"]), speeds
    for name, made in clips.items():
        assert min(obeyed(made, asked, "color"), obeyed(made, asked, "direction")) >= PROMPTS - 1, name


@pytest.mark.slow
def test_a_style_shows_as_strongly_as_asked(usual: Studio, loras: dict[str, Path], record_property):
    """Light from below, which no prompt tells: none without the LoRA, some at half strength, all at 1."""
    asked = prompts("slow")
    style = loras["style_high"], loras["style_low"]
    clips = {strength: filmed(usual.with_loras(*style, strength), "fast", asked) for strength in (0.5, 1.0)}
    clips[0.0] = filmed(usual, "fast", asked)
    none = usual.with_loras(*style, 0.0)
    assert np.array_equal(filmed(none, "fast", asked[:1]), filmed(usual, "fast", asked[:1]))
    light = {strength: float(np.mean([lit_from_below(clip) for clip in made])) for strength, made in clips.items()}
    record_property("lit from below", light)
    assert abs(light[0.0]) < 0.08 and light[1.0] > 0.2, light
    assert light[0.0] + 0.05 < light[0.5] < light[1.0] - 0.05, light
    for strength, made in clips.items():
        assert min(obeyed(made, asked, "color"), obeyed(made, asked, "direction")) >= PROMPTS - 2, strength
