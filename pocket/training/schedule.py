"""The order in which the family is trained, and the run of all of it: stages side by side, each a process of its own.

A stage begins when what it needs is done. Models this small leave much of a GPU idle, so several share one (with
NVIDIA's MPS; without it they only take turns). With two GPUs the second takes the stages of lane 1. What transformers
need compiled is compiled while the VAEs are trained, once for all stages of the same sizes. What is done is kept in a
file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..aside import written_aside

STOPPED = 75  # exit status of a stage that the clock stopped and that goes on when it is run again
PACE = 0.5  # seconds between looks at the running stages
AHEAD = 2  # processes to a stage at work: some load their libraries while their turn comes
CORES = 4  # to a stage at work: it draws, starts kernels, compiles
EXPERTS = ("t2v_high", "t2v_low")


@dataclass(frozen=True)
class Part:
    """One stage: what has to be done before, which of two GPUs it runs on, and how long it takes there."""

    needs: tuple[str, ...] = ()
    lane: int = 0
    seconds: float = 0.0  # on an H200 that others share, to tell the longest chain
    after: str = ""  # a stage that has to have ended before, well or not
    light: bool = False  # works on the cores: takes no place on the GPU


SCHEDULE: dict[str, Part] = {
    "vae21": Part(seconds=200),
    "text": Part(seconds=140),
    "vae22": Part(lane=1, seconds=200),
    "compile_t2v": Part(seconds=60, light=True),
    "compile_i2v": Part(seconds=60, light=True),
    "compile_ti2v": Part(lane=1, seconds=50, light=True),
    "compile_s2v": Part(lane=1, seconds=110, light=True),
    "compile_animate": Part(lane=1, seconds=60, light=True),
    "compile_vace": Part(lane=1, seconds=90, light=True),
    "compile_lora": Part(seconds=40, light=True),
    "compile_lora5b": Part(lane=1, seconds=40, light=True),
    "compile_style": Part(lane=1, seconds=50, light=True),
    "latents_a": Part(("text", "vae21"), seconds=60),
    "latents_b": Part(("text", "vae21"), seconds=60),
    "t2v_both": Part(("latents_a", "latents_b"), seconds=140, after="compile_t2v"),
    "t2v_high": Part(("t2v_both",), seconds=220),
    "t2v_low": Part(("t2v_both",), seconds=220),
    "latents_5b": Part(("text", "vae22"), lane=1, seconds=65),
    "ti2v": Part(("latents_5b", "t2v_both"), lane=1, seconds=280, after="compile_ti2v"),
    "latents_i2v": Part(("text", "vae21"), seconds=60),
    "i2v_both": Part(("latents_i2v",), seconds=130, after="compile_i2v"),
    "i2v_high": Part(("i2v_both",), seconds=170),
    "i2v_low": Part(("i2v_both",), seconds=170),
    "lora_high": Part(EXPERTS, seconds=160, after="compile_lora"),
    "lora_low": Part(EXPERTS, seconds=160, after="compile_lora"),
    "lora_ti2v": Part(("ti2v",), lane=1, seconds=110, after="compile_lora5b"),
    "style_high": Part(EXPERTS, lane=1, seconds=90, after="compile_style"),
    "style_low": Part(EXPERTS, lane=1, seconds=90, after="compile_style"),
    "slow_high": Part(EXPERTS, lane=1, seconds=110, after="compile_lora"),
    "voice": Part(lane=1, seconds=30),
    "latents_s2v": Part(("text", "vae21", "voice"), lane=1, seconds=65),
    "s2v": Part(("latents_s2v",), lane=1, seconds=280, after="compile_s2v"),
    "latents_vace": Part(("text", "vae21"), lane=1, seconds=85),
    "latents_animate": Part(("text", "vae21"), lane=1, seconds=80),
    "vace_high": Part(("latents_vace", "t2v_high"), lane=1, seconds=110, after="compile_vace"),
    "vace_low": Part(("latents_vace", "t2v_low"), lane=1, seconds=110, after="compile_vace"),
    "animate": Part(("latents_animate",), lane=1, seconds=190, after="compile_animate"),
    "judge_world": Part(seconds=40, light=True),
    "judge_vae21": Part(("vae21",), seconds=20),
    "judge_vae22": Part(("vae22",), lane=1, seconds=20),
    "judge_t2v": Part(EXPERTS, seconds=40),
    "judge_4steps": Part(("lora_high", "lora_low"), seconds=20),
    "judge_i2v": Part(("i2v_high", "i2v_low"), seconds=20),
    "judge_ti2v": Part(("ti2v",), lane=1, seconds=40),
    "judge_ti2v_4steps": Part(("lora_ti2v",), lane=1, seconds=30),
    "judge_s2v": Part(("s2v",), lane=1, seconds=40),
    "judge_vace": Part(("vace_high", "vace_low"), lane=1, seconds=60),
    "judge_animate": Part(("animate",), lane=1, seconds=40),
}


def chains(schedule: Mapping[str, Part]) -> dict[str, float]:
    """Stage: the seconds of the longest chain of stages that begins with it."""
    found: dict[str, float] = {}
    left = dict(schedule)
    while left:
        for name, part in tuple(left.items()):
            then = [other for other, its in schedule.items() if name in its.needs or name == its.after]
            if all(other in found for other in then):
                found[name] = part.seconds + max((found[other] for other in then), default=0.0)
                del left[name]
    return found


@dataclass
class Record:
    """What is done, and how many seconds each GPU was at work; kept in a file."""

    path: Path
    done: dict[str, float] = field(default_factory=dict)  # stage: its seconds
    busy: list[float] = field(default_factory=lambda: [0.0, 0.0])

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record of the runs before, or an empty one."""
        return cls(path, **json.loads(path.read_text())) if path.is_file() else cls(path)

    def keep(self) -> None:
        """Writes it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(self.path) as aside:
            aside.write_text(json.dumps({"done": self.done, "busy": self.busy}, indent=1) + "\n")


@dataclass
class Running:
    """A stage's process: it loads its libraries, and begins when it is told to."""

    process: subprocess.Popen[str]
    began: float | None = None

    def begin(self) -> None:
        """Lets it begin."""
        assert self.process.stdin is not None
        self.began = time.monotonic()
        with suppress(BrokenPipeError):  # it failed before: its status says so
            self.process.stdin.write("\n")
            self.process.stdin.close()


def room(memory: int | None) -> int:
    """How many stages a device takes at a time: 4 cores and 20 GiB of a GPU's `memory` (bytes) to each, 2 to 4."""
    places = (os.cpu_count() or 1) // CORES
    if memory is not None:
        places = min(places, memory // (20 << 30))
    return max(2, min(4, places))


@dataclass
class Places:
    """Which stages may begin: what they need is done, and there is a place for them."""

    schedule: Mapping[str, Part]
    beside: int  # stages at a time on each device
    lanes: int  # devices
    light: int = max(1, (os.cpu_count() or 1) // CORES)  # stages at a time that work on the cores

    def lane(self, name: str) -> int:
        """The device of a stage."""
        return self.schedule[name].lane % self.lanes

    def rivals(self, name: str, others: Collection[str]) -> list[str]:
        """Those of the others that take the same places."""
        part = self.schedule[name]
        same = [other for other in others if other != name and self.schedule[other].light == part.light]
        return same if part.light else [other for other in same if self.lane(other) == self.lane(name)]

    def limit(self, name: str) -> int:
        """How many of its kind may be at work."""
        return self.light if self.schedule[name].light else self.beside

    def ready(self, name: str, done: Collection[str], ended: Collection[str]) -> bool:
        """True when all that it needs is done and what it comes after has ended."""
        part = self.schedule[name]
        return all(need in done for need in part.needs) and (not part.after or part.after in ended)


def run(
    command: Callable[[str, str, float], list[str]],
    devices: Sequence[str],
    state: Path,
    deadline: float,
    beside: int,
    schedule: Mapping[str, Part] = SCHEDULE,
) -> bool:
    """Runs what is left of the schedule, at most `beside` stages at a time on a device; True when all of it is done.

    Of stages that could begin, the one at the head of the longest chain begins. `command(stage, device, minutes)` is
    the command line of one stage, which begins when it gets a line and ends within the minutes whether it is done or
    not: then with the exit status STOPPED. A stage that failed stops only those that need it, and is tried again when
    all is run again.
    """
    record, places = Record.read(state / "schedule.json"), Places(schedule, beside, len(devices))
    order = sorted(schedule, key=chains(schedule).__getitem__, reverse=True)
    stages: dict[str, Running] = {}
    failed: set[str] = set()
    last = time.monotonic()
    while True:
        now = time.monotonic()
        active = [name for name, stage in stages.items() if stage.began]
        for name in order if now < deadline else ():
            if name in record.done or name in active or name in failed:
                continue
            ended = failed.union(record.done)
            soon = places.ready(name, ended.union(active) - failed, ended.union(active))
            free = len(places.rivals(name, active)) < places.limit(name)
            begins = free and places.ready(name, record.done, ended)
            ahead = len(places.rivals(name, stages)) < AHEAD * places.limit(name)
            if name not in stages and (begins or (soon and ahead)):
                stages[name] = _start(name, command(name, devices[places.lane(name)], (deadline - now) / 60))
            if begins:
                stages[name].begin()
                active.append(name)
        if not active:
            for stage in stages.values():
                stage.process.kill()
            return len(record.done) == len(schedule)
        time.sleep(PACE)
        for lane in {places.lane(name) for name in active}:
            record.busy[lane] += time.monotonic() - last
        last = time.monotonic()
        for name in active:
            status = stages[name].process.poll()
            if status is None:
                continue
            began = stages.pop(name).began
            if status == 0:
                record.done[name] = round(last - (began or last), 1)
            else:
                failed.add(name)
                print(f"{name}: {'not done yet' if status == STOPPED else f'failed ({status})'}", flush=True)
            record.keep()


def _start(name: str, command: list[str]) -> Running:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, text=True, **pipes)  # pyright: ignore[reportCallIssue, reportArgumentType]
    threading.Thread(target=_tell, args=(name, process), daemon=True).start()
    return Running(process)


def _tell(name: str, process: subprocess.Popen[str]) -> None:
    """Prints what a stage says, behind its name where it does not name itself."""
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(line if line.startswith(name) else f"{name}: {line}")
        sys.stdout.flush()
