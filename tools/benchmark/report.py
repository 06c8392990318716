"""The table, as JSON, Markdown and on the terminal."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ...nodes.bridge.host import comfyui_version
from ...wan_core import attention, paths
from .timing import Row

PACKAGES = ("triton", "comfy-kitchen", "comfy-aimdo", "flash-attn-4", "nvidia-cudnn-frontend")
HEADS = ("workload", "what", "engine", "seconds", "first call", "peak GiB", "error", "")


def machine() -> dict[str, str]:
    """What ran, by versions."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    found = {"card": card, "torch": torch.__version__, "ComfyUI": comfyui_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    path = paths.float8_linear(paths.card_of())
    return {
        **found,
        "float8 layers": f"{path.name}: {path.why}",
        "attention": ", ".join(attention.taken()) or "-",
        "attention that failed": ", ".join(attention.refused()) or "-",
    }


def markdown(rows: Sequence[Row]) -> str:
    """One table."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}"]
    for row in rows:
        numbers = [_text(value) for value in (row.seconds, row.first, row.peak, row.error)]
        lines.append(f"| {' | '.join((row.workload, row.what, row.engine, *numbers, row.note))} |")
    return "\n".join(lines)


def write(rows: Sequence[Row], folder: Path) -> None:
    """bench.json and bench.md."""
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    (folder / "bench.json").write_text(
        json.dumps({"machine": about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n", encoding="utf-8"
    )
    head = "\n".join(f"- {name}: {value}" for name, value in about.items())
    (folder / "bench.md").write_text(f"{head}\n\n{markdown(rows)}\n", encoding="utf-8")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if value < 1 else f"{value:.2f}"
