"""The made-up world of Pocket Wan: clips of coloured shapes that move over a tiled ground (numpy only).

A Scene says what is seen in words and numbers; `render` draws a batch of them. `render` uses only functions that numpy
and torch share, so that training draws its clips on the GPU with the same code: pass `xp=torch` and a `Sheet` of
tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = ("right", "left", "up", "down")
SIZES = ("small", "large")
SPEEDS = ("slow", "fast")
COLORS = {  # RGB 0..1 of the shapes: saturated, hues at least 25 degrees apart
    "red": (0.90, 0.08, 0.08),
    "orange": (0.98, 0.50, 0.04),
    "yellow": (0.95, 0.90, 0.06),
    "green": (0.08, 0.72, 0.16),
    "blue": (0.10, 0.26, 0.95),
    "purple": (0.62, 0.10, 0.85),
}
BACKGROUNDS = {  # RGB 0..1 of the ground: saturation at most 0.4
    "black": (0.05, 0.05, 0.05),
    "grey": (0.48, 0.48, 0.48),
    "white": (0.92, 0.92, 0.92),
    "beige": (0.84, 0.74, 0.56),
    "sky blue": (0.66, 0.80, 0.92),
}
CAMERAS = ("fixed", "pan left", "pan right", "zoom in", "zoom out")
LIGHTS = {  # RGB factor of the light, and its slope over the width: +1 comes from the left, -1 from the right
    "day": ((1.0, 1.0, 1.0), 0.0),
    "night": ((0.56, 0.56, 0.64), 0.0),
    "side left": ((1.0, 1.0, 1.0), 1.0),
    "side right": ((1.0, 1.0, 1.0), -1.0),
}
SIDE_LIGHT_FALL = 0.45  # share of the light lost across the width under side light
TILE = 0.5  # period of the ground's tiles, in the shorter side
TILE_CONTRAST = 0.12
EDGE = 2.0  # pixels over which an outline goes from ground to shape
RADII = {"small": (0.155, 0.185), "large": (0.23, 0.27)}  # in the shorter side
TRAVELS = {"slow": (0.18, 0.24), "fast": (0.38, 0.45)}  # over the whole clip, in the side along the motion
ROOM = 1.25  # radii between a thing's middle and the frame's edges beside its path
MOUTH = 0.45  # way of each half of a thing that is open all the way, in radii
PAN = 0.3  # camera pan over the whole clip, in the shorter side
ZOOM = 1.12  # camera zoom at the ends of the clip: from 1/ZOOM to ZOOM, or back
HEADINGS = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}  # x right, y down


@dataclass(frozen=True)
class Thing:
    """One moving shape. Lengths are shares of the frame: radius of the shorter side, the others of their own side."""

    shape: str
    color: str
    size: str
    direction: str
    speed: str
    radius: float
    middle: tuple[float, float]  # x, y at half time
    travel: float  # along `direction`, over the whole clip

    @property
    def triple(self) -> tuple[int, int, int]:
        """Indices of shape, colour and direction: what the held-out combinations are made of."""
        return SHAPES.index(self.shape), list(COLORS).index(self.color), DIRECTIONS.index(self.direction)


@dataclass(frozen=True)
class Scene:
    """One or two things before a ground, seen by a camera under a light."""

    things: tuple[Thing, ...]
    background: str
    camera: str
    light: str


def is_held_out(thing: Thing) -> bool:
    """A quarter of the combinations of shape, colour and direction is never trained on; each single value is."""
    shape, color, direction = thing.triple
    return (shape + color + direction) % 4 == 3


def draw_thing(rng: np.random.Generator, *, held_out: bool = False, place: tuple[float, float] | None = None) -> Thing:
    """Draws a thing of the training combinations, or of the held-out ones.

    `place` is where it passes at half time: then it is small and slow, so that two of them have room.
    """
    while True:
        size = "small" if place else str(rng.choice(SIZES))
        speed = "slow" if place else str(rng.choice(SPEEDS))
        direction = str(rng.choice(DIRECTIONS))
        radius = float(rng.uniform(*RADII[size]))
        room = 0.5 - ROOM * radius
        across, along = rng.uniform(-room, room), rng.uniform(-0.03, 0.03)
        level = HEADINGS[direction][0] != 0
        middle = (0.5 + along, 0.5 + across) if level else (0.5 + across, 0.5 + along)
        thing = Thing(
            shape=str(rng.choice(SHAPES)),
            color=str(rng.choice(list(COLORS))),
            size=size,
            direction=direction,
            speed=speed,
            radius=radius,
            middle=place or (float(middle[0]), float(middle[1])),
            travel=float(rng.uniform(*TRAVELS[speed])),
        )
        if is_held_out(thing) == held_out:
            return thing


def draw_scene(rng: np.random.Generator, *, held_out: bool = False, pairs: float = 0.15) -> Scene:
    """Draws a scene; a share `pairs` of them has two things of different colours, in opposite quarters."""
    if rng.uniform() < pairs:
        side = float(rng.choice((0.3, 0.7)))
        first = draw_thing(rng, held_out=held_out, place=(side, 0.3))
        second = draw_thing(rng, held_out=held_out, place=(1 - side, 0.7))
        while second.color == first.color:
            second = draw_thing(rng, held_out=held_out, place=(1 - side, 0.7))
        things: tuple[Thing, ...] = (first, second)
    else:
        things = (draw_thing(rng, held_out=held_out),)
    return Scene(things, str(rng.choice(list(BACKGROUNDS))), str(rng.choice(CAMERAS)), str(rng.choice(list(LIGHTS))))


@dataclass(frozen=True)
class Sheet:
    """B scenes as arrays: what `render` draws from. Axis 1 of the first six holds two things."""

    shape: Any  # [B, 2] index into SHAPES
    color: Any  # [B, 2, 3]
    radius: Any  # [B, 2]; 0 where there is no second thing
    middle: Any  # [B, 2, 2] x, y
    heading: Any  # [B, 2, 2] x, y over the whole clip
    ground: Any  # [B, 3]
    pan: Any  # [B] ground's shift over the whole clip, in the shorter side
    zoom: Any  # [B] logarithm of the zoom at the end of the clip
    light: Any  # [B, 3]
    slope: Any  # [B]

    def rows(self, index: Any) -> Sheet:
        """The scenes that `index` selects."""
        return Sheet(*(getattr(self, field.name)[index] for field in fields(self)))


def sheet(scenes: Sequence[Scene]) -> Sheet:
    """Scenes -> numpy arrays (float32, shape int64)."""
    nothing = Thing("circle", "red", "small", "right", "slow", 0.0, (0.5, 0.5), 0.0)
    pairs = [(scene.things[0], scene.things[1] if len(scene.things) > 1 else nothing) for scene in scenes]

    def column(read: Any, source: Sequence[Any]) -> np.ndarray:
        return np.asarray([read(item) for item in source], dtype=np.float32)

    def per_thing(read: Any) -> np.ndarray:
        return np.stack([column(lambda pair, k=k: read(pair[k]), pairs) for k in (0, 1)], 1)

    pans = {"pan left": PAN, "pan right": -PAN}  # the ground runs against the camera
    zooms = {"zoom in": np.log(ZOOM), "zoom out": -np.log(ZOOM)}
    return Sheet(
        shape=per_thing(lambda thing: SHAPES.index(thing.shape)).astype(np.int64),
        color=per_thing(lambda thing: COLORS[thing.color]),
        radius=per_thing(lambda thing: thing.radius),
        middle=per_thing(lambda thing: thing.middle),
        heading=per_thing(lambda thing: [thing.travel * part for part in HEADINGS[thing.direction]]),
        ground=column(lambda scene: BACKGROUNDS[scene.background], scenes),
        pan=column(lambda scene: pans.get(scene.camera, 0.0), scenes),
        zoom=column(lambda scene: zooms.get(scene.camera, 0.0), scenes),
        light=column(lambda scene: LIGHTS[scene.light][0], scenes),
        slope=column(lambda scene: LIGHTS[scene.light][1], scenes),
    )


def _distance(shape: Any, x: Any, y: Any, radius: Any, xp: ModuleType) -> Any:
    """Signed distance (pixels, negative inside) to the outline of each thing's shape; areas are alike."""
    ax, ay = xp.abs(x), xp.abs(y)
    circle = xp.sqrt(x * x + y * y + 1e-6) - 0.98 * radius
    square = xp.maximum(ax, ay) - 0.87 * radius
    triangle = xp.maximum(y - 0.62 * radius, 0.8660254 * ax - 0.5 * y - 0.62 * radius)
    arm, width = 1.12 * radius, 0.38 * radius
    cross = xp.minimum(xp.maximum(ax - arm, ay - width), xp.maximum(ax - width, ay - arm))
    return xp.where(shape == 0, circle, xp.where(shape == 1, square, xp.where(shape == 2, triangle, cross)))


def _opened(y: Any, half: Any, xp: ModuleType) -> tuple[Any, Any]:
    """For rows of a thing whose halves stand 2 * `half` pixels apart: rows of the whole thing, distance to the gap."""
    away = xp.abs(y)
    return xp.where(away > half, y - xp.sign(y) * half, 0 * y), half - away


def render(
    scenes: Sheet,
    times: Any,
    rows: Any,
    columns: Any,
    xp: ModuleType = np,
    openings: Any | None = None,
    paths: Any | None = None,
) -> Any:
    """Draws B scenes -> clips [B, F, H, W, 3] in 0..1, float32.

    `times` [F] runs from -0.5 to 0.5; `rows` [H] and `columns` [W] are pixel centres (0.5, 1.5, ...): see `axes`.
    `openings` [B, F], 0..1, part the first thing into an upper and a lower half, like a mouth; `paths` [B, F, 2] (x, y)
    are where it is, in place of its straight way.
    """
    height, width = len(rows), len(columns)
    short = min(height, width)
    t = times[None, :, None, None]

    def spread(values: Any) -> Any:
        return values[:, None, None, None]

    zoom = xp.exp(2 * t * spread(scenes.zoom))
    x = (columns[None, None, None, :] - width / 2) / zoom  # pixels from the middle of the frame
    y = (rows[None, None, :, None] - height / 2) / zoom
    wave = 2 * np.pi / (TILE * short)
    tiles = xp.sin(wave * (x - t * spread(scenes.pan) * short)) * xp.sin(wave * y)
    tone = 1 + TILE_CONTRAST * xp.clip(2 * tiles, -0.5, 0.5)
    picture = [tone * spread(scenes.ground[:, channel]) for channel in range(3)]
    for k in (1, 0):  # the first thing is in front
        dx = x - spread(scenes.middle[:, k, 0] - 0.5) * width - t * spread(scenes.heading[:, k, 0]) * width
        dy = y - spread(scenes.middle[:, k, 1] - 0.5) * height - t * spread(scenes.heading[:, k, 1]) * height
        if paths is not None and k == 0:
            dx = x - (paths[:, :, None, None, 0] - 0.5) * width
            dy = y - (paths[:, :, None, None, 1] - 0.5) * height
        radius = spread(scenes.radius[:, k]) * short
        if openings is not None and k == 0:
            dy, gap = _opened(dy, MOUTH * openings[:, :, None, None] * radius, xp)
            distance = zoom * xp.maximum(_distance(spread(scenes.shape[:, k]), dx, dy, radius, xp), gap)
        else:
            distance = zoom * _distance(spread(scenes.shape[:, k]), dx, dy, radius, xp)
        cover = xp.clip(0.5 - distance / EDGE, 0.0, 1.0)
        cover = cover * (radius > 0)
        picture = [part + cover * (spread(scenes.color[:, k, channel]) - part) for channel, part in enumerate(picture)]
    slope = spread(scenes.slope) * (columns[None, None, None, :] / width - 0.5)
    shade = 1 - SIDE_LIGHT_FALL * (0.5 * xp.abs(spread(scenes.slope)) + slope)
    lit = [xp.clip(part * shade * spread(scenes.light[:, channel]), 0.0, 1.0) for channel, part in enumerate(picture)]
    return xp.stack(lit, -1)


def axes(frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """times [F], rows [H], columns [W] (float32) of a clip of that size, as `render` takes them."""
    times = np.linspace(-0.5, 0.5, frames) if frames > 1 else np.zeros(1)
    return (
        times.astype(np.float32),
        np.arange(height, dtype=np.float32) + 0.5,
        np.arange(width, dtype=np.float32) + 0.5,
    )


def clip(scene: Scene, frames: int = 17, height: int = 96, width: int = 96) -> np.ndarray:
    """One scene -> [F, H, W, 3] in 0..1."""
    return render(sheet([scene]), *axes(frames, height, width))[0]
