"""The planner beside ComfyUI: what this machine has, what runs on it have taken, and a run's plan as text on a node."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import comfy.model_management as management
import folder_paths
import psutil
import torch

from ...wan_core.errors import WanError
from ...wan_core.geometry import FRAME_STRIDE
from ...wan_core.media.atomic import USER_FOLDER, partial_file
from ...wan_core.planner import pace
from ...wan_core.planner.memory import GIB, Clip, Part, compression_of
from ...wan_core.planner.overview import overview, overview_of
from ...wan_core.planner.plan import Machine, Run, expected, plan, what
from ...wan_core.weights import Checkpoint, inspect
from .eight_bits import in_eight_bits, possible
from .meter import Meter
from .pair import Pair

PROBE = 32 * 2**20  # bytes copied to the GPU to learn the link's rate
HIDDEN = 0.9  # share of a forward's time up to which its transfers are taken for hidden behind it


def machine() -> Machine:
    """What is free for a run: ComfyUI's own models give way, and so do their copies in RAM."""
    device = management.get_torch_device()
    ram = psutil.virtual_memory().available + own_ram()
    if device.type != "cuda":
        return Machine(ram=ram)
    there = [loaded.model for loaded in management.current_loaded_models if loaded.device == device]
    free = management.get_free_memory(device) + sum(model.loaded_size() for model in there if model is not None)
    name, rate = torch.cuda.get_device_name(device), link(device.index or 0)
    return Machine(name, float(free) + context(), ram, rate, possible())


def own_ram() -> int:
    """Bytes that this process takes; pages of mapped files are the system's to take back, and count as free already."""
    taken = psutil.Process().memory_info()
    return taken.rss - getattr(taken, "shared", 0)  # only Linux tells them apart


def context() -> float:
    """Bytes of the card that this process holds beside tensors; the planner counts them as needed."""
    free, total = torch.cuda.mem_get_info()
    return float(min(GIB, max(0, total - free - torch.cuda.memory_reserved())))


@cache
def link(index: int) -> float:
    """GB/s from pinned RAM to the GPU, measured once."""
    source = torch.empty(PROBE, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(PROBE, dtype=torch.uint8, device=f"cuda:{index}")
    before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(2):
        before.record()
        target.copy_(source, non_blocking=True)
        behind.record()
        behind.synchronize()
    return PROBE / before.elapsed_time(behind) / 1e6


def pace_file() -> Path:
    """What runs have taken, on every GPU that this installation has seen."""
    return Path(folder_paths.get_user_directory()) / "wancore" / "pace.json"


def learned(card: str) -> pace.Pace:
    """What runs on this card have taken."""
    return pace.read(pace_file()).get(card, pace.Pace({}))


def learn(card: str, what: str, measured: float, expected: float) -> None:
    """Writes down what a run has taken, in seconds, beside what arithmetic expected."""
    path = pace_file()
    cards = pace.read(path)
    cards[card] = cards.get(card, pace.Pace({})).learned(what, measured, expected)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path.parent, path.name, USER_FOLDER) as part:
            part.path.write_text(pace.text(cards), encoding="utf-8")
            part.replace(path)
    except (OSError, WanError) as error:
        logging.info("Wan: the time of this run is not kept: %s", error)


@dataclass(frozen=True)
class RunPlan:
    """The plan of one sampling run, and what it teaches when it is over."""

    run: Run
    machine: Machine
    meter: Meter

    @classmethod
    def of(cls, pair: Pair, shape: torch.Size, forwards: tuple[int, int]) -> RunPlan | None:
        """For a latent of this shape; None where the models' files are not known."""
        files = [checkpoint_of(facts.path) for facts in (pair.facts, pair.low_facts) if facts is not None]
        models = [Part.of(file) for file in files if file is not None and file.config is not None]
        if len(models) != len(files):
            return None
        high, low = models[0], (*models, None)[1]
        scale = compression_of(high.config.out_dim)
        batch, _, frames, rows, columns = shape
        clip = Clip(columns * scale, rows * scale, 1 + (frames - 1) * FRAME_STRIDE, batch)
        there = (pair.high.loaded_size(), pair.low.loaded_size() if pair.low is not None else 0.0)
        eight_bits = in_eight_bits(pair.high.model_options["transformer_options"])
        run = Run(high, clip, low, forwards=forwards, there=there, eight_bits=eight_bits)
        return cls(run, machine(), Meter())

    def report(self) -> str:
        """Lines for the node."""
        return plan(self.run, self.machine, learned(self.machine.card)).report(self.machine)

    def learn(self) -> None:
        """Keeps what a forward took, of each expert whose transfers were hidden."""
        for expert, name in zip(self.run.experts, ("high", "low"), strict=False):
            seconds = self.meter.seconds(name)
            if seconds is None or not self.machine.card:
                continue
            told = plan(self.run, self.machine, learned(self.machine.card))
            if told.sent / self.machine.link / 1e9 < HIDDEN * seconds:
                clip = Clip(self.run.clip.width, self.run.clip.height, self.run.clip.frames)
                file, card, eight_bits = expert.checkpoint, self.machine.card, self.run.eight_bits
                learn(card, what(file, eight_bits), seconds, expected(file, clip, card, eight_bits))


def checkpoint_of(path: str | None) -> Checkpoint | None:
    """The header of a loaded model's file; None where it cannot be read any more."""
    try:
        return inspect(path) if path else None
    except (WanError, OSError):
        return None


def of_files(high: Checkpoint, **parts: Checkpoint | None) -> str:
    """What runs of these files need on this machine, a line for each official size."""
    here = machine()
    return "\n".join(overview(high, here, learned(here.card), **parts))


def of_any(files: Sequence[Checkpoint]) -> list[str]:
    """The same for files in any order."""
    here = machine()
    return overview_of(files, here, learned(here.card))
