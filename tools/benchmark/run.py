"""Runs the benchmark inside the environment; started by tools/bench.py."""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import host

host.start()

import torch  # noqa: E402  (after comfy-aimdo)

from ...wan_core.errors import WanError  # noqa: E402
from . import predictions, report, timing, vae, workloads  # noqa: E402
from .engines import ENGINES, IN_8_BITS, NATIVE, OURS, Engine, inputs, running  # noqa: E402
from .kept import Kept  # noqa: E402
from .timing import Row  # noqa: E402
from .workloads import Forward  # noqa: E402

ERROR_LAYERS = 4
KINDS = {"bf16": torch.bfloat16, "fp8 scaled": None, "Q8_0": None, "Q4_K": None}  # computed in; None: as loaded


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [*workloads.FORWARDS, *workloads.CLIPS, "error"]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="what to measure (default: all)")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS], default=[*KINDS], help="of files (default: all)")
    engines, usual = ([e.name for e in ENGINES if not (e.by_name_only and usual)] for usual in (False, True))
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
            path = self.files.transformer(workload.shapes, kind, layers)
            for engine in self._chosen(kind):
                row = Row(workload.name, engine.name, kind)
                if "LoRA" in engine.name:
                    self.files.write_loras(workload.shapes, layers)
                try:
                    with running(engine):
                        call = engine.ready(path, KINDS[kind], given)
                        timing.measure(row, call, self.runs)
                        del call
                except (RuntimeError, WanError) as error:  # what does not run here is a row too
                    row.note = str(error).splitlines()[0]
                host.unload()
                yield row

    def _chosen(self, kind: str) -> Iterator[Engine]:
        yield from (engine for engine in ENGINES if kind in engine.kinds and engine.name in self.options.engines)

    def errors(self, workload: Forward) -> Iterator[Row]:
        """Distance from a float32 run of a few layers whose channels have outliers."""
        layers = 2 if self.options.smoke else ERROR_LAYERS
        given = inputs(workload, self.device)
        paths = {
            kind: self.files.transformer(workload.shapes, kind, layers, outliers=True)
            for kind in ("bf16", "fp8 scaled")
        }
        reference = self._once(OURS, paths["bf16"], torch.float32, given)
        for kind, path in paths.items():
            for engine in (NATIVE, *(each for each in ENGINES if each.name == "diffusers"), OURS, IN_8_BITS):
                if kind in engine.kinds:
                    row = Row(workload.name, engine.name, kind)
                    try:
                        row.error = timing.difference(self._once(engine, path, KINDS[kind], given), reference)
                    except (RuntimeError, WanError) as error:
                        row.note = str(error).splitlines()[0]
                    yield row

    def _once(self, engine: Engine, path: Path, dtype: torch.dtype | None, given: tuple) -> torch.Tensor:
        out = engine.ready(path, dtype, given)()
        host.unload()
        return out


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
    with (options.output / "bench.md").open("a", encoding="utf-8") as file:
        file.write(f"\n{predictions.markdown(workloads.FORWARDS)}\n")
    print("\n" + (options.output / "bench.md").read_text(encoding="utf-8"))
    return 0
