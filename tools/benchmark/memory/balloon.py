"""Takes the memory of a GPU until a given amount is free, and writes down how much the others use.

Runs as a process of its own, as plain driver calls: `python balloon.py`. Commands come on stdin, answers go to stdout,
one line each. `leave BYTES` takes or gives back memory until the others have that much; `peaks` answers with the
changes of used memory since the last time, [[seconds since the epoch, bytes used by others], ...]. It ends with stdin.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PIECE = 64 * 2**20  # bytes taken at once
GRAIN = 2 * 2**20  # bytes that the driver gives at least
FAR = 32 * 2**30  # beyond this, one large piece is taken first
STEP = 8 * 2**20  # changes smaller than this are not written down
PAUSE = 0.001  # seconds between two looks


class Driver:
    """The few calls of the CUDA driver that are needed."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuCtxCreate_v2", ctypes.byref(context), 0, device)
        self.context = context

    def call(self, name: str, *args: object) -> None:
        """Raises OSError where the driver refuses."""
        code = getattr(self.lib, name)(*args)
        if code:
            raise OSError(f"{name}: CUDA error {code}")

    def free(self) -> int:
        """Bytes free on the card."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def take(self, size: int) -> int:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value

    def give_back(self, address: int) -> None:
        self.call("cuMemFree_v2", ctypes.c_uint64(address))


class Balloon:
    """Pieces of memory, and a thread that looks at what is left."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.lock = driver, threading.Lock()
        self.pieces: list[tuple[int, int]] = []  # address and bytes, the large one first
        self.changes: list[tuple[float, int]] = []
        self.whole = driver.free()  # while nobody else uses anything: the tool starts this first
        threading.Thread(target=self._look, daemon=True).start()

    @property
    def room(self) -> int:
        """Bytes that the others have, used or not."""
        return self.whole - sum(size for _, size in self.pieces)

    def leave(self, size: int) -> int:
        """Blows up or shrinks until the others have about `size` bytes in all; returns how many they have."""
        with self.lock:
            while self.pieces and self.room < size:
                self.driver.give_back(self.pieces.pop()[0])
            while (missing := self.room - size) >= GRAIN:
                part = missing - FAR // 2 if missing > FAR else min(missing, PIECE)
                part -= part % GRAIN
                self.pieces.append((self.driver.take(part), part))
            self.changes = []
            return self.room

    def peaks(self) -> list[tuple[float, int]]:
        with self.lock:
            found, self.changes = self.changes, self.changes[-1:]
        return found

    def _look(self) -> None:
        self.driver.call("cuCtxSetCurrent", self.driver.context)
        last = -STEP
        while True:
            with self.lock:
                used = self.room - self.driver.free()
                if abs(used - last) >= STEP:
                    self.changes.append((round(time.time(), 4), used))
                    last = used
            time.sleep(PAUSE)


Send = Callable[[str], Any]


@contextmanager
def started() -> Iterator[Send]:
    """A process of this script; yields what sends it a command and returns the answer."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, __file__], **pipes)

    def send(command: str) -> Any:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{command}\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        if isinstance(answer, str):
            raise OSError(answer)
        return answer

    try:
        yield send
    finally:
        process.kill()
        process.wait()


def main() -> None:
    balloon = Balloon(Driver())
    for line in sys.stdin:
        command, _, argument = line.partition(" ")
        try:
            answer = balloon.leave(int(argument)) if command == "leave" else balloon.peaks()
        except OSError as error:
            answer = str(error)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
