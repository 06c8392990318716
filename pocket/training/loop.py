"""One training loop for every stage: seeded, with a progress line, stopped by the clock and resumed.

A whole step (loss, gradients, update, average) is one recorded CUDA graph for each set of input shapes, because models
this small are bound by launches.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..aside import written_aside
from .optimizer import Weights

WARM_UP = 200  # steps in which the learning rate rises
DECAY = 0.02  # last learning rate, as a share of the highest
REPORT_EVERY = 200  # steps
TURNS = 16  # steps in which every set of input shapes comes
FEW = 40  # scenes that --smoke draws
STEP = "step"  # of a kept state, the one to go on with


class StoppedError(Exception):
    """A stage whose time was up before its last step."""


@dataclass(frozen=True)
class Plan:
    """What one stage of training gets."""

    out: Path  # folder of the trained weights
    state: Path  # folder of the states of interrupted stages
    device: torch.device
    seed: int
    deadline: float  # time.monotonic() at which to stop and keep the state
    fit: bool = False  # end by the deadline with the learning rate fallen, in however many steps that is
    smoke: bool = False  # a few steps on small batches: does it run at all
    seeds: int = 3  # noises to judge each prompt with

    def scenes(self, count: int) -> int:
        """How many of `count` scenes to draw."""
        return min(count, FEW) if self.smoke else count

    def generator(self, salt: int) -> torch.Generator:
        """Random numbers on the training device for one purpose."""
        return torch.Generator(self.device).manual_seed(self.seed * 1000 + salt)


@dataclass(frozen=True)
class Stage:
    """One model's training.

    `batch(step)` draws the inputs from `step` alone, so that a resumed run goes on as if it had not stopped.
    `loss(*inputs)` is a fixed course of kernels for inputs of given shapes: on a GPU it is recorded once and replayed,
    unless `recorded` is False (the gradient of an embedding cannot be recorded).
    `matrices` says which parameters Muon updates; Adam does the others.
    """

    name: str
    model: nn.Module
    batch: Callable[[int], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    steps: int
    rate: float
    matrix_rate: float = 0.0
    matrices: Callable[[str, Tensor], bool] = lambda _name, _parameter: False
    recorded: bool = True
    low_precision: bool = False  # hold a bfloat16 copy for the forward pass on a GPU
    falls: bool = True  # the learning rate falls to the end


def learning_rate(step: int, done: float) -> float:
    """Share of the highest rate: linear rise over the first steps, cosine fall over the whole (`done` is over)."""
    rise = min(1.0, (step + 1) / WARM_UP)
    fall = 0.5 * (1 + math.cos(math.pi * done))
    return rise * (DECAY + (1 - DECAY) * fall)


class Steps:
    """Does one step after the other; on a GPU through one recorded graph for each set of input shapes."""

    def __init__(self, stage: Stage, weights: Weights, device: torch.device) -> None:
        self._stage, self._weights, self._device = stage, weights, device
        self._recorded: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, step: int, share: float) -> Tensor:
        """Updates the weights at `share` of the highest learning rate; returns the loss."""
        inputs = self._stage.batch(step)
        self._weights.share.fill_(share)
        if self._device.type != "cuda" or not self._stage.recorded:
            return self.compute(inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(tuple(tensor.clone() for tensor in inputs))
        graph, places, loss = self._recorded[shapes]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return loss

    def compute(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """One step, not recorded; returns the loss."""
        with torch.device(self._device):  # small tables are made where they are used: a recording allows no copies
            loss = self._stage.loss(*inputs)
        loss.backward()
        self._weights.collect()
        self._weights.update()
        return loss.detach()

    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]:
        before = {name: value.clone() for name, value in self._weights.state().items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.compute(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.compute(inputs)
        self._weights.restore(before)
        return graph, inputs, loss


def weights_of(stage: Stage, plan: Plan) -> Weights:
    """The weights that a stage trains, in the form in which it trains them."""
    low = stage.low_precision and plan.device.type == "cuda"
    dtype = torch.bfloat16 if low else torch.float32
    return Weights(stage.model, stage.rate, stage.matrix_rate, stage.matrices, dtype)


def rehearse(stage: Stage, plan: Plan) -> int:
    """Computes one step of each set of input shapes, and with it what is compiled for them; returns their number."""
    steps, seen = Steps(stage, weights_of(stage, plan), plan.device), set()
    for step in range(1 if plan.smoke else TURNS):
        inputs = stage.batch(step)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in seen:
            seen.add(shapes)
            steps.compute(inputs)
    return len(seen)


def train(stage: Stage, plan: Plan) -> None:
    """Trains to the end, when the model holds its averaged weights and no state is left.

    Raises:
        StoppedError: the deadline came first; the state is kept.
    """
    steps = _steps(stage, plan)
    weights = weights_of(stage, plan)
    first = _resume(stage, plan, weights)
    steps_of = Steps(stage, weights, plan.device)
    began, total, reported = time.monotonic(), torch.zeros((), device=plan.device), first
    for step in range(first, steps):
        done = step / steps
        if plan.fit:
            done = max(done, (time.monotonic() - began) / (plan.deadline - began))
        if done >= 1:
            break
        total += steps_of(step, learning_rate(step, done if stage.falls else 0.0))
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            mean, total = total.item() / (step + 1 - reported), torch.zeros_like(total)
            pace, reported = (time.monotonic() - began) / (step + 1 - first), step + 1
            print(f"{stage.name}: step {step + 1}/{steps} loss {mean:.5f} {1000 * pace:.1f} ms/step", flush=True)
            if not plan.fit and time.monotonic() > plan.deadline and step + 1 < steps:
                _keep(stage, plan, weights, step + 1)
                raise StoppedError(f"{stage.name}: stopped by the clock; run again to go on")
    weights.finish()
    _file(stage, plan).unlink(missing_ok=True)


def _steps(stage: Stage, plan: Plan) -> int:
    return 3 if plan.smoke else stage.steps


def _file(stage: Stage, plan: Plan) -> Path:
    return plan.state / f"{stage.name}.state"


def _run_of(stage: Stage, plan: Plan, weights: Weights) -> dict[str, str]:
    """What has to be the same where a state is gone on from."""
    recipe = {"steps": _steps(stage, plan), "rates": (stage.rate, stage.matrix_rate), "falls": stage.falls}
    shapes = {name: tuple(value.shape) for name, value in weights.state().items()}
    return {name: str(value) for name, value in {"seed": plan.seed, **recipe, "shapes": shapes}.items()}


def _keep(stage: Stage, plan: Plan, weights: Weights, step: int) -> None:
    """Writes the state as one file, which is whole or as it was before."""
    plan.state.mkdir(parents=True, exist_ok=True)
    parts = {name: value.cpu() for name, value in weights.state().items()}
    with written_aside(_file(stage, plan)) as part:
        save_file(parts, part, {**_run_of(stage, plan, weights), STEP: str(step)})


def _resume(stage: Stage, plan: Plan, weights: Weights) -> int:
    """Restores what `_keep` wrote for this run; returns the step to go on with."""
    path, run = _file(stage, plan), _run_of(stage, plan, weights)
    if not path.is_file():
        return 0
    with safe_open(path, "pt") as file:
        kept = file.metadata()
        others = [f"{name} {kept.get(name)}" for name, value in run.items() if kept.get(name) != value]
        if others:
            print(f"{stage.name}: begins anew; {path} is of another run ({', '.join(others)})", flush=True)
            return 0
        weights.restore({name: file.get_tensor(name) for name in weights.state()})
    return int(kept[STEP])
