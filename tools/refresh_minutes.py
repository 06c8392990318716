"""Writes the minutes to expect into the notes of the bundled workflows: python3 tools/refresh_minutes.py

They come from one table, tools/minutes.json: seconds of each part of a workflow as measured on one card, and how many
times as long other cards take by their makers' data sheets. A test says when this has to be run again.

`pass` is one pass of the model with `measured_blocks` of its blocks, `blocks` the part of it that grows to all `of` of
them; `like` says whose passes were measured where they were not the model's own. The factors are the ratio of dense
16-bit tensor rates (989, 209, 165, 71 and 26 TFLOP/s), give or take a fifth. Cards of `without_float8` decode weights
that are stored so: a pass takes what bfloat16 took beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from setup.places import ROOT

TABLE = Path(__file__).with_name("minutes.json")
HEAD = "| card | minutes |\n| --- | --- |\n"
TIMES = re.compile(re.escape(HEAD) + r".*? from disk\.", re.DOTALL)


def seconds_of(parts: dict[str, float], slower: float = 1.0) -> float:
    """A whole run: text, pictures, every pass with all blocks of the model, decoding, saving; passes `slower`."""
    one_pass = slower * (parts["pass"] + parts["blocks"] * (parts["of"] / parts["measured_blocks"] - 1))
    return parts["text"] + parts["conditioning"] + parts["passes"] * one_pass + parts["decode"] + parts["save"]


def rounded(minutes: float) -> str:
    """Tenths below one minute, whole ones above; never 0."""
    return f"{max(0.1, round(minutes, 1)):g}" if minutes < 0.95 else f"{round(minutes)}"


def span(seconds: float, factors: Iterable[float]) -> str:
    """Minutes from the least to the most: "2 to 3", or one number where both round alike."""
    return " to ".join(dict.fromkeys(rounded(seconds * factor / 60) for factor in factors))


def times(title: str, table: dict[str, Any]) -> str:
    """The rows of the cards, and where they are from."""
    parts, card = table["workflows"][title], table["card"]
    seconds, decoded = seconds_of(parts), table["without_float8"]
    rows = ""
    for name, factors in {card: (1.0,), **table["times_as_long"]}.items():
        slower = decoded["pass"] if parts.get("float8") and name in decoded["cards"] else 1.0
        rows += f"| {name} | {span(seconds_of(parts, slower), factors)} |\n"
    like = parts.get("like", "the model")
    return (
        f"{HEAD}{rows}\nThe {card.split()[0]}'s {seconds:.0f} s follow from measured passes of {like}; "
        "the others are estimates from the cards' data sheets. *Wan 8-bit Layers* and *Wan 8-bit Attention* behind the "
        "models should take RTX 30 to 50 to about half of it, and change the clip slightly. "
        "The first run also reads the files from disk."
    )


def refresh(root: Path = ROOT) -> list[Path]:
    """Rewrites the notes that are out of date; returns their files. A note without such a table stays as it is."""
    table, written = json.loads(TABLE.read_text(encoding="utf-8")), []
    for file in sorted(root.glob("workflows/*.json")):
        text = file.read_text(encoding="utf-8")
        workflow = json.loads(text)
        (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
        values = note["widgets_values"]
        if HEAD not in values[0]:
            continue
        values[0] = TIMES.sub(lambda _, title=file.stem: times(title, table), values[0])
        if (fresh := json.dumps(workflow, indent=2, ensure_ascii=False) + "\n") != text:
            file.write_text(fresh, encoding="utf-8")
            written.append(file)
    return written


if __name__ == "__main__":
    for path in refresh():
        print(path.relative_to(ROOT))
