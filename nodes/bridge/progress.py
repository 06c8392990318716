"""ComfyUI's progress bar on the running node, and its Stop button."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def progress(total: int) -> Callable[[int], None]:
    """Returns a function that shows `done` of `total` on the running node.

    It raises ComfyUI's interrupt, a BaseException, when the user has pressed Stop.
    """
    bar = comfy.utils.ProgressBar(total)

    def show(done: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return show
