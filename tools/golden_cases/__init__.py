"""Golden tensors: reading a directory of them, comparing, and the list of families that this checkout can run.

A family is a module of this package with `FAMILIES: dict[str, Family]`. A family takes one Golden (one file of the
directory) and yields one Result per case; a file belongs to the family whose name its own name begins with.
The format is described in tests/golden/README.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from .recipe import fill

INPUT, MIDDLE, OUTPUT = "in", "mid", "out"


@dataclass(frozen=True)
class Result:
    """One case: the relative error in the 2-norm of its worst tensor, and the largest absolute error of all."""

    name: str
    relative: float
    absolute: float
    tolerance: float
    note: str = ""  # the worst tensor, or why there is none

    @property
    def ok(self) -> bool:
        return self.relative <= self.tolerance


@dataclass(frozen=True)
class Golden:
    """One file: its configuration, its weights by official name, its other tensors by full name."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)  # the JSON file beside the tensors, or alone

    def cases(self) -> list[str]:
        """Names of the cases in the file: everything that has an input or an output."""
        names = (name.split(".", 2) for name in self.tensors)
        return sorted({parts[1] for parts in names if len(parts) == 3 and parts[0] in (INPUT, OUTPUT)})

    def of(self, kind: str, case: str) -> dict[str, Tensor]:
        """Tensors of one case by argument name; kind is INPUT, MIDDLE or OUTPUT."""
        prefix = f"{kind}.{case}."
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def check(self, case: str, ours: Mapping[str, Tensor], tolerance: float | Mapping[str, float]) -> Result:
        """Compares `ours` ({"out.<what>" or "mid.<where>": tensor}) with this file's tensors of the case.

        Every `out` tensor of the case has to be there; intermediate ones are compared where `ours` has them. The
        tolerance is one number, or one for each name of `ours`. The worst tensor in terms of its tolerance is kept.
        """
        expected = {f"{OUTPUT}.{name}": tensor for name, tensor in self.of(OUTPUT, case).items()}
        expected |= {
            name: tensor
            for name, tensor in ((f"{MIDDLE}.{key}", value) for key, value in self.of(MIDDLE, case).items())
            if name in ours
        }
        results = [compare(f"{self.name}.{case}", expected.get(name), ours.get(name), name, tolerance)
                   for name in {**expected, **ours}]  # fmt: skip
        if not results:
            return Result(f"{self.name}.{case}", math.inf, math.inf, 0.0, "nothing to compare")
        worst = max(results, key=lambda result: result.relative / (result.tolerance or 1e-30))
        return replace(worst, absolute=max(result.absolute for result in results))


Family = Callable[[Golden], Iterable[Result]]


def compare(
    case: str, golden: Tensor | None, ours: Tensor | None, name: str, tolerance: float | Mapping[str, float]
) -> Result:
    """One tensor against another: |ours - golden| / |golden| in the 2-norm over all its elements, in float64."""
    limit = tolerance if isinstance(tolerance, float | int) else tolerance[name]
    if golden is None or ours is None:
        return Result(case, math.inf, math.inf, limit, f"{name} is only in {'ours' if golden is None else 'theirs'}")
    if golden.shape != ours.shape:
        return Result(case, math.inf, math.inf, limit, f"{name} is {list(ours.shape)}, not {list(golden.shape)}")
    golden, ours = golden.detach().double(), ours.detach().double()
    difference = ours - golden
    size = float(golden.norm()) or 1.0
    relative, absolute = float(difference.norm()) / size, float(difference.abs().max()) if difference.numel() else 0.0
    return Result(case, math.inf if math.isnan(relative) else relative, absolute, limit, name)


def read(path: Path) -> Golden:
    """Reads one `<name>.safetensors`, or a `<name>.json` that stands alone, with the weights that its recipe makes."""
    beside = path.with_suffix(".json")
    data = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    if path.suffix == ".json":
        return Golden(path.stem, data=data)
    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get("golden", "{}"))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    header = {**data, **{key: _parsed(value) for key, value in header.items()}}
    name, seed = str(header.get("name", path.stem)), int(header.get("seed", 0))
    stored = {key[3:]: tensor for key, tensor in tensors.items() if key.startswith("sd.")}
    recipe = header.get("recipe") or [] if header.get("weights") == "recipe" else []
    made = {key: fill(shape, seed, f"{name}|{key}", rule) for key, shape, rule in recipe if key not in stored}
    others = {key: tensor for key, tensor in tensors.items() if not key.startswith("sd.")}
    return Golden(name, header.get("config") or {}, seed, {**made, **stored}, others, data)


def _parsed(value: Any) -> Any:
    """Header values may be JSON inside JSON."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        return json.loads(value)
    return value
