"""Runs every check of this repository: python3 tools/test.py

Needs Python 3.10 or newer and nothing else: the first run sets up what is missing (about 2 minutes and 6 GB). Checks
format, lint and types, compares the model with the golden tensors, and runs the tests, those in a real ComfyUI server
and in a real browser among them. The last line says how many checks passed and failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setup.browser import BROWSERS, chromium
from setup.comfyui import DEFAULT_VERSION, RELEASES
from setup.console import Console, SetupError, seconds
from setup.environment import Prepared, prepare, with_front_end
from setup.places import ROOT, bytecode_in_cache

WORKERS = 4  # at most
MEMORY = 5 << 30  # bytes for each, which holds a ComfyUI and up to two servers: three took 12 GB at their most
HOSTED_TESTS = ("tests/bridge", "tests/nodes", "tests/server")  # what another version of ComfyUI can break


@dataclass(frozen=True)
class Outcome:
    """One line of the summary."""

    title: str
    passed: int
    failed: int
    skipped: int
    duration: float  # seconds

    def __str__(self) -> str:
        counts = f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")
        return f"  {self.title:<34} {counts:<36} {seconds(self.duration):>12}"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="EXPRESSION", help="run the tests that match only, and none of the other checks")
    parser.add_argument("--fast", action="store_true", help="leave out servers, browser and slow tests")
    parser.add_argument("--no-browser", action="store_true", help="leave out the browser tests")
    parser.add_argument(
        "--comfyui-version",
        action="append",
        choices=list(RELEASES),
        default=[],
        help=f"test in this ComfyUI too, beside {DEFAULT_VERSION}; may be given several times",
    )
    parser.add_argument(
        "--front-end",
        action="append",
        metavar="VERSION",
        default=[],
        help="run the browser tests with this front end of ComfyUI too (1.58.1); may be given several times",
    )
    parser.add_argument(
        "--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH") or None, help="test in this folder"
    )
    return parser.parse_args(arguments)


class Checks:
    """Runs checks one after the other and keeps their outcomes."""

    def __init__(self, prepared: Prepared, console: Console) -> None:
        self.outcomes: list[Outcome] = []
        self._prepared, self._console = prepared, console

    def command(self, title: str, arguments: Sequence[str]) -> None:
        """One check that passes when the Python command `arguments` exits with 0."""
        start, code, _ = self._run(title, self._prepared, arguments)
        self._add(title, int(code == 0), int(code != 0), 0, start)

    def golden(self) -> None:
        """The model against the golden tensors; every case counts."""
        title = "golden tensors"
        start, code, output = self._run(title, self._prepared, ["tools/golden.py", "tests/golden"], show=True)
        counts = re.findall(r"(\d+) passed, (\d+) failed", output)
        passed, failed = map(int, counts[-1]) if counts else (0, 1)
        self._add(title, passed, max(failed, int(code != 0)), 0, start)

    def tests(self, title: str, prepared: Prepared, arguments: Sequence[str]) -> None:
        """The tests; every one counts."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            command = ["-m", "pytest", f"--junitxml={report}", *_side_by_side(), *arguments]
            start, code, _ = self._run(title, prepared, command, show=True)
            passed, failed, skipped = _read_report(report)
        if code not in (0, 1) and not failed:
            failed = 1  # collection or pytest itself failed
        self._add(title, passed, failed, skipped, start)

    def summary(self) -> int:
        """Prints every outcome and the closing line; 1 if anything failed."""
        passed, failed = (sum(getattr(outcome, field) for outcome in self.outcomes) for field in ("passed", "failed"))
        self._console.say()
        for outcome in self.outcomes:
            self._console.say(str(outcome))
        self._console.say(f"{passed} passed, {failed} failed")
        return int(failed > 0)

    def _run(
        self, title: str, prepared: Prepared, arguments: Sequence[str], show: bool = False
    ) -> tuple[float, int, str]:
        start, lines = time.monotonic(), []
        self._console.say(f"\n== {title}")
        command = [str(prepared.python), *arguments]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=_variables(prepared),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if show:
                    print(line, end="", flush=True)
        if process.returncode and not show:
            print("".join(lines), end="", flush=True)
        return start, process.returncode, "".join(lines)

    def _add(self, title: str, passed: int, failed: int, skipped: int, start: float) -> None:
        self.outcomes.append(Outcome(title, passed, failed, skipped, time.monotonic() - start))


def main() -> int:
    """Sets up, runs the checks that were asked for, sums up."""
    console, options = Console(), parse()
    try:
        comfyui = options.comfyui and Path(options.comfyui).expanduser().absolute()
        prepared = prepare(console, comfyui=comfyui, tests=True)
        others = {version: prepare(console, version=version, tests=True) for version in options.comfyui_version}
        front_ends = {version: with_front_end(prepared, version, console) for version in options.front_end}
    except (SetupError, OSError) as error:
        print(f"Cannot set up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to go on where it was.", file=sys.stderr)
        return 130
    try:
        checks = Checks(prepared, console)
        selection, left_out = ["-k", options.k] if options.k else [], _left_out(options)
        if not options.k:
            _check_sources(checks, prepared)
        checks.tests("tests", prepared, [*selection, *_marks(left_out)])
        for version, other in others.items():
            folders = [folder for folder in HOSTED_TESTS if (ROOT / folder).is_dir()]
            arguments = [*folders, *selection, *_marks({*left_out, "browser"})]
            checks.tests(f"tests in ComfyUI {version}", other, arguments)
        for version, other in front_ends.items():
            checks.tests(f"tests in front end {version}", other, ["tests/browser", *selection, *_marks(left_out)])
        return checks.summary()
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130


def _check_sources(checks: Checks, prepared: Prepared) -> None:
    """Format, lint, types, and the model's numbers."""
    checks.command("ruff check", ["-m", "ruff", "check", "."])
    checks.command("ruff format", ["-m", "ruff", "format", "--check", "."])
    types = ["-m", "basedpyright", "--project", str(ROOT), "--pythonpath", str(prepared.python)]
    with ThreadPoolExecutor() as pool:  # each keeps one core busy; the first one is silent unless it fails
        side_by_side = pool.submit(checks.command, "basedpyright", types)
        checks.golden()
        side_by_side.result()


def _left_out(options: argparse.Namespace) -> set[str]:
    """The marks of the tests that do not run."""
    if options.fast:
        return {"server", "browser", "slow"}
    if options.no_browser:
        return {"browser"}
    if chromium() is None:
        print(f"\nNo {', '.join(BROWSERS)} here, and CHROMIUM names none: the browser tests are left out.")
        return {"browser"}
    return set()


def _workers() -> int:
    """As many as there are cores, and where memory allows it one more: each waits for its server now and then."""
    cores = os.cpu_count() or 1
    return min(WORKERS, cores + (_memory() >= (cores + 1) * MEMORY))


def _memory() -> int:
    """Bytes of RAM; 0 where Python does not tell (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


def _side_by_side() -> list[str]:
    """Arguments that spread the tests over the cores: the groups of tests/conftest.py, in its order."""
    if _workers() == 1:
        return []
    return [f"--numprocesses={_workers()}", "--dist=loadscope", "--no-loadscope-reorder"]


def _marks(left_out: set[str]) -> list[str]:
    return ["-m", " and ".join(f"not {mark}" for mark in sorted(left_out))] if left_out else []


def _variables(prepared: Prepared) -> dict[str, str]:
    return {
        **os.environ,
        "COMFYUI_PATH": str(prepared.comfyui),
        **bytecode_in_cache(),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // _workers())),  # torch's threads, servers' too
    }


def _read_report(report: Path) -> tuple[int, int, int]:
    """Passed, failed (errors among them) and skipped tests of a JUnit report."""
    if not report.is_file():
        return 0, 0, 0
    suites = xml.etree.ElementTree.parse(report).getroot().iter("testsuite")
    total = failed = skipped = 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return total - failed - skipped, failed, skipped


if __name__ == "__main__":
    sys.exit(main())
