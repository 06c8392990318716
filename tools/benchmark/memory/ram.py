"""RAM as small as a machine's: a control group with a limit where the system has them, and what ComfyUI is told."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path("/sys/fs/cgroup")
NAME = "wancore_bench"
PAUSE = 0.05  # seconds between two looks


def make_group(limit: int) -> Path | None:
    """A control group of `limit` bytes without swap; None where this process may not make one."""
    group = ROOT / f"{NAME}_{os.getpid()}"
    try:
        control = ROOT / "cgroup.subtree_control"
        if "memory" not in control.read_text().split():
            control.write_text("+memory")
        group.mkdir(exist_ok=True)
        (group / "memory.max").write_text(str(limit))
        swap = group / "memory.swap.max"
        if swap.exists():
            swap.write_text("0")
    except OSError:
        return None
    return group


def enter(group: Path) -> None:
    """Moves this process into the group."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def tell(limit: int) -> None:
    """Has psutil speak of a machine of `limit` bytes, of which this process's own memory is used."""
    import psutil

    real = psutil.virtual_memory

    def virtual_memory() -> Any:
        available = max(0, limit - own())
        return real()._replace(total=limit, available=available, free=available, used=limit - available)

    psutil.virtual_memory = virtual_memory


def own() -> int:
    """Bytes of this process that are no pages of files."""
    return status("RssAnon") + status("RssShmem")


class Peak:
    """The most of this process's own memory since it was last asked."""

    def __init__(self) -> None:
        self._most, self._lock = own(), threading.Lock()
        threading.Thread(target=self._look, daemon=True).start()

    def take(self) -> int:
        """Bytes."""
        with self._lock:
            now = own()
            found, self._most = max(self._most, now), now
        return found

    def _look(self) -> None:
        while True:
            with self._lock:
                self._most = max(self._most, own())
            time.sleep(PAUSE)


def status(name: str) -> int:
    """Bytes of one line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def read() -> int:
    """Bytes that this process has had from the disk so far; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), 0)


def pinned() -> list[float]:
    """GiB of pinned copies of each loaded model, in the order in which ComfyUI gives them up: last used, first."""
    import comfy.model_management as management

    patchers = [patcher for patcher in management.loaded_models() if hasattr(patcher, "pinned_memory_size")]
    return [round(patcher.pinned_memory_size() / 2**30, 2) for patcher in patchers]


def group_peak(group: Path | None) -> int:
    """The most that the group held, pages of files among it."""
    try:
        return int((group / "memory.peak").read_text()) if group else 0
    except (OSError, ValueError):
        return 0
