"""The minutes in the notes of the bundled workflows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from refresh_minutes import HEAD, TABLE, refresh, rounded, seconds_of, span
from setup.places import ROOT


def test_the_notes_are_those_of_the_table(tmp_path: Path):
    """Else run tools/refresh_minutes.py."""
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows")
    assert refresh(tmp_path) == []


def test_every_workflow_but_the_long_one_has_its_own():
    notes = {file.stem: file.read_text(encoding="utf-8") for file in (ROOT / "workflows").glob("*.json")}
    told = {title for title, text in notes.items() if json.dumps(HEAD)[1:-1] in text}
    assert told == set(json.loads(TABLE.read_text(encoding="utf-8"))["workflows"])
    assert notes.keys() - told == {"Wan 2.2 Long Video"}  # three times text to video, it says


def test_all_blocks_count():
    parts = {"text": 1, "conditioning": 2, "pass": 0.5, "blocks": 0.4, "measured_blocks": 10, "of": 40, "passes": 4}
    assert seconds_of({**parts, "decode": 3, "save": 1}) == pytest.approx(1 + 2 + 4 * (0.1 + 1.6) + 3 + 1)


def test_minutes_are_rounded_for_people():
    assert [rounded(minutes) for minutes in (0.01, 0.34, 0.94, 0.96, 1.4, 12.6)] == [
        "0.1",
        "0.3",
        "0.9",
        "1",
        "1",
        "13",
    ]
    assert span(30, (1.0,)) == "0.5" and span(60, (3.0, 4.0)) == "3 to 4" and span(60, (3.0, 3.2)) == "3"
