"""Runs a ComfyUI server for a while: started on a free port with folders of its own, watched, and stopped for certain.

The installation that it runs from is not written to: base folder, database, byte code and log are elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from .console import SetupError
from .places import ROOT, bytecode_in_cache

PACK_FOLDER = "ComfyUI-WanCore"
START_TIMEOUT = 300  # seconds; a first start on a slow disk compiles every module
STOP_TIMEOUT = 20  # seconds between asking and killing
ANSI = re.compile(r"\x1b\[[0-9;]*m")
TROUBLE = re.compile(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback|\b\w*(Error|Exception)\b")


@dataclass(frozen=True)
class Launch:
    """How to start a server."""

    comfyui: Path
    python: Path
    base: Path  # models, custom_nodes, input, output, temp and user live below it
    arguments: tuple[str, ...] = ()  # more of ComfyUI's own
    interpreter_arguments: tuple[str, ...] = ()  # of Python, such as -s
    environment: Mapping[str, str] = field(default_factory=dict)  # replaces variables; an empty value removes one

    def command(self, port: int) -> list[str]:
        """The whole command line."""
        return [
            str(self.python), *self.interpreter_arguments, str(self.comfyui / "main.py"),
            "--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(self.base),
            "--database-url", "sqlite:///:memory:", "--disable-auto-launch", "--disable-api-nodes", *self.arguments,
        ]  # fmt: skip

    def variables(self) -> dict[str, str]:
        """The environment of the process: no byte code beside the sources, unbuffered UTF-8 output."""
        merged = {
            **os.environ,
            **bytecode_in_cache(),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
            "THP_MEM_ALLOC_ENABLE": "1",  # torch asks Linux for huge pages: a third less time for a decode on the CPU
            **self.environment,
        }
        return {name: value for name, value in merged.items() if value}


class Server:
    """A running server: its address, and what it has logged so far."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_file: Path) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.log_file = log_file
        self.process = process

    def log(self) -> str:
        """Everything logged so far, without colours."""
        return ANSI.sub("", self.log_file.read_text(encoding="utf-8", errors="replace"))

    def import_failures(self) -> list[str]:
        """Custom nodes that ComfyUI could not import."""
        return [line.strip() for line in self.log().splitlines() if "IMPORT FAILED" in line]

    def pack_warnings(self) -> list[str]:
        """Lines of the log before the first prompt that are warnings, errors or tracebacks and name this pack."""
        lines = self.log().split("got prompt")[0].splitlines()
        return [line for line in lines if TROUBLE.search(line) and re.search("wan.?core", line, re.IGNORECASE)]

    def running(self) -> bool:
        return self.process.poll() is None


@contextmanager
def serve(launch: Launch, log_file: Path) -> Iterator[Server]:
    """Starts a server, waits until it answers, and stops it when the block is left, however it is left.

    Raises:
        SetupError: it ended or did not answer in time; the line holds the last thing that it said.
    """
    port = free_port()
    with log_file.open("wb") as output:
        process = subprocess.Popen(
            launch.command(port),
            cwd=launch.base,  # ComfyUI writes its detail log to the current folder
            env=launch.variables(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",  # Ctrl-C reaches us alone; we stop the server
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    server = Server(process, port, log_file)
    try:
        _wait(server)
        yield server
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server: asks first, kills what does not listen."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_pack(base: Path) -> Path:
    """Puts this checkout into the custom_nodes of a base folder, by a link, and returns the link."""
    link = base / "custom_nodes" / PACK_FOLDER
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists() and link.resolve() == ROOT:
        return link
    if os.path.lexists(link):
        link.unlink()
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(ROOT), str(link))  # a link to a folder that needs no administrator
    else:
        link.symlink_to(ROOT, target_is_directory=True)
    return link


def _wait(server: Server) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if not server.running():
            raise SetupError(f"ComfyUI did not start: {_last_words(server)} (log: {server.log_file})")
        try:
            with urllib.request.urlopen(f"{server.address}/system_stats", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise SetupError(f"ComfyUI did not answer within {START_TIMEOUT} s (log: {server.log_file})")


def _last_words(server: Server) -> str:
    lines = [line.strip() for line in server.log().splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _end_with_parent() -> None:
    """Asks Linux to end this process when the one that started it is gone, so that nothing outlives a kill."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def arguments_for(device: str) -> Sequence[str]:
    """ComfyUI's arguments for a device: `cpu`, or whatever it finds itself."""
    return ("--cpu",) if device == "cpu" else ()
