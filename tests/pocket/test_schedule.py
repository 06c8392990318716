"""The run of all stages: their order, how many share a device, and that a run that was stopped goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from wancore.pocket.training.schedule import SCHEDULE, STOPPED, Part, Record, chains, room, run
from wancore.pocket.training.stages import STAGES

STAGE = "import sys, time; sys.stdin.readline(); open({log!r}, 'a').write({name!r} + ' '); time.sleep(0.2); {then}"
PARTS = {"a": Part(), "b": Part(), "c": Part(("a", "b")), "d": Part(("c",), lane=1), "e": Part(("d",))}


def film(
    folder: Path,
    then: dict[str, str],
    *,
    beside: int = 2,
    seconds: float = 60.0,
    parts: dict[str, Part] = PARTS,
) -> tuple[bool, list[str]]:
    """Runs the parts; returns whether all are done, and the stages in the order in which they began."""
    log = folder / "log"
    log.write_text("")

    def command(name: str, device: str, minutes: float) -> list[str]:
        assert minutes > 0 and device == "xy"[parts[name].lane]
        return [sys.executable, "-c", STAGE.format(log=str(log), name=name, then=then.get(name, "pass"))]

    done = run(command, ["x", "y"], folder, time.monotonic() + seconds, beside, parts)
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


def test_the_longest_chain_begins_first(tmp_path: Path):
    parts = {"a": Part(seconds=9), "b": Part(seconds=1), "c": Part(("b",), seconds=9), "d": Part(seconds=2)}
    assert chains(parts) == {"a": 9, "b": 10, "c": 9, "d": 2}
    assert film(tmp_path, {}, beside=1, parts=parts) == (True, ["b", "a", "c", "d"])


def test_what_comes_after_a_stage_waits_for_its_end_and_not_for_its_success(tmp_path: Path):
    parts = {"a": Part(after="b", seconds=5), "b": Part(light=True), "c": Part(("b",))}
    done, order = film(tmp_path, {"b": "raise ValueError"}, parts=parts)
    assert not done and order == ["b", "a"]
    assert set(Record.read(tmp_path / "schedule.json").done) == {"a"}


def test_stages_that_work_on_the_cores_take_no_place_on_a_device(tmp_path: Path):
    meets = "p = {folder!r}; open(p + '/{me}', 'w'); e = time.time() + 20\nwhile not os.path.exists(p + '/{other}'):\n"
    meets = "exec({!r})".format("import os\n" + meets + " assert time.time() < e; time.sleep(0.05)")
    then = {me: meets.format(folder=str(tmp_path), me=me, other=other) for me, other in ("ab", "ba")}
    parts = {"a": Part(), "b": Part(light=True)}
    assert film(tmp_path, then, beside=1, parts=parts)[0]


def test_a_device_takes_as_many_stages_as_it_has_memory_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert room(141 << 30) == room(None) == 4 and room(48 << 30) == 2
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert room(141 << 30) == 2


def test_equal_shapes_are_compiled_once():
    for name, part in SCHEDULE.items():
        kind = {"lora_ti2v": "lora5b"}.get(name, name.partition("_")[0])
        if f"compile_{kind}" in SCHEDULE and not part.light:
            needed, todo = set(), [name]
            while todo:
                its = SCHEDULE[todo.pop()]
                needed.update(its.needs, [its.after])
                todo += its.needs
            assert f"compile_{kind}" in needed, name


def test_the_schedule_has_every_stage_after_what_it_needs():
    assert set(SCHEDULE) <= set(STAGES)
    assert all(need in SCHEDULE for part in SCHEDULE.values() for need in part.needs)
    assert all(part.after in SCHEDULE for part in SCHEDULE.values() if part.after)
    left, done = dict(SCHEDULE), set()
    while left:
        now = {name for name, part in left.items() if set(part.needs) <= done}
        assert now, left
        done |= now
        left = {name: part for name, part in left.items() if name not in now}
