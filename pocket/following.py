"""Does a clip follow a drawing: the path of its thing against the drawing's (numpy only).

Paths are centroids [F, 2] (x, y) in shares of the frame, read off the pixels of both; colour and shape are judge.py's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .judge import MIN_PIXELS, dominant_thing, shape_of
from .world import Scene

INK = 0.3  # of a drawing's pixels, 0..1; its ground is black
LIKENESS = 0.9  # least correlation of a path with the one that it follows
NEARNESS = 0.08  # largest mean distance of the two, in shares of the frame
SEEN = 0.8  # share of the frames in which there has to be a thing


@dataclass(frozen=True)
class Path:
    """Where something is: places [F, 2], NaN in frames that do not show it."""

    places: np.ndarray

    def likeness(self, other: Path) -> float:
        """Correlation of the two motions, x and y together, -1..1; 0 if one does not move or is not seen."""
        both = self._shared(other)
        if both is None:
            return 0.0
        one, two = (places - places.mean(0) for places in both)
        scale = float(np.sqrt((one**2).sum() * (two**2).sum()))
        return float((one * two).sum()) / scale if scale > 1e-6 else 0.0

    def distance(self, other: Path) -> float:
        """Mean distance of the two, frame by frame; 1 if one is not seen."""
        both = self._shared(other)
        return 1.0 if both is None else float(np.linalg.norm(both[0] - both[1], axis=1).mean())

    def follows(self, other: Path) -> bool:
        """Whether it is led by the other."""
        return self.likeness(other) >= LIKENESS and self.distance(other) <= NEARNESS

    def _shared(self, other: Path) -> tuple[np.ndarray, np.ndarray] | None:
        known = np.isfinite(self.places).all(1) & np.isfinite(other.places).all(1)
        if known.sum() < max(2, SEEN * len(known)):
            return None
        return self.places[known], other.places[known]


def _path(masks: np.ndarray) -> Path:
    places = np.full((len(masks), 2), np.nan)
    for index, mask in enumerate(masks):
        rows, columns = np.nonzero(mask)
        if len(rows) >= MIN_PIXELS:
            places[index] = (columns.mean() + 0.5) / mask.shape[1], (rows.mean() + 0.5) / mask.shape[0]
    return Path(places)


def path_of_thing(clip: np.ndarray) -> Path:
    """The path of the thing in a clip [F, H, W, 3] in 0..1."""
    return _path(dominant_thing(clip)[1])


def path_of_drawing(drawing: np.ndarray) -> Path:
    """The path of what is drawn on black, [F, H, W, 3] in 0..1."""
    red, green, blue = np.moveaxis(np.asarray(drawing), -1, 0)
    return _path(np.maximum(np.maximum(red, green), blue) > INK)


@dataclass(frozen=True)
class Shown:
    """What a clip shows of its thing."""

    path: Path
    color: str | None
    shape: str | None

    @classmethod
    def by(cls, clip: np.ndarray) -> Shown:
        """The thing in a clip [F, H, W, 3] in 0..1."""
        color, mask = dominant_thing(clip)
        return cls(_path(mask), color, shape_of(mask) if color else None)


@dataclass(frozen=True)
class Led:
    """What a clip was led by, and what it should show."""

    path: Path
    color: str
    shape: str

    @classmethod
    def by(cls, drawing: np.ndarray, scene: Scene) -> Led:
        """The thing of a scene led by a drawing [F, H, W, 3] in 0..1."""
        return cls(path_of_drawing(drawing), scene.things[0].color, scene.things[0].shape)

    def obeyed(self, shown: Shown) -> dict[str, bool]:
        """Whether what a clip shows has its path, colour and shape."""
        return {
            "path": shown.path.follows(self.path),
            "color": shown.color == self.color,
            "shape": shown.shape == self.shape,
        }
