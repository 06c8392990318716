"""Scenes of the pocket world that have a voice: a thing opens and closes as loud as it is heard (numpy only)."""

from __future__ import annotations

import numpy as np

from .captions import Caption, caption
from .world import BACKGROUNDS, COLORS, LIGHTS, SHAPES, Scene, Thing

RADII = (0.27, 0.32)  # in the shorter side
STRAY = 0.04  # how far from the middle of the frame it may stand
DEEDS = (
    "opens and closes with the voice",
    "speaks",
    "sings",
    "talks",
    "opens and closes to the sound",
    "moves its mouth to the sound",
)


def is_held_out(scene: Scene) -> bool:
    """A quarter of the combinations of shape, colour and background is never trained on; each single value is."""
    thing = scene.things[0]
    parts = SHAPES.index(thing.shape), list(COLORS).index(thing.color), list(BACKGROUNDS).index(scene.background)
    return sum(parts) % 4 == 3


def draw_speaker(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """Draws a scene of one thing that stays where it is, of the training combinations or of the held-out ones."""
    while True:
        x, y = (float(place) for place in rng.uniform(0.5 - STRAY, 0.5 + STRAY, 2))
        thing = Thing(
            shape=str(rng.choice(SHAPES)),
            color=str(rng.choice(list(COLORS))),
            size="large",
            direction="right",
            speed="slow",
            radius=float(rng.uniform(*RADII)),
            middle=(x, y),
            travel=0.0,
        )
        scene = Scene((thing,), str(rng.choice(list(BACKGROUNDS))), "fixed", str(rng.choice(list(LIGHTS))))
        if is_held_out(scene) == held_out:
            return scene


def speaker_caption(scene: Scene, rng: np.random.Generator, *, held_out: bool = False) -> Caption:
    """A sentence or two for the scene."""
    return caption(scene, rng, held_out=held_out, complete=held_out, deeds=DEEDS)
