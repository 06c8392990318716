"""One training loop for every stage: seeded, with a progress line, stopped by the clock and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WARM_UP = 200  # steps in which the learning rate rises
DECAY = 0.02  # last learning rate, as a share of the highest
EMA = 0.999  # memory of the averaged weights, per step
REPORT_EVERY = 100  # steps


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

    def generator(self, salt: int) -> torch.Generator:
        """Random numbers on the training device for one purpose."""
        return torch.Generator(self.device).manual_seed(self.seed * 1000 + salt)


@dataclass(frozen=True)
class Stage:
    """One model's training.

    `batch(step)` draws the inputs from `step` alone, so that a resumed run goes on as if it had not stopped.
    `loss(*inputs)` is a fixed course of kernels for inputs of given shapes: on a GPU it is recorded once and replayed,
    unless `recorded` is False (the gradient of an embedding cannot be recorded).
    """

    name: str
    model: nn.Module
    batch: Callable[[int], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    steps: int
    rate: float
    weight_decay: float = 0.01
    recorded: bool = True


def learning_rate(step: int, done: float, stage: Stage) -> float:
    """Linear rise over the first steps, cosine fall over the whole (`done` is the share of it that is over)."""
    rise = min(1.0, (step + 1) / WARM_UP)
    fall = 0.5 * (1 + math.cos(math.pi * done))
    return stage.rate * rise * (DECAY + (1 - DECAY) * fall)


class Gradients:
    """Computes loss and gradients; on a GPU through one recorded graph for each set of input shapes."""

    def __init__(self, stage: Stage, parameters: Sequence[Tensor], device: torch.device) -> None:
        self._stage, self._parameters, self._device = stage, parameters, device
        self._recorded: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]] = {}
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)

    def __call__(self, step: int) -> Tensor:
        """Fills the parameters' gradients; returns the loss."""
        inputs = self._stage.batch(step)
        if self._device.type != "cuda" or not self._stage.recorded:
            return self._compute(inputs)
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(tuple(tensor.clone() for tensor in inputs))
        graph, places, loss = self._recorded[shapes]
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return loss

    def _compute(self, inputs: tuple[Tensor, ...]) -> Tensor:
        torch._foreach_zero_([parameter.grad for parameter in self._parameters])
        with torch.device(self._device):  # small tables are made where they are used: a recording allows no copies
            loss = self._stage.loss(*inputs)
        loss.backward()
        return loss.detach()

    def _record(self, inputs: tuple[Tensor, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._compute(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._compute(inputs)
        return graph, inputs, loss


def train(stage: Stage, plan: Plan) -> bool:
    """Trains to the end or the deadline; True at the end, when the model holds its averaged weights."""
    steps = 4 if plan.smoke else stage.steps
    parameters = [p for p in stage.model.parameters() if p.requires_grad]
    averaged = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.rate, betas=(0.9, 0.99), weight_decay=stage.weight_decay, fused=plan.device.type == "cuda"
    )
    first = _resume(stage, plan, parameters, averaged, optimizer)
    gradients = Gradients(stage, parameters, plan.device)
    began, total = time.monotonic(), torch.zeros((), device=plan.device)
    for step in range(first, steps):
        done = step / steps
        if plan.fit:
            done = max(done, (time.monotonic() - began) / (plan.deadline - began))
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, done, stage)
        loss = gradients(step)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averaged, [p.detach() for p in parameters], 1 - min(EMA, (step + 1) / (step + 10)))
        total += loss
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == steps:
            mean, total = total.item() / ((step % REPORT_EVERY) + 1), torch.zeros_like(total)
            pace = (time.monotonic() - began) / (step + 1 - first)
            print(f"{stage.name}: step {step + 1}/{steps} loss {mean:.5f} {1000 * pace:.1f} ms/step", flush=True)
            if not plan.fit and time.monotonic() > plan.deadline and step + 1 < steps:
                _keep(stage, plan, parameters, averaged, optimizer, step + 1)
                print(f"{stage.name}: stopped by the clock; run again to go on", flush=True)
                return False
    with torch.no_grad():
        for parameter, value in zip(parameters, averaged, strict=True):
            parameter.copy_(value)
    return True


def _files(stage: Stage, plan: Plan) -> tuple[Path, Path]:
    return plan.state / f"{stage.name}.weights.state", plan.state / f"{stage.name}.moments.state"


def _keep(
    stage: Stage,
    plan: Plan,
    parameters: Sequence[Tensor],
    averaged: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    """Writes weights and their average into one file, the optimizer's moments into another."""
    weights, moments = _files(stage, plan)
    weights.parent.mkdir(parents=True, exist_ok=True)
    named = {f"now.{i}": p.detach().cpu() for i, p in enumerate(parameters)}
    named |= {f"averaged.{i}": p.cpu() for i, p in enumerate(averaged)}
    save_file({**named, "step": torch.tensor(step)}, weights)
    state = [optimizer.state[p] for p in parameters]
    save_file({f"{key}.{i}": s[key].cpu() for i, s in enumerate(state) for key in ("exp_avg", "exp_avg_sq")}, moments)


def _resume(
    stage: Stage,
    plan: Plan,
    parameters: Sequence[Tensor],
    averaged: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Restores what `_keep` wrote; returns the step to go on with."""
    weights, moments = _files(stage, plan)
    if not weights.is_file():
        return 0
    named, state = load_file(weights), load_file(moments)
    step = int(named["step"])
    with torch.no_grad():
        for i, (parameter, average) in enumerate(zip(parameters, averaged, strict=True)):
            parameter.copy_(named[f"now.{i}"])
            average.copy_(named[f"averaged.{i}"])
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), device=parameter.device if optimizer.defaults["fused"] else None),
                "exp_avg": state[f"exp_avg.{i}"].to(parameter),
                "exp_avg_sq": state[f"exp_avg_sq.{i}"].to(parameter),
            }
    return step
