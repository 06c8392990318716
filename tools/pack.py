"""Imports this checkout as the package `wancore`, whatever its folder is called, as ComfyUI does with a custom node.

The checkout itself never goes on sys.path: its `nodes` would hide ComfyUI's module of that name.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NAME = "wancore"


def import_pack() -> ModuleType:
    """Registers the checkout in sys.modules and returns it; `import wancore.wan_core` works afterwards."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module
