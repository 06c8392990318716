"""The order in which the family is trained, and the run of all of it: stages side by side, each a process of its own.

A stage begins when what it needs is done. Models this small leave much of a GPU idle, so several share one (with
NVIDIA's MPS; without it they only take turns). With two GPUs the second takes the stages of lane 1. What is done is
kept in a file, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

STOPPED = 75  # exit status of a stage that the clock stopped and that goes on when it is run again
PACE = 0.5  # seconds between looks at the running stages
AHEAD = 2  # processes to a stage at work: some load their libraries while their turn comes
EXPERTS = ("t2v_high", "t2v_low")


@dataclass(frozen=True)
class Part:
    """One stage: what has to be done before, and which of two GPUs it runs on."""

    needs: tuple[str, ...] = ()
    lane: int = 0


SCHEDULE: dict[str, Part] = {
    "vae21": Part(),
    "text": Part(),
    "vae22": Part(lane=1),
    "latents_a": Part(("text", "vae21")),
    "latents_b": Part(("text", "vae21")),
    "t2v_both": Part(("latents_a", "latents_b")),
    "t2v_high": Part(("t2v_both",)),
    "t2v_low": Part(("t2v_both",)),
    "latents_5b": Part(("text", "vae22"), lane=1),
    "ti2v": Part(("latents_5b", "t2v_both"), lane=1),
    "latents_i2v": Part(("text", "vae21")),
    "i2v_high": Part(("latents_i2v", "t2v_high")),
    "i2v_low": Part(("latents_i2v", "t2v_low")),
    "lora_high": Part(EXPERTS),
    "lora_low": Part(EXPERTS),
    "lora_ti2v": Part(("ti2v",), lane=1),
    "style_high": Part(EXPERTS, lane=1),
    "style_low": Part(EXPERTS, lane=1),
    "slow_high": Part(EXPERTS, lane=1),
    "voice": Part(lane=1),
    "latents_s2v": Part(("text", "vae21", "voice"), lane=1),
    "s2v": Part(("latents_s2v",), lane=1),
    "latents_vace": Part(("text", "vae21"), lane=1),
    "latents_animate": Part(("text", "vae21"), lane=1),
    "vace_high": Part(("latents_vace", "t2v_high"), lane=1),
    "vace_low": Part(("latents_vace", "t2v_low"), lane=1),
    "animate": Part(("latents_animate",), lane=1),
    "judge_world": Part(),
    "judge_t2v": Part(EXPERTS),
    "judge_4steps": Part(("lora_high", "lora_low")),
    "judge_i2v": Part(("i2v_high", "i2v_low")),
    "judge_ti2v": Part(("ti2v",), lane=1),
    "judge_ti2v_4steps": Part(("lora_ti2v",), lane=1),
    "judge_s2v": Part(("s2v",), lane=1),
    "judge_vace": Part(("vace_high", "vace_low"), lane=1),
    "judge_animate": Part(("animate",), lane=1),
}


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
        self.path.write_text(json.dumps({"done": self.done, "busy": self.busy}, indent=1) + "\n")


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


def run(
    command: Callable[[str, str, float], list[str]],
    devices: Sequence[str],
    state: Path,
    deadline: float,
    beside: int,
    schedule: Mapping[str, Part] = SCHEDULE,
) -> bool:
    """Runs what is left of the schedule, at most `beside` stages at a time on a device; True when all of it is done.

    `command(stage, device, minutes)` is the command line of one stage, which begins when it gets a line and ends within
    the minutes whether it is done or not: then with the exit status STOPPED. A stage that failed stops only those that
    need it, and is tried again when all is run again.
    """
    record = Record.read(state / "schedule.json")
    stages: dict[str, Running] = {}
    failed: set[str] = set()
    last = time.monotonic()
    while True:
        now = time.monotonic()
        active = [name for name, stage in stages.items() if stage.began]
        for name, part in schedule.items() if now < deadline else ():
            if name in record.done or name in active or name in failed:
                continue
            lane = part.lane % len(devices)
            here = [other for other in stages if schedule[other].lane % len(devices) == lane]
            soon = all(need in record.done or need in active for need in part.needs)
            if name not in stages and soon and len(here) < AHEAD * beside:
                stages[name] = _start(name, command(name, devices[lane], (deadline - now) / 60))
            free = len([other for other in here if other in active]) < beside
            if name in stages and free and all(need in record.done for need in part.needs):
                stages[name].begin()
                active.append(name)
        if not active:
            for stage in stages.values():
                stage.process.kill()
            return len(record.done) == len(schedule)
        time.sleep(PACE)
        for lane in {schedule[name].lane % len(devices) for name in active}:
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
