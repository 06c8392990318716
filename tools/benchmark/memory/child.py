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
    """Reads its orders from a JSON file: runs, base, cpu, ram, group, rate, output."""
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
        if orders["rate"]:
            _tell_planner(orders["rate"])
    watch.around_forwards()
    found: dict[str, Any] = {
        "started": round(time.time() - began, 2),
        "native_rate": round(watch.link.native_rate, 1) if watch.link else 0.0,
        "runs": [],
    }
    last = ""
    for order in orders["runs"]:
        if last and order["engine"] != last:
            executor.forget()
        last = order["engine"]
        _order_attention(cudnn_first=order["cudnn_first"])
        watch.prompt, watch.phases, watch.forwards = order["prompt"], [], []
        start = time.time()
        seconds, problem = executor.run(order["prompt"])
        watch.end()
        found["runs"].append(
            {
                "engine": order["engine"],
                "start": start,
                "seconds": round(seconds, 3),
                "problem": problem,
                "phases": [asdict(phase) for phase in watch.phases],
                "forwards": watch.forwards,
                "ram_peak": round(ram.status("VmHWM") / 2**30, 2),
            }
        )
        Path(orders["output"]).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # nothing is left to tidy up, and taking a model apart takes seconds


def _tell_planner(rate: float) -> None:
    """The planner measures the machine's link with copies of its own, which nothing slows."""
    for name, module in sys.modules.copy().items():
        if name.endswith(".bridge.planning"):
            module.link = lambda _index: rate  # pyright: ignore[reportAttributeAccessIssue]


def _order_attention(*, cudnn_first: bool) -> None:
    """ComfyUI's order of PyTorch's attention kernels, or with cuDNN's before the others."""
    import comfy.ops

    order = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
    if order is None:
        return
    if not _AS_SHIPPED:
        _AS_SHIPPED.extend(order)
    order[:] = sorted(_AS_SHIPPED, key=lambda kernel: cudnn_first and kernel.name != "CUDNN_ATTENTION")


_AS_SHIPPED: list[Any] = []
