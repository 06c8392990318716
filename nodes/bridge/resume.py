"""Which log a run's models answer from: where it is kept, and what an answer depends on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from .identity import graph_digest, model_identity
from .replay import ReplayLog, digest

Models = tuple[Any, Any | None]


@dataclass(frozen=True)
class Logged:
    """High and low expert of a run, with their answers logged or as they were."""

    models: Models
    log: ReplayLog | None = None  # None where the run cannot be resumed
    remarks: tuple[str, ...] = ()  # why not

    def report(self) -> str:
        """What the node says behind "sampled"."""
        return "" if self.log is None else self.log.report()


def logged(
    models: Models,
    prompts: tuple[Any, Any],
    sampling: Any,
    graph: Any,
    node_id: str | None,
    tell: Callable[[str], None] | None = None,
) -> Logged:
    """High and low with logged answers; as they were where it cannot be told what those depend on.

    `sampling` is what the models are told of sigma; `graph` the prompt that is run (API format), in which node
    `node_id` has the inputs high and low.
    """
    high, low = models
    try:
        common = digest(*prompts, sampling)
        makers = [graph_digest(graph, node_id, name) for name in ("high", "low")]
    except (TypeError, LookupError) as error:
        return Logged(models, remarks=(f"this run cannot be resumed: {error}",))
    log = ReplayLog(Path(folder_paths.get_user_directory()) / "wancore" / "resume", tell)
    high = log.on(high, digest(common, makers[0], model_identity(high)), lasting=low is not None)
    if low is not None:
        low = log.on(low, digest(common, makers[1], model_identity(low)), lasting=False)
    return Logged((high, low), log)
