"""What a clip of the pocket world shows, read with plain image measurements (numpy only).

A clip is [F, H, W, 3] in 0..1. The things of that world are the saturated regions: the colour is the mean hue of the
region, the shape is told by its moments, the direction by the path of its centroid. Knows nothing of prompts or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .world import COLORS, DIRECTIONS, HEADINGS, SHAPES

SATURATION = 0.5  # the ground stays under it, the shapes are over it
CHROMA = 0.12  # largest less smallest channel, 0..1: dark pixels have no usable hue
MIN_PIXELS = 12  # a region smaller than this is nothing
# Moments of the four shapes (see `_moments`): spread, threefold, fourfold; read off the generator's clips.
SHAPE_MOMENTS = {
    "circle": (0.159, 0.000, 0.000),
    "square": (0.167, 0.000, -0.017),
    "triangle": (0.193, 0.067, 0.000),
    "cross": (0.191, 0.000, 0.030),
}
MOMENT_SCALE = (0.012, 0.022, 0.008)  # how far each moment strays between clips


@dataclass(frozen=True)
class Seen:
    """What was measured; None where there is nothing to measure."""

    color: str | None
    shape: str | None
    direction: str | None


def hues(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clip -> hue in radians and weight, both 0 where it is unsaturated, [F, H, W]."""
    red, green, blue = np.moveaxis(np.asarray(clip, dtype=np.float32), -1, 0)
    top, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = top - low
    saturated = (chroma > CHROMA) & (chroma > SATURATION * top)
    r, g, b = red[saturated], green[saturated], blue[saturated]  # angles are dear, and most pixels are ground
    hue, weight = np.zeros_like(chroma), np.zeros_like(chroma)
    hue[saturated] = np.arctan2(np.sqrt(3.0) * (g - b), 2 * r - g - b)
    weight[saturated] = chroma[saturated]
    return hue, weight


def _hue_of(color: tuple[float, float, float]) -> float:
    return float(hues(np.asarray(color, dtype=np.float32).reshape(1, 1, 1, 3))[0][0, 0, 0])


HUES = {name: _hue_of(color) for name, color in COLORS.items()}


def _turn(a: np.ndarray | float, b: float) -> np.ndarray:
    """Absolute angle between hues, 0..pi."""
    return np.abs((np.asarray(a) - b + np.pi) % (2 * np.pi) - np.pi)


def _nearest(hue: np.ndarray) -> np.ndarray:
    """Hues [n] -> which of the colours each is nearest to."""
    return np.argmin(np.stack([_turn(hue, angle) for angle in HUES.values()]), 0)


def _of_color(hue: np.ndarray, mask: np.ndarray, color: str) -> np.ndarray:
    """The part of a mask whose hues are nearest to the colour's."""
    found = np.zeros_like(mask)
    found[mask] = _nearest(hue[mask]) == list(HUES).index(color)
    return found


def _dominant(hue: np.ndarray, weight: np.ndarray) -> str | None:
    mask = weight > 0
    if np.count_nonzero(mask) < MIN_PIXELS:
        return None
    votes = np.bincount(_nearest(hue[mask]), weights=weight[mask], minlength=len(HUES))
    return list(HUES)[int(votes.argmax())]


def regions(clip: np.ndarray, color: str | None = None) -> np.ndarray:
    """Clip -> mask [F, H, W] of the saturated pixels; with `color`, of those nearest to its hue."""
    hue, weight = hues(clip)
    mask = weight > 0
    return mask if color is None else _of_color(hue, mask, color)


def dominant_thing(clip: np.ndarray) -> tuple[str | None, np.ndarray]:
    """Clip -> the colour whose hue most of the saturated pixels are nearest to, and the mask [F, H, W] of these."""
    hue, weight = hues(clip)
    color, mask = _dominant(hue, weight), weight > 0
    return color, np.zeros_like(mask) if color is None else _of_color(hue, mask, color)


def _main_region(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows and columns of a frame's region, without specks far from it; None if there is none."""
    rows, columns = np.nonzero(mask)
    if len(rows) < MIN_PIXELS:
        return None
    away = np.hypot(rows - np.median(rows), columns - np.median(columns))
    near = away <= 3.0 * np.median(away) + 1
    return rows[near], columns[near]


def _moments(rows: np.ndarray, columns: np.ndarray) -> tuple[float, float, float]:
    """Size-free moments of a region: spread (second), threefold and fourfold symmetry (third, fourth)."""
    area = float(len(rows))
    place = (columns - columns.mean()) + 1j * (rows - rows.mean())
    spread = float(np.sum(np.abs(place) ** 2) + area / 6) / area**2  # a pixel's own spread is 1/6
    threefold = float(np.abs(np.sum(place**3))) / area**2.5
    fourfold = float(np.sum(place**4).real) / area**3
    return spread, threefold, fourfold


def shape_of(mask: np.ndarray) -> str | None:
    """Mask [F, H, W] -> the shape whose moments are nearest to the median over the frames."""
    found = [_moments(*region) for region in map(_main_region, mask) if region is not None]
    if not found:
        return None
    seen = np.median(np.asarray(found), 0)
    distance = {name: float(np.sum(((seen - np.asarray(SHAPE_MOMENTS[name])) / MOMENT_SCALE) ** 2)) for name in SHAPES}
    return min(distance, key=distance.__getitem__)


def path_of(mask: np.ndarray) -> np.ndarray | None:
    """Mask [F, H, W] -> total motion (x, y) of the centroid as shares of the frame, by a straight line through it."""
    frames, height, width = mask.shape
    points = []
    for index, region in enumerate(map(_main_region, mask)):
        if region is not None:
            points.append((index, region[1].mean() / width, region[0].mean() / height))
    if len(points) < 2:
        return None
    time, x, y = np.asarray(points).T
    return np.array([np.polyfit(time, x, 1)[0], np.polyfit(time, y, 1)[0]]) * (frames - 1)


def direction_of(mask: np.ndarray, least: float = 0.05) -> str | None:
    """The direction that the region moves in; None if it moves by less than `least` of the frame."""
    path = path_of(mask)
    if path is None or np.abs(path).max() < least:
        return None
    return max(DIRECTIONS, key=lambda name: float(np.dot(path, HEADINGS[name])))


def openings_of(mask: np.ndarray) -> np.ndarray:
    """Mask [F, H, W] -> how far the region is open in every frame [F]: its rows' spread, in heights of the frame."""
    found = []
    for region in map(_main_region, mask):
        found.append(0.0 if region is None else float(np.std(region[0])) / mask.shape[1])
    return np.asarray(found)


def correlation(seen: np.ndarray, heard: np.ndarray) -> float:
    """Of what is seen and heard in each frame [F], -1..1; 0 where one of them never changes."""
    if seen.std() < 1e-6 or heard.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(seen, heard)[0, 1])


def follows(clip: np.ndarray, loudness: np.ndarray) -> float:
    """Correlation of a clip's opening with the loudness of its frames [F]."""
    return correlation(openings_of(regions(clip)), loudness)


def lit_from_below(clip: np.ndarray) -> float:
    """How much darker the upper third of the ground is than the lower one, as a share: 0 in even light."""
    rows = np.median(np.asarray(clip, dtype=np.float32).mean(-1), axis=(0, 2))  # a thing covers less than half of a row
    third = len(rows) // 3
    return 1.0 - float(rows[:third].mean() / rows[-third:].mean())


def judge(clip: np.ndarray, color: str | None = None) -> Seen:
    """Measures the thing in a clip [F, H, W, 3]; with `color`, the thing of that colour among several."""
    hue, weight = hues(clip)
    mask, seen = weight > 0, color or _dominant(hue, weight)
    if seen is None:
        return Seen(None, None, None)
    if color:
        mask = _of_color(hue, mask, color)
    if np.count_nonzero(mask) < MIN_PIXELS:
        return Seen(None, None, None)
    return Seen(seen, shape_of(mask), direction_of(mask))


def psnr(expected: np.ndarray, seen: np.ndarray) -> float:
    """Peak signal to noise ratio in dB between pictures or clips of the same shape in 0..1."""
    error = float(np.mean((np.asarray(expected, dtype=np.float64) - np.asarray(seen, dtype=np.float64)) ** 2))
    return float(-10 * np.log10(max(error, 1e-10)))
