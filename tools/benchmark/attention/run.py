"""Measures every attention kernel in a process of its own; started by tools/bench_attention.py."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from ....wan_core import kernels
from ....wan_core.attention import KERNELS
from .. import report
from .child import AWKWARD, CLIPS, SMOKE_AWKWARD, SMOKE_CLIPS, Row, Shape

SCRIPT = Path(__file__).parents[2] / "bench_attention.py"
START = 180.0  # seconds until a process has imported PyTorch, at most
GRACE = 30.0  # seconds that the driver may take to end a process
SOURCES = {kernel.name: kernel.name for kernel in KERNELS}
SOURCES |= {name: f"{kernels.__name__}.{name}" for name in ("hopper8", "ampere8")}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", nargs="*", choices=[*SOURCES], default=[*SOURCES], help="(default: all)")
    parser.add_argument("--modules", nargs="+", default=[], help="further ones: see child.py")
    parser.add_argument("--runs", type=int, default=5, help="calls after the first one (default: 5)")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one shape of a kernel (default: 60)")
    parser.add_argument("--smoke", action="store_true", help="small sizes, once: only to see that everything runs")
    parser.add_argument("--output", type=Path, help="folder of bench_attention.json and .md (default: none is written)")
    options = parser.parse_args(arguments)
    if not options.smoke and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here, and a CPU would take hours: run it on a GPU, or give --smoke")
    return options


def measured(source: str, options: argparse.Namespace) -> Row:
    """The row of one kernel, with how its process ended if it did not end by itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        command = [sys.executable, str(SCRIPT), "--child", source, str(path)]
        command += ["--runs", "1", "--smoke"] if options.smoke else ["--runs", str(options.runs)]
        end = _watch(subprocess.Popen(command), path, options.limit)
        row = Row(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else Row(source)
    if end:
        row.note = f"{end} {row.note}".strip()
    return row


def _watch(child: subprocess.Popen[bytes], path: Path, limit: float) -> str:
    """Waits for a process that writes `path` at every step, ends it if one takes too long; returns what went wrong."""
    told, since = 0, time.monotonic()
    while child.poll() is None:
        now = path.stat().st_mtime_ns if path.exists() else 0
        if now != told:
            told, since = now, time.monotonic()
        allowed = limit if told else START
        if time.monotonic() - since > allowed:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(GRACE)
            return f"stopped: no answer for {allowed:g} s"
        time.sleep(0.05)
    return f"crashed: exit code {child.returncode}" if child.returncode else ""


def markdown(rows: Sequence[Row], *, small: bool) -> str:
    """One table."""
    clips, awkward = (SMOKE_CLIPS, SMOKE_AWKWARD) if small else (CLIPS, AWKWARD)
    heads = ("milliseconds (TF/s)", *map(str, clips), "error", "error, awkward lengths", "first call, s", "")
    return report.table(heads, [_line(row, clips, awkward) for row in rows])


def _line(row: Row, clips: Sequence[Shape], awkward: Sequence[Shape]) -> list[str]:
    times = [_time(row.times.get(str(shape)), shape) for shape in clips]
    errors = [
        max((row.errors[str(shape)] for shape in shapes if str(shape) in row.errors), default=None)
        for shapes in (clips, awkward)
    ]
    numbers = ["-" if value is None else f"{value:.5f}" for value in errors]
    return [row.kernel, *times, *numbers, "-" if row.first is None else f"{row.first:.1f}", row.note]


def _time(times: list[float] | None, shape: Shape) -> str:
    if not times:
        return "-"
    median = statistics.median(times)
    return f"{median:.2f} ({shape.operations / median / 1e9:.0f})"


def main(arguments: list[str]) -> int:
    """Prints rows as they come, then the table."""
    options = parse(arguments)
    rows: list[Row] = []
    text = ""
    for source in [*(SOURCES[name] for name in options.kernels), *options.modules]:
        rows.append(measured(source, options))
        text = markdown(rows, small=options.smoke)
        print(text.splitlines()[-1], flush=True)
        if options.output is not None:
            about = report.versions()
            report.save(options.output / "bench_attention", about, [asdict(row) for row in rows], text)
    print(f"\n{text}")
    return 0
