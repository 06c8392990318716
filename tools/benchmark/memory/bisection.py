"""The least of something that a run does with, by halves."""

from __future__ import annotations

from collections.abc import Callable

from .cases import GIB

Try = Callable[[int], str]  # runs with so many bytes; what went wrong, empty where nothing did


def bisect(attempt: Try, low: float, high: float, grain: float) -> tuple[float, list[tuple[float, str]]]:
    """Bytes between `low`, with which it fails, and `high`, to a share `grain`; and the tries: GiB, what went wrong."""
    tries = []
    while high - low > grain * high:
        size = int((low + high) / 2)
        problem = attempt(size)
        tries.append((round(size / GIB, 3), problem))
        low, high = (size, high) if problem else (low, size)
    return high, tries
