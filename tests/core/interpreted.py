"""Test files of Triton programs run themselves on the CPU: Triton decides at its import whether it interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ON_DEVICE = INTERPRETED or torch.cuda.is_available()  # whether programs can run in this process

if INTERPRETED:  # Triton 3.6 makes a number of an array with one value, as the bound of a loop; numpy 2.4 refuses that
    from triton.runtime import interpreter

    patched = interpreter._patch_lang_tensor

    def _with_bounds(tensor, scope) -> None:
        patched(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = _with_bounds


def run_interpreted(file: str) -> str:
    """Runs a test file in a process that interprets, where every test has to pass; returns what pytest said."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=env, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout
