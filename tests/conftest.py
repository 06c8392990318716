"""Makes the checkout importable as `wancore` for every test."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("wancore_tools_pack", Path(__file__).parents[1] / "tools" / "pack.py")
assert _spec is not None and _spec.loader is not None
_pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_pack)
_pack.import_pack()
