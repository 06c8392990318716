"""One case in a process of its own: the prompt cold, then again, with what each phase took. Result: one JSON file."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import host, ram

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: list[str]) -> int:
    """Reads its orders from a JSON file: prompts, base, cpu, ram, group, rate, cudnn_first, output."""
    orders = json.loads(Path(arguments[1]).read_text(encoding="utf-8"))
    if orders["group"]:
        ram.enter(Path(orders["group"]))
    if orders["ram"]:
        ram.tell(orders["ram"])
    began = time.time()
    host.start(Path(orders["base"]), cpu=orders["cpu"])

    from .link import Link
    from .phases import Watch

    watch = Watch({}, None)
    executor = host.Executor(ROOT, watch.heard)
    if not orders["cpu"]:
        watch.link = Link(orders["rate"])
        watch.link.install()
        if orders["cudnn_first"]:
            _put_cudnn_first()
    watch.around_forwards()
    found: dict[str, Any] = {
        "started": round(time.time() - began, 2),
        "native_rate": round(watch.link.native_rate, 1) if watch.link else 0.0,
        "runs": [],
    }
    for prompt in orders["prompts"]:
        watch.prompt, watch.phases, watch.forwards = prompt, [], []
        start = time.time()
        seconds, problem = executor.run(prompt)
        watch.end()
        found["runs"].append(
            {
                "start": start,
                "seconds": round(seconds, 3),
                "problem": problem,
                "phases": [asdict(phase) for phase in watch.phases],
                "forwards": watch.forwards,
                "ram_peak": round(ram.status("VmHWM") / 2**30, 2),
            }
        )
        Path(orders["output"]).write_text(json.dumps(found), encoding="utf-8")
        if problem:
            break
    sys.stdout.flush()
    os._exit(0)  # nothing is left to tidy up, and taking a model apart takes seconds


def _put_cudnn_first() -> None:
    import comfy.ops
    from torch.nn.attention import SDPBackend

    comfy.ops.SDPA_BACKEND_PRIORITY.sort(key=lambda backend: backend is not SDPBackend.CUDNN_ATTENTION)
