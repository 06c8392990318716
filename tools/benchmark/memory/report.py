"""The measurements as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PHASES = ("text encode", "VAE encode", "sampling", "VAE decode", "save")


def peak(changes: list[list[float]], start: float, stop: float) -> float:
    """GiB that were used at most between two times."""
    found, before = [], 0.0
    for time, used in changes:
        if time <= start:
            before = used
        elif time <= stop:
            found.append(used)
    return round(max([before, *found]) / 2**30, 2)


def forwards(entry: Row) -> list[float]:
    """Seconds from the end of one forward to the end of the next; the first from its own start."""
    found, last = [], None
    for forward in entry["forwards"]:
        found.append(round(forward["stop"] - (forward["start"] if last is None else last), 3))
        last = forward["stop"]
    return found


def switch(entry: Row) -> float | None:
    """First forward of the second expert minus a later one of it, in seconds."""
    ids = [forward["model"] for forward in entry["forwards"]]
    times = forwards(entry)
    first = next((index for index in range(1, len(ids)) if ids[index] != ids[0]), None)
    if first is None or first + 1 >= len(ids):
        return None
    return round(times[first] - min(times[first + 1 :]), 3)


def line(row: Row) -> str:
    """What one case came to."""
    name = f"{row['card']}: {row['engine']} {row['model']} {row['clip']}"
    parts = []
    for number, entry in enumerate(row["runs"]):
        text = f"run {number + 1} {entry['seconds']:.1f} s, forwards {forwards(entry)}, switch {switch(entry)}"
        parts.append(text + (f", FAILED {entry['problem']}" if entry["problem"] else ""))
        parts.extend(
            f"  {phase['name']}: {phase['stop'] - phase['start']:.2f} s, VRAM {phase['vram']}, torch "
            f"{phase['allocated']}, RAM {phase['ram']}, sent {phase['sent']} GB at {phase['rate']} GB/s, "
            f"from the disk {phase['disk']} GB, pinned {phase['pinned']} GiB"
            for phase in entry["phases"]
        )
        sent, disk = ([round(forward[what], 2) for forward in entry["forwards"]] for what in ("sent", "disk"))
        parts.append(f"  per forward, GB: sent {sent}, from the disk {disk}")
    tail = f"RAM peak {row.get('ram_group', 0):.1f} GiB" + ("" if row.get("limited", True) else ", RAM NOT LIMITED")
    tail += f", DIED: {row['died']}" if row.get("died") else ""
    return "\n  ".join([name, *parts, tail])


def write(rows: list[Row], folder: Path) -> None:
    """memory.json and memory.md."""
    (folder / "memory.json").write_text(json.dumps(rows), encoding="utf-8")
    head = ["card", "engine", "model", "clip", "run", "s", "forwards s", "switch s"]
    head += [f"{name}: VRAM / RAM GiB" for name in PHASES]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        for number, entry in enumerate(row["runs"]):
            cells = [row["card"], row["engine"], row["model"], row["clip"], "cold" if number == 0 else "again"]
            cells += [f"{entry['seconds']:.1f}", " ".join(f"{value:.2f}" for value in forwards(entry))]
            cells.append("" if switch(entry) is None else f"{switch(entry):.2f}")
            for name in PHASES:
                found = [phase for phase in entry["phases"] if phase["name"] == name]
                most = [max((phase[what] for phase in found), default=0) for what in ("vram", "ram")]
                cells.append(f"{most[0]:.1f} / {most[1]:.1f}" if found else "")
            if entry["problem"]:
                cells[5] = entry["problem"]
            lines.append(f"| {' | '.join(cells)} |")
        if row.get("died"):
            lines.append(f"| {row['card']} | {row['engine']} | {row['model']} | {row['clip']} | | {row['died']} |")
    (folder / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
