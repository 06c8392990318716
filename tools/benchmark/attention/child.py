"""One attention kernel in a process of its own: errors at awkward lengths, then times and errors at those of clips.

The row is written anew before and after every step: what a kernel that hangs or crashes had reached is kept.

A kernel that is not in the pack's table is a module with

    NAME                        its row in the table
    accepts(q, k, v, heads)     whether it takes these tensors, on their device
    attention(q, k, v, heads)   softmax(q k^T / sqrt(d)) v over q [B, Lq, heads * d], k and v [B, Lk, heads * d]
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....wan_core.attention import KERNELS, Kernel, Place
from .. import timing

HEAD = 128  # values of a head
DRIFT = 3.0  # moves the keys of the first head by as much as three standard deviations of a score
SAMPLED, LAST = 500, 200  # rows that are compared: so many everywhere, and all of the last ones


@dataclass(frozen=True)
class Shape:
    """Sizes of one call."""

    heads: int
    queries: int
    keys: int
    batch: int = 1

    def __str__(self) -> str:
        keys = "" if self.keys == self.queries else f" on {self.keys:,}"
        return f"{self.heads} x {self.queries:,}{keys}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of both products."""
        return 4 * self.batch * self.heads * self.queries * self.keys * HEAD


CLIPS = tuple(Shape(heads, length, length) for heads, length in ((24, 27280), (40, 32760), (40, 75600)))
AWKWARD = (
    *(Shape(3, length, length, batch=2) for length in (100, 129, 424, 1000, 4200)),
    Shape(3, 1000, 100, batch=2),  # a text
    Shape(3, 129, 1000, batch=2),
)
SMOKE_CLIPS, SMOKE_AWKWARD = (Shape(2, 300, 300),), (AWKWARD[1], Shape(3, 200, 100, batch=2))


@dataclass
class Row:
    """What is known of a kernel."""

    kernel: str
    first: float | None = None  # seconds of the first call, which compiles
    times: dict[str, list[float]] = field(default_factory=dict)  # by shape, milliseconds of the calls after the first
    errors: dict[str, float] = field(default_factory=dict)  # by shape, of the worst head
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """A kernel, and why it does not take some tensors (empty where it does)."""

    name: str
    run: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    refusal: Callable[[Tensor, Tensor, Tensor, int], str]


def subject(source: str) -> Subject:
    """A kernel of the pack's table by its name, or that of a module."""
    in_table = {kernel.name: kernel for kernel in KERNELS}
    return _of_table(in_table[source]) if source in in_table else _of_module(import_module(source))


def _of_table(kernel: Kernel) -> Subject:
    def refusal(q: Tensor, k: Tensor, v: Tensor, heads: int) -> str:
        if not kernel.installed():
            return "is not installed"
        place = Place(q.device, q.dtype, HEAD, heads)  # without lengths, whose limit says where a kernel pays
        if not kernel.accepts(place):
            return f"does not accept {q.dtype} on {q.device.type}"
        return "" if kernel.works(q.device) else "does not work here"

    return Subject(kernel.name, kernel.run, refusal)


def _of_module(module: Any) -> Subject:
    def refusal(q: Tensor, k: Tensor, v: Tensor, heads: int) -> str:
        return "" if module.accepts(q, k, v, heads) else f"does not accept {q.dtype} on {q.device.type}"

    return Subject(module.NAME, module.attention, refusal)


def data(shape: Shape, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k and v in bfloat16; in the first head the highest score of a query rises, or falls, along the keys."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (
        torch.randn(shape.batch, length, shape.heads * HEAD, generator=generator, device=device, dtype=torch.bfloat16)
        for length in (shape.queries, shape.keys, shape.keys)
    )
    k[..., :HEAD] += torch.linspace(-DRIFT, DRIFT, shape.keys, device=device)[:, None]
    return q, k, v


def error(out: Tensor, q: Tensor, k: Tensor, v: Tensor, heads: int) -> float:
    """||out - exact|| / ||exact|| against float32, of the worst of the first and last heads; NaN is infinite."""
    length = q.shape[1]
    rows = torch.cat([torch.arange(0, length, -(-length // SAMPLED)), torch.arange(max(0, length - LAST), length)])
    out, q, k, v = (x.unflatten(2, (heads, -1))[:, :, [0, -1]].transpose(1, 2) for x in (out, q, k, v))
    out, q = out[:, :, rows].float(), q[:, :, rows].float()
    exact = torch.softmax(q @ k.float().transpose(2, 3) / q.shape[3] ** 0.5, dim=-1) @ v.float()
    far = (out - exact).norm(dim=(2, 3)) / exact.norm(dim=(2, 3))
    return round(float(far.nan_to_num(nan=torch.inf).max()), 5)


class Measurement:
    """Fills in a row and tells it."""

    def __init__(self, row: Row, path: Path, device: torch.device) -> None:
        self.row, self.path, self.device = row, path, device

    def tell(self, note: str = "") -> None:
        """Writes the row in one piece."""
        self.row.note = note
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self.row)), encoding="utf-8")
        part.replace(self.path)

    def step(self, kernel: Subject, shape: Shape, runs: int) -> str:
        """Compares the kernel at a shape, then times `runs` calls more; returns why it does not take it."""
        self.tell(f"at {shape}")
        q, k, v = data(shape, self.device)
        timing.synchronise()
        before = time.perf_counter()
        refusal = kernel.refusal(q, k, v, shape.heads)
        if refusal:
            return refusal
        out = kernel.run(q, k, v, shape.heads)
        timing.synchronise()
        if self.row.first is None:
            self.row.first = round(time.perf_counter() - before, 2)
        self.row.errors[str(shape)] = error(out, q, k, v, shape.heads)
        del out
        if runs:
            laps = timing.laps(lambda: kernel.run(q, k, v, shape.heads), runs)
            self.row.times[str(shape)] = [round(value, 4) for value in laps]
        return ""

    def all_steps(self, source: str, runs: int, *, small: bool) -> str:
        """Every shape; returns why the kernel takes none of them."""
        self.tell("at its import")
        kernel = subject(source)
        self.row.kernel = kernel.name
        short = [self.step(kernel, shape, 0) for shape in (SMOKE_AWKWARD if small else AWKWARD)]
        long = [self.step(kernel, shape, runs) for shape in (SMOKE_CLIPS if small else CLIPS)]
        return "" if self.row.errors else (short + long)[0]


def main(arguments: list[str]) -> int:
    """Measures one kernel into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="name of a kernel in the table, or a module")
    parser.add_argument("path", type=Path, help="file of the row")
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # kernels log why they do not work here
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    measurement = Measurement(Row(options.source.rpartition(".")[2]), options.path, device)
    try:
        with torch.inference_mode():
            note = measurement.all_steps(options.source, options.runs, small=options.smoke)
    except Exception as problem:  # noqa: BLE001  (whatever a compiler or a driver raises is this row's result)
        reason = (str(problem).splitlines() or [""])[0]
        note = f"{type(problem).__name__}: {reason} ({measurement.row.note})"
    measurement.tell(note)
    return 0
