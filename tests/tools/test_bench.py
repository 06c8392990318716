"""The benchmark runs through on any machine, and its report says what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wancore.tools.benchmark import kept, predictions, weights, workloads
from wancore.wan_core.planner.rounding import InEightBits

ROOT = Path(__file__).parents[2]
DEFAULT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "comfyui-wancore" / "ComfyUI-0.30.0"


def test_smoke(tmp_path: Path) -> None:
    command = [sys.executable, "tools/bench.py", "--smoke", "--output", str(tmp_path)]
    environment = {**os.environ, "COMFYUI_PATH": os.environ.get("COMFYUI_PATH") or str(DEFAULT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((tmp_path / "bench.json").read_text())
    rows = {(row["workload"], row["what"], row["engine"]): row for row in report["rows"]}
    for workload in ("smoke 14B", "smoke 5B"):
        for what in ("bf16", "fp8 scaled"):
            assert rows[workload, what, "WanCore"]["seconds"] > 0
            assert rows[workload, what, "ComfyUI as shipped"]["seconds"] > 0
    for what in ("Q8_0", "Q4_K"):
        assert rows["smoke 14B", what, "WanCore"]["seconds"] > 0
        assert rows["smoke 14B", what, "WanCore, two LoRAs beside"]["seconds"] > 0
    for engine in ("WanCore", "ComfyUI as shipped"):
        assert rows["error: smoke", "bf16", engine]["error"] < 0.02
        assert 0 < rows["error: smoke", "fp8 scaled", engine]["error"] < 0.05
        assert rows["smoke VAE 2.1", "decode", engine]["seconds"] > 0
    assert rows["smoke VAE 2.1", "decode", "WanCore"]["error"] < 1e-3
    assert report["machine"]["ComfyUI"]
    assert "| smoke 14B | bf16 | WanCore |" in (tmp_path / "bench.md").read_text()
    assert "| RTX 4070 |" in (tmp_path / "bench.md").read_text()


# Rows of errors alone, an engine that runs out of memory, and a choice of nothing.
CHOSEN = """
import sys
from pathlib import Path
sys.path.insert(0, "tools")
import pack
pack.import_pack()
from dataclasses import replace
from wancore.tools.benchmark import run  # starts ComfyUI
from wancore.tools.benchmark import engines
folder, only = sys.argv[1], ["--smoke", "--only", "error", "--kinds", "bf16"]
rows = lambda *more: list(run.Benchmark(run.parse([*only, *more]), Path(folder)).rows())
with run.torch.inference_mode():
    print([(row.engine, row.what, row.error < 0.02) for row in rows("--engines", "WanCore", "ComfyUI, cuDNN first")])

    def full(*given):
        engines.OURS.ready(*given)
        raise run.torch.OutOfMemoryError("out of memory")

    run.ENGINES = (replace(engines.NATIVE, ready=full),)
    (row,) = rows("--engines", engines.NATIVE.name)
    print(row.note, len(engines.management.current_loaded_models))
run.main(["--smoke", "--only", "720p81", "--output", folder])
"""


def test_only_what_was_chosen_is_measured(tmp_path: Path) -> None:
    environment = {**os.environ, "COMFYUI_PATH": os.environ.get("COMFYUI_PATH") or str(DEFAULT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHOSEN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[('WanCore', 'bf16', True)]", "out of memory 0"], done.stderr[-2000:]
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("Nothing to measure: --smoke --only 720p81")


# Seconds of whole forwards on an H200, None where none was run: docs/performance.md.
WAYS = (
    {"float8": False},
    {"float8": True},
    {"float8": True, "eight_bits": InEightBits(attention=True)},
    {"float8": False, "eight_bits": InEightBits(attention=True, layers=True)},
)
MEASURED = {"480p81": (2.47, 1.99, 1.73, 1.94), "720p81": (9.8, 8.40, 6.94, 7.32), "5b": (0.792, 0.633, 0.550, None)}


def test_predictions_are_near_what_was_measured() -> None:
    needed = predictions.work(workloads.FORWARDS["480p81"])
    assert needed.linear + needed.attention == pytest.approx(1.678e15, rel=0.005)  # counted by hand from the layers
    for name, seconds in MEASURED.items():
        for way, value in zip(WAYS, seconds, strict=True):
            found = predictions.seconds(workloads.FORWARDS[name], "H200", **way)
            assert value is None or found == pytest.approx(value, rel=0.05), (name, way)
    assert "not measured" in predictions.markdown(workloads.FORWARDS)


def test_kept_files_are_found_again_by_all_they_depend_on(tmp_path: Path) -> None:
    small, full = (kept.Kept(tmp_path, torch.device("cpu"), smoke=smoke) for smoke in (True, False))
    assert small.path("vae21", None, "bf16") != full.path("vae21", None, "bf16")
    assert small.path("ti2v_5B", 2, "Q8_0", "gguf") != full.path("ti2v_5B", 2, "Q8_0", "gguf")
    for layers in (1, 2):
        path = small.transformer("t2v_A14B_expert", "bf16", layers)
        small.write_loras("t2v_A14B_expert", layers)
        small.write_loras("ti2v_5B", layers)
        loras = kept.loras_beside(path)
        assert len(loras) == kept.LORAS and all("t2v_A14B_expert" in lora.name for lora in loras)
        for each in (path, *loras):
            blocks = {int(name.split("blocks.")[1][0]) for name in load_file(each) if "blocks." in name}
            assert blocks == {*range(layers)}


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    def broken():
        yield "a", torch.ones(3)
        raise KeyboardInterrupt

    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        weights.write(broken(), path)
    assert not list(tmp_path.iterdir())
    weights.write([("a", torch.ones(3))], path)
    with pytest.raises(KeyboardInterrupt):
        weights.write(broken(), path)
    assert list(tmp_path.iterdir()) == [path]  # what was whole stays
