"""What a run shows while it samples: ComfyUI's own bar and preview over both experts, and a line of text."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...wan_core.planner.pace import duration
from . import live_view
from .progress import ONLY, Part
from .show import send_text, show_on_node


class RunReport:
    """Tells the user how far one run is: on the node, and as the progress text of ComfyUI's websocket."""

    def __init__(
        self, node_id: str | None, summary: str, sigmas: Tensor, boundary: float | None, part: Part = ONLY
    ) -> None:
        self.node_id, self.summary, self.part = node_id, summary, part
        self.sigmas = sigmas.tolist()
        self.experts = [] if boundary is None else ["high" if high else "low" for high in sigmas >= boundary]
        self.started = self.first_done = 0.0  # seconds; the first step holds the loading of the weights

    def start(self) -> None:
        """Shows what the run came to."""
        self.started = time.monotonic()
        show_on_node(self.node_id, self.summary)

    def callback(
        self, model: Any, latent: Tensor, x0_output: dict[str, Tensor], frame_rate: float
    ) -> Callable[..., None]:
        """Bar, live view and interrupt as natively, followed by our line. `latent`: the shape of what is sampled."""
        native = live_view.prepare_callback(model, latent, x0_output, frame_rate, self.part)

        def report(step: int, x0: Tensor, x: Tensor, total_steps: int) -> None:
            native(step, x0, x, total_steps)
            line = self.line(step, total_steps, time.monotonic()) + memory_text(model.load_device)
            send_text(self.node_id, f"{self.summary}\n{line}")

        return report

    def finish(self, remark: str = "") -> None:
        """Leaves the summary and the time that the run took on the node."""
        send_text(self.node_id, f"{self.summary}\nsampled in {duration(time.monotonic() - self.started)}{remark}")

    def line(self, step: int, steps: int, now: float) -> str:
        """ "step 2 of 4, high expert, sigma 0.938, 12 s left" after step number `step`, counted from 0.

        The seconds are those of all parts.
        """
        if step == 0:
            self.first_done = now
        pace = (now - self.first_done) / step if step else now - self.started
        left = pace * (self.part.total(steps) - self.part.done(step + 1, steps))
        at = min(step, len(self.sigmas) - 1)
        expert = f"{self.experts[at]} expert, " if self.experts else ""
        return f"step {step + 1} of {steps}, {expert}sigma {self.sigmas[at]:.3f}, {duration(left)} left"


def memory_text(device: torch.device) -> str:
    """ ", VRAM 9.8 of 24.0 GiB": what is taken on a GPU, by whomever; nothing for other devices."""
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # free again for the run
    return f", VRAM {(total - free - reserved) / 2**30:.1f} of {total / 2**30:.1f} GiB"
