"""The least of something that a run does with, by halves."""

from __future__ import annotations

from collections.abc import Callable

from .cases import GIB

Try = Callable[[int], str]  # runs with so many bytes; what went wrong, empty where nothing did


def bisect(attempt: Try, low: float, high: float, grain: float) -> tuple[float | None, list[tuple[float, str]]]:
    """Bytes between `low`, with which it fails, and `high`, to a share `grain`; and the tries: GiB, what went wrong.

    None for the bytes where it fails with `high`, too: then something else is wrong with it.
    """
    tries: list[tuple[float, str]] = []

    def runs(size: int) -> bool:
        problem = attempt(size)
        tries.append((round(size / GIB, 3), problem))
        return not problem

    most = high
    while high - low > grain * high:
        size = int((low + high) / 2)
        low, high = (low, size) if runs(size) else (size, high)
    return (high if high < most or runs(int(most)) else None), tries
