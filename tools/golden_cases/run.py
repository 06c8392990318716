"""Runs every golden case of a directory and prints one line for each."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from . import Family, Golden, Result, read
from . import __name__ as package
from . import __path__ as folders

HELPERS = ("recipe", "run")
NO_CASES = ("manifest",)  # lists the files' hashes


def families() -> dict[str, Family]:
    """Every family of this package by the beginning of its files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(folders) if module.name not in HELPERS)
    modules = [importlib.import_module(f"{package}.{name}") for name in names]
    return {key: family for module in modules for key, family in module.FAMILIES.items()}


def files(directory: Path) -> list[Path]:
    """The golden files of a directory: tensors, and JSON files without tensors beside them."""
    tensors = sorted(directory.glob("*.safetensors"))
    stems = {path.stem for path in tensors} | set(NO_CASES)
    return tensors + sorted(path for path in directory.glob("*.json") if path.stem not in stems)


def results(directory: Path) -> Iterator[Result | str]:
    """One Result per case, or the name of a file that no family here takes."""
    known = families()
    for path in files(directory):
        try:
            golden = read(path)
            key = max((name for name in known if golden.name.startswith(name)), key=len, default=None)
            if key is None:
                yield golden.name
                continue
            yield from _cases(golden, known[key])
        except Exception as error:  # noqa: BLE001  (whatever a case raises is that case's failure, not the runner's)
            yield Result(path.stem, math.inf, math.inf, 0.0, f"{type(error).__name__}: {error}")


def _cases(golden: Golden, family: Family) -> Iterator[Result]:
    count = 0
    for result in family(golden):
        count += 1
        yield result
    if not count:
        yield Result(golden.name, math.inf, math.inf, 0.0, "no case in the file")


def line(result: Result) -> str:
    """`name  relative error  largest absolute error  tolerance  ok` (or FAIL and where)."""
    numbers = f"{result.relative:9.2e}  max abs {result.absolute:9.2e}  tolerance {result.tolerance:7.0e}"
    return f"{result.name:<36} {numbers}  {'ok' if result.ok else f'FAIL  {result.note}'}"


def main(arguments: list[str]) -> int:
    """Prints the lines and the closing count; returns 0 where every case passed and there was at least one."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: python3 tools/golden.py DIR   (a directory of golden tensors, for instance tests/golden)")
        return 2
    passed = failed = 0
    for result in results(Path(arguments[0])):
        if isinstance(result, str):
            print(f"{result:<36} skipped: not implemented")
            continue
        print(line(result), flush=True)
        passed, failed = passed + result.ok, failed + (not result.ok)
    print(f"{passed} passed, {failed} failed")
    return 0 if passed and not failed else 1
