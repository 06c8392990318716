"""Runs the benchmark inside the environment; started by tools/bench.py."""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import host

host.start()

import torch  # noqa: E402  (after comfy-aimdo)

from ...wan_core.errors import WanError  # noqa: E402
from . import predictions, report, timing, vae, workloads  # noqa: E402
from .engines import ALL_IN_8_BITS, ENGINES, IN_8_BITS, NATIVE, OURS, Engine, Given, inputs, running  # noqa: E402
from .kept import Kept  # noqa: E402
from .timing import Row  # noqa: E402
from .workloads import Forward  # noqa: E402

ERROR_LAYERS = 4
COMPARED = (NATIVE.name, "diffusers", OURS.name, IN_8_BITS.name, ALL_IN_8_BITS.name)
COMPARED_KINDS = ("bf16", "fp8 scaled")
KINDS = {"bf16": torch.bfloat16, "fp8 scaled": None, "Q8_0": None, "Q4_K": None}  # computed in; None: as loaded


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*workloads.FORWARDS, *workloads.CLIPS, "error"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="what to measure (default: all)")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS], help="of files (default: all)")
    engines = [engine.name for engine in ENGINES]
    usual = [engine.name for engine in ENGINES if not engine.by_name_only]
    parser.add_argument("--engines", nargs="+", choices=engines, default=usual, help=f"default: {', '.join(usual)}")
    parser.add_argument("--layers", type=int, help="blocks of each transformer (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="calls after the first one (default: 3)")
    parser.add_argument("--smoke", action="store_true", help="small sizes, once: only to see that everything runs")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of bench.json and bench.md")
    parser.add_argument("--files", type=Path, help="folder of the random weights, kept (default: a temporary one)")
    return parser.parse_args(arguments)


class Benchmark:
    """One run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.runs = 1 if options.smoke else options.runs
        self.files = Kept(folder, self.device, smoke=options.smoke)

    def rows(self) -> Iterator[Row]:
        """Yields each row as soon as it is measured."""
        small = self.options.smoke
        if "error" in self.options.only:
            yield from self.errors(workloads.SMOKE_ERROR if small else workloads.ERROR)
        for name, workload in (workloads.SMOKE_FORWARDS if small else workloads.FORWARDS).items():
            if name in self.options.only:
                yield from self.forwards(workload)
        for name, clip in (workloads.SMOKE_CLIPS if small else workloads.CLIPS).items():
            if name in self.options.only:
                path = self.files.vae(clip.shapes)
                dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
                yield from vae.rows(clip, path, self.device, dtype, self.runs)

    def forwards(self, workload: Forward) -> Iterator[Row]:
        """Every engine on the files that it takes."""
        layers = 2 if self.options.smoke else self.options.layers
        given = inputs(workload, self.device)
        for kind in self.options.kinds:
            for engine in self._chosen(kind):
                path = self.files.transformer(workload.shapes, kind, layers)
                if "LoRA" in engine.name:
                    self.files.write_loras(workload.shapes, layers)
                yield tried(Row(workload.name, engine.name, kind), self._timed, engine, path, given)

    def errors(self, workload: Forward) -> Iterator[Row]:
        """Distance from a float32 run of a few layers whose channels have outliers."""
        kinds = [kind for kind in COMPARED_KINDS if kind in self.options.kinds]
        chosen = [(kind, engine) for kind in kinds for engine in self._chosen(kind) if engine.name in COMPARED]
        if not chosen:
            return
        layers = 2 if self.options.smoke else ERROR_LAYERS
        given = inputs(workload, self.device)
        exact = self.files.transformer(workload.shapes, "bf16", layers, outliers=True)
        reference = OURS.ready(exact, torch.float32, given)()
        host.unload()
        for kind, engine in chosen:
            path = self.files.transformer(workload.shapes, kind, layers, outliers=True)
            yield tried(Row(workload.name, engine.name, kind), self._compared, engine, path, given, reference)

    def _chosen(self, kind: str) -> Iterator[Engine]:
        yield from (engine for engine in ENGINES if kind in engine.kinds and engine.name in self.options.engines)

    def _timed(self, row: Row, engine: Engine, path: Path, given: Given) -> None:
        with running(engine):
            timing.measure(row, engine.ready(path, KINDS[row.what], given), self.runs)

    def _compared(self, row: Row, engine: Engine, path: Path, given: Given, reference: torch.Tensor) -> None:
        row.error = timing.difference(engine.ready(path, KINDS[row.what], given)(), reference)


def tried(row: Row, measure: Callable[..., None], *arguments: Any) -> Row:
    """The row as `measure` filled it in: what does not run here is a row too, and leaves the GPU to the next one."""
    try:
        measure(row, *arguments)
    except (RuntimeError, WanError) as error:
        row.note = (str(error) or type(error).__name__).splitlines()[0]
    host.unload()  # not before the error is gone, which holds what the call had computed
    return row


def main(arguments: list[str]) -> int:
    """Prints rows as they come, then the table."""
    options = parse(arguments)
    gc.freeze()  # what was imported stays: collecting after each engine would look at all of it again
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = options.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        rows: list[Row] = []
        for row in Benchmark(options, folder).rows():
            rows.append(row)
            print(report.markdown([row]).splitlines()[-1], flush=True)
            report.write(rows, options.output)
    if not rows:
        asked = f"{'--smoke ' if options.smoke else ''}--only {' '.join(options.only)}"
        raise SystemExit(
            f"Nothing to measure: {asked} has no row of these --kinds and --engines. Choose others of them."
        )
    with (options.output / "bench.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{predictions.markdown(workloads.FORWARDS)}\n")
    print("\n" + (options.output / "bench.md").read_text(encoding="utf-8"))
    return 0
