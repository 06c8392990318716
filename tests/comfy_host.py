"""Brings ComfyUI into the test process, on CPU, for tests that use its classes directly."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "comfyui-wancore" / "ComfyUI-0.30.0"


def import_comfy() -> Path:
    """Puts ComfyUI on sys.path and switches its options to CPU before anything of it is imported.

    The folder is COMFYUI_PATH or the one that `tools/test.py` unpacked. Safe to call again.
    """
    folder = Path(os.environ.get("COMFYUI_PATH") or DEFAULT)
    if not (folder / "comfy").is_dir():
        raise RuntimeError(f"no ComfyUI at {folder}: run python3 tools/test.py once, or set COMFYUI_PATH")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        if sys.pycache_prefix is None:
            sys.dont_write_bytecode = True  # the installation stays as it was
        import comfy.options

        comfy.options.enable_args_parsing()
        argv, sys.argv = sys.argv, ["test", "--cpu"]
        import comfy.cli_args  # reads sys.argv now

        # As main.py does, before ComfyUI puts its own folder first on sys.path, which has another `utils`.
        importlib.import_module("utils")
        sys.argv = argv
    return folder
