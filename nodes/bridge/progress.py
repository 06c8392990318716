"""ComfyUI's progress bar on the running node, and its Stop button."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import comfy.model_management
import comfy.utils


@dataclass(frozen=True)
class Part:
    """One of several equal runs that share a bar."""

    number: int  # from 0
    count: int

    def total(self, steps: int) -> int:
        """Steps of all runs, where each has `steps`."""
        return steps * self.count

    def done(self, step: int, steps: int) -> int:
        """Steps done in all runs, when `step` of the `steps` of this one are."""
        return steps * self.number + step


ONLY = Part(0, 1)


def progress(total: int) -> Callable[[int], None]:
    """Returns a function that shows `done` of `total` on the running node.

    It raises ComfyUI's interrupt, a BaseException, when the user has pressed Stop.
    """
    bar = comfy.utils.ProgressBar(total)

    def show(done: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return show
