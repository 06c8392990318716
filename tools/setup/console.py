"""What a person at the terminal sees during set-up: steps, a line of activity, one line when it cannot go on."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class SetupError(Exception):
    """Set-up cannot go on. The text is one line: what is wrong and what to do about it."""


class Console:
    """Prints steps as they happen; activity inside a step overwrites itself on a terminal, and is silent elsewhere."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # letters that the terminal or a log cannot show stop nothing
        self._terminal = sys.stdout.isatty()
        self._pending = False
        self._last_progress = ""

    def say(self, text: str = "") -> None:
        """Prints a whole line."""
        self._clear()
        print(text, flush=True)

    def activity(self, text: str) -> None:
        """Shows what is going on inside a step; the next line replaces it."""
        if self._terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + f"    {text}"[:width].ljust(width), end="", flush=True)
            self._pending = True

    def progress(self, text: str) -> None:
        """Shows how far something is: the next replaces it on a terminal, and gets a line of its own elsewhere."""
        if self._terminal:
            self.activity(text)
        elif text != self._last_progress:
            print(f"    {text}", flush=True)
        self._last_progress = text

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Announces a step and says how long it took when it is done."""
        self.say(f"  {text} ...")
        start = time.monotonic()
        yield
        self.say(f"    done in {seconds(time.monotonic() - start)}")

    def _clear(self) -> None:
        if self._pending:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + " " * width + "\r", end="")
            self._pending = False


def seconds(duration: float) -> str:
    """A duration in seconds as a person says it: `0.4 s`, `12 s`, `2 min 5 s`."""
    if duration < 9.95:
        return f"{duration:.1f} s"
    whole = round(duration)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
