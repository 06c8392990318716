"""The run of all stages: their order, how many share a device, and that a run that was stopped goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from wancore.pocket.training.schedule import SCHEDULE, STOPPED, Part, Record, run
from wancore.pocket.training.stages import STAGES

STAGE = "import sys, time; sys.stdin.readline(); open({log!r}, 'a').write({name!r} + ' '); time.sleep(0.2); {then}"
PARTS = {"a": Part(), "b": Part(), "c": Part(("a", "b")), "d": Part(("c",), lane=1), "e": Part(("d",))}


def film(folder: Path, then: dict[str, str], *, beside: int = 2, seconds: float = 60.0) -> tuple[bool, list[str]]:
    """Runs PARTS; returns whether all are done, and the stages in the order in which they began."""
    log = folder / "log"
    log.write_text("")

    def command(name: str, device: str, minutes: float) -> list[str]:
        assert minutes > 0 and device == ("y" if name == "d" else "x")
        return [sys.executable, "-c", STAGE.format(log=str(log), name=name, then=then.get(name, "pass"))]

    done = run(command, ["x", "y"], folder, time.monotonic() + seconds, beside, PARTS)
    return done, log.read_text().split()


def test_stages_begin_when_what_they_need_is_done(tmp_path: Path):
    done, order = film(tmp_path, {})
    assert done and sorted(order[:2]) == ["a", "b"] and order[2:] == ["c", "d", "e"]
    record = Record.read(tmp_path / "schedule.json")
    assert set(record.done) == set(PARTS) and record.busy[0] > record.busy[1] > 0


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path):
    done, order = film(tmp_path, {"c": f"sys.exit({STOPPED})"})
    assert not done and sorted(order) == ["a", "b", "c"]
    done, order = film(tmp_path, {})
    assert done and order == ["c", "d", "e"]


def test_what_failed_stops_only_what_needs_it(tmp_path: Path):
    done, order = film(tmp_path, {"a": "raise ValueError"}, beside=1)
    assert not done and order == ["a", "b"]


def test_the_schedule_has_every_stage_after_what_it_needs():
    assert set(SCHEDULE) <= set(STAGES)
    assert all(need in SCHEDULE for part in SCHEDULE.values() for need in part.needs)
    left, done = dict(SCHEDULE), set()
    while left:
        now = {name for name, part in left.items() if set(part.needs) <= done}
        assert now, left
        done |= now
        left = {name: part for name, part in left.items() if name not in now}
