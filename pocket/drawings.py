"""Things on winding paths, and the drawings that lead them: depth, outlines, poses (numpy only).

What VACE and Animate follow in the pocket world. Like `render`, the drawing uses only functions that numpy and torch
share. Lengths are shares of the frame, as in world.py.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import numpy as np

from .captions import ATTRIBUTES, Caption, caption
from .world import EDGE, ROOM, Scene, Sheet, Thing, draw_scene, render

CAMERAS = ("fixed", "pan left", "pan right")  # a zoom would take things off their paths
TURNS = (0.4, 0.9)  # periods of a path over the whole clip
SWING = 0.2  # largest way to either side
PACE = 0.65  # largest speed along an axis: shares of the frame over the whole clip
LEAST = 0.12  # swing along one axis at least
LINE = 3.0  # pixels
HEAD = 0.3  # radius of a pose's head, in radii of the thing
SINK = 0.2  # how far a pose is drawn below the thing's middle, so that their centroids agree
POSE = (  # limbs of a pose: from, to (x, y in radii of the thing), RGB
    ((0.0, -0.6), (0.0, 0.25), (0.9, 0.9, 0.9)),
    ((0.0, -0.5), (-0.8, -0.1), (1.0, 0.3, 0.0)),
    ((0.0, -0.5), (0.8, -0.1), (0.3, 1.0, 0.0)),
    ((0.0, 0.25), (-0.5, 0.95), (0.0, 0.4, 1.0)),
    ((0.0, 0.25), (0.5, 0.95), (0.8, 0.0, 1.0)),
)
WHITE = 0.95
UNSAID = ("direction", "speed")  # of a thing that a drawing leads


@dataclass(frozen=True)
class Paths:
    """N paths: middle + swing * sin(2 pi (turns * time + phase)) along x and y; all [N, 2]."""

    middle: Any
    swing: Any
    turns: Any
    phase: Any

    def rows(self, index: Any) -> Paths:
        """The paths that `index` selects."""
        return Paths(*(getattr(self, field.name)[index] for field in fields(self)))

    def at(self, times: Any, xp: ModuleType = np) -> Any:
        """times [F] from -0.5 to 0.5 -> places [N, F, 2]"""
        angle = 2 * np.pi * (self.turns[:, None] * times[None, :, None] + self.phase[:, None])
        return self.middle[:, None] + self.swing[:, None] * xp.sin(angle)


def draw_paths(rng: np.random.Generator, radii: np.ndarray) -> Paths:
    """Draws a path for things of these radii [N], float32; no thing leaves the frame."""
    count = len(radii)
    turns = rng.uniform(*TURNS, (count, 2))
    room = np.maximum(0.5 - ROOM * radii, 0.0)[:, None]
    most = np.minimum(np.minimum(SWING, room), PACE / (2 * np.pi * turns))
    swing = most * rng.uniform(0.3, 1.0, (count, 2))
    long = rng.integers(2, size=count)
    rows = np.arange(count)
    swing[rows, long] = np.maximum(swing[rows, long], np.minimum(LEAST, most[rows, long]))
    middle = 0.5 + rng.uniform(-1.0, 1.0, (count, 2)) * (room - swing)
    values = middle, swing, turns, rng.uniform(0.0, 1.0, (count, 2))
    return Paths(*(value.astype(np.float32) for value in values))


def is_held_out(thing: Thing) -> bool:
    """A quarter of the combinations of shape and colour is never trained on."""
    shape, color, _ = thing.triple
    return (shape + color) % 4 == 3


def draw_led(rng: np.random.Generator, held_out: bool) -> Scene:
    """A scene with one thing that a drawing can lead."""
    while True:
        scene = draw_scene(rng, pairs=0.0)
        if scene.camera in CAMERAS and is_held_out(scene.things[0]) == held_out:
            return scene


def tell_led(scene: Scene, rng: np.random.Generator) -> Caption:
    """A caption that leaves the motion to the drawing."""
    return caption(scene, rng, unsaid=UNSAID)


def tell_little(scene: Scene, rng: np.random.Generator) -> Caption:
    """Mostly a caption that leaves all to a picture and a drawing."""
    return caption(scene, rng, unsaid=tuple(_ALL) if rng.uniform() < 0.7 else UNSAID)


_ALL = {name.split()[0] for name in ATTRIBUTES}


def depth(scenes: Sheet, paths: Any, rows: Any, columns: Any, xp: ModuleType = np, *, shrunk: float = 0.0) -> Any:
    """The first things in white before black, as a depth map shows them: [B, F, H, W, 3] in 0..1.

    `paths` as in `render`; `shrunk` pixels are taken off each side.
    """
    radius = xp.stack([scenes.radius[:, 0] - shrunk / min(len(rows), len(columns)), 0 * scenes.radius[:, 1]], 1)
    plain = replace(
        scenes,
        radius=radius,
        color=0 * scenes.color + WHITE,
        ground=0 * scenes.ground,
        zoom=0 * scenes.zoom,
        light=0 * scenes.light + 1,
        slope=0 * scenes.slope,
    )
    times = 0 * paths[0, :, 0]
    return render(plain, times, rows, columns, xp, paths=paths)


def outline(scenes: Sheet, paths: Any, rows: Any, columns: Any, xp: ModuleType = np) -> Any:
    """The outlines of the first things, white on black: [B, F, H, W, 3] in 0..1."""
    inside = depth(scenes, paths, rows, columns, xp, shrunk=LINE)
    return xp.clip(depth(scenes, paths, rows, columns, xp) - inside, 0.0, 1.0)


def pose(radius: Any, paths: Any, rows: Any, columns: Any, xp: ModuleType = np) -> Any:
    """Stick figures of things of `radius` [B] on `paths` [B, F, 2]: [B, F, H, W, 3] in 0..1, on black."""
    height, width = len(rows), len(columns)
    size = radius[:, None, None, None] * min(height, width)
    x = (columns[None, None, None, :] - paths[:, :, None, None, 0] * width) / size  # in radii of the thing
    y = (rows[None, None, :, None] - paths[:, :, None, None, 1] * height) / size - SINK
    parts = [(xp.sqrt(x * x + (y + 0.9) * (y + 0.9) + 1e-6) - HEAD, (1.0, 0.0, 0.4))]
    for (ax, ay), (bx, by), color in POSE:
        dx, dy = bx - ax, by - ay
        along = xp.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
        away = xp.sqrt((x - ax - along * dx) ** 2 + (y - ay - along * dy) ** 2 + 1e-6)
        parts.append((away - 0.5 * LINE / size, color))
    picture = [0 * (x + y) for _ in range(3)]
    for away, color in parts:
        cover = xp.clip(0.5 - away * size / EDGE, 0.0, 1.0)
        picture = [part + cover * (value - part) for part, value in zip(picture, color, strict=True)]
    return xp.stack(picture, -1)


def boxes(radius: Any, paths: Any, rows: Any, columns: Any) -> Any:
    """Masks [B, F, H, W] of 0 and 1: a box around each thing, to be filled."""
    height, width = len(rows), len(columns)
    size = ROOM * radius[:, None, None, None] * min(height, width)
    x = abs(columns[None, None, None, :] - paths[:, :, None, None, 0] * width)
    y = abs(rows[None, None, :, None] - paths[:, :, None, None, 1] * height)
    return 1.0 * ((x < size) & (y < size))
