"""The minutes in the notes of the bundled workflows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from measure_minutes import prompt_of, row
from refresh_minutes import HEAD, TABLE, refresh, rounded, seconds_of, span, times
from setup.places import ROOT

S2V = "Wan 2.2 Sound to Video"


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
    assert seconds_of({**parts, "decode": 3, "save": 1}, 1.5) == pytest.approx(1 + 2 + 1.5 * 4 * (0.1 + 1.6) + 3 + 1)


def test_cards_without_float8_take_longer_with_files_in_it():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    longer = {}
    for title in ("Wan 2.2 Text to Video", "Wan 2.2 Text to Video GGUF"):
        told = times(title, table), times(title, {**table, "without_float8": {"cards": [], "pass": 1.18}})
        longer[title] = {card for card in table["times_as_long"] if len({row_of(note, card) for note in told}) == 2}
    assert longer == {
        "Wan 2.2 Text to Video": {"RTX 3090 24 GB", "RTX 3060 12 GB"},
        "Wan 2.2 Text to Video GGUF": set(),
    }


def row_of(note: str, card: str) -> str:
    return next(line for line in note.splitlines() if card in line)


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


def test_a_row_is_that_of_the_second_run():
    phases = [("text encode", 1, 3), ("other", 3, 4), ("VAE encode", 4, 8), ("sampling", 8, 40), ("save", 40, 41.5)]
    second = {
        "phases": [{"name": name, "start": start, "stop": stop} for name, start, stop in phases],
        "forwards": [{"start": 10, "stop": 16, "blocks": 4.5}, {"start": 20, "stop": 26, "blocks": 5.5}],
    }
    found = {"runs": [{"phases": [], "forwards": []}, second]}
    measured = row(found, steps=2, blocks=(10, 40))
    assert measured.keys() - {"passes"} == set(json.loads(TABLE.read_text())["workflows"][S2V]) - {
        "like",
        "passes",
        "float8",
    }
    assert seconds_of({**measured, "passes": 20}) == pytest.approx(2 + 5 + 20 * (1 + 4 * 5) + 1.5)


def test_files_of_loras_are_not_made_up():
    assert {node["inputs"].get("steps") for node in prompt_of(S2V, 3).values()} == {None, 3}
    with pytest.raises(SystemExit, match="has LoRAs"):
        prompt_of("Wan 2.2 Text to Video", 3)
