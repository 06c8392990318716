"""The table, as JSON, Markdown and on the terminal."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...nodes.bridge.host import comfyui_version
from ...wan_core import attention, paths
from .timing import Row

PACKAGES = ("triton", "comfy-kitchen", "comfy-aimdo", "flash-attn-4", "nvidia-cudnn-frontend")
HEADS = ("workload", "what", "engine", "seconds", "first call", "peak GiB", "error", "")


def versions() -> dict[str, str]:
    """What the machine is made of."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    found = {"card": card, "torch": torch.__version__, "ComfyUI": comfyui_version() or "-"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    return found


def machine() -> dict[str, str]:
    """What ran, by versions, and what it chose."""
    path = paths.float8_linear(paths.card_of())
    return {
        **versions(),
        "float8 layers": f"{path.name}: {path.why}",
        "attention": ", ".join(attention.taken()) or "-",
        "attention that failed": ", ".join(attention.refused()) or "-",
    }


def markdown(rows: Sequence[Row]) -> str:
    """One table."""
    lines = []
    for row in rows:
        numbers = [_text(value) for value in (row.seconds, row.first, row.peak, row.error)]
        lines.append((row.workload, row.what, row.engine, *numbers, row.note))
    return table(HEADS, lines)


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join([f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(x)} |" for x in lines)])


def write(rows: Sequence[Row], folder: Path) -> None:
    """bench.json and bench.md."""
    save(folder / "bench", machine(), [asdict(row) for row in rows], markdown(rows))


def save(path: Path, about: dict[str, str], rows: Sequence[dict[str, Any]], text: str) -> None:
    """`path`.json with the rows, `path`.md with their table, both with what ran."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(
        json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8"
    )
    head = "\n".join(f"- {name}: {value}" for name, value in about.items())
    path.with_suffix(".md").write_text(f"{head}\n\n{text}\n", encoding="utf-8")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"
