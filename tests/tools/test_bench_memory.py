"""The memory benchmark runs through on any machine; its files are what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from wancore.tools.benchmark.memory import cases, graphs, least_ram, ram, report
from wancore.wan_core.weights import inspect

from ..comfy_host import import_comfy
from ..core.hollow_files import Nothing

ROOT = Path(__file__).parents[2]
DEFAULT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "comfyui-wancore" / "ComfyUI-0.30.0"


def test_smoke(tmp_path: Path) -> None:
    command = [sys.executable, "tools/bench_memory.py", "--smoke", "--models", "i2v-fp8", "--output", str(tmp_path)]
    environment = {**os.environ, "COMFYUI_PATH": os.environ.get("COMFYUI_PATH") or str(DEFAULT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--engines", "WanCore"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "memory.json").read_text())
    assert [entry["problem"] for entry in row["runs"]] == ["", ""]
    names = [phase["name"] for phase in row["runs"][1]["phases"]]
    assert names == ["text encode", "VAE encode", "sampling", "VAE decode", "save"]  # nothing is loaded twice
    assert all(len(report.forwards(entry)) == 4 and entry["ram_peak"] > 0 for entry in row["runs"])
    assert report.switch(row["runs"][0]) is not None
    assert "| again |" in (tmp_path / "memory.md").read_text()


@pytest.mark.parametrize("name", cases.MODELS)
def test_both_graphs_make_the_same_clip(name: str) -> None:
    model, clip = cases.MODELS[name], cases.CLIPS["480p81"]
    ours, native = graphs.ours(model, clip, "a"), graphs.native(model, clip, "a")
    rounded = graphs.ours_in_8_bits(model, clip, "a")
    (attention,) = (node for node in rounded.values() if node["class_type"] == "WanCoreAttention8")
    assert list(attention["inputs"]) == ["high", "low"][: len(model.files)]
    for prompt in (ours, rounded, native):
        links = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]
        assert all(link[0] in prompt for link in links)
        text = json.dumps(prompt)
        assert all(file in text for file in (*model.files, model.vae, model.text_encoder)) and '"steps": 4' in text
    assert not any(node["class_type"] == "WanCoreLoraPair" for node in ours.values())
    sizes = [node["inputs"] for node in (*ours.values(), *native.values()) if "length" in node["inputs"]]
    assert {(size["width"], size["height"], size["length"]) for size in sizes} == {(832, 480, 81)}
    assert graphs.reseeded(ours, 7) != ours != graphs.reseeded(ours, 8)


def test_written_files_are_what_they_say(tmp_path: Path) -> None:
    from wancore.tools.benchmark.memory import files

    for name, model in cases.MODELS.items():
        path = files.transformer(tmp_path / model.files[0], model.shapes, model.precision, numbers=Nothing(0))
        found = inspect(path)
        assert found.kind == "diffusion_model" and found.expert == (None if name == "ti2v-5B" else "high")
        assert found.precision == {"fp8": "fp8_e4m3fn"}.get(model.precision, model.precision)
        assert found.config is not None and found.config.num_layers == (30 if name == "ti2v-5B" else 40)


@pytest.mark.parametrize("precision", ["fp8", "Q4_K"])
def test_an_interrupted_write_leaves_no_file(precision: str, tmp_path: Path) -> None:
    from wancore.tools.benchmark.memory import files

    class Full(Nothing):
        """A disk that is full after a few tensors."""

        left = 5

        def write(self, file: Any, kind: str, count: int) -> None:
            self.left -= 1
            if not self.left:
                raise OSError("no space left on device")
            super().write(file, kind, count)

    with pytest.raises(OSError, match="no space"):
        files.transformer(tmp_path / "a", "ti2v_5B", precision, layers=1, numbers=Full(0))
    assert not list(tmp_path.iterdir())


def test_peaks_are_those_between_two_times() -> None:
    changes = [[1.0, 2 * 2**30], [2.0, 5 * 2**30], [3.0, 2**30]]
    assert report.peak(changes, 0.5, 1.5) == 2.0
    assert report.peak(changes, 1.5, 2.5) == 5.0
    assert report.peak(changes, 2.5, 9.0) == 5.0  # what was there when it began
    assert report.peak(changes, 3.5, 9.0) == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_phase_has_the_most_ram_that_it_took() -> None:
    import_comfy()
    from wancore.tools.benchmark.memory import phases

    watch = phases.Watch({}, None)
    watch.begin("VAE decode")
    canvas = torch.ones(2**28, dtype=torch.uint8)
    time.sleep(4 * ram.PAUSE)
    del canvas
    watch.begin("save")
    watch.end()
    decode, save = watch.phases
    assert decode.ram - save.ram == pytest.approx(0.25, abs=0.03)


def test_a_forward_that_fails_leaves_no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else those of the next one count its blocks twice."""
    import_comfy()
    import comfy.model_base
    from wancore.tools.benchmark.memory import phases

    def failing(model: Any) -> None:
        model.diffusion_model.blocks[0](torch.ones(2))
        raise RuntimeError("out of memory")

    monkeypatch.setattr(comfy.model_base.BaseModel, "apply_model", failing)
    phases.Watch({}, None).around_forwards()
    model = torch.nn.Module()
    model.diffusion_model = torch.nn.Module()
    model.diffusion_model.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    with pytest.raises(RuntimeError, match="out of memory"):
        comfy.model_base.BaseModel.apply_model(model)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.diffusion_model.blocks)


def test_a_limit_that_was_not_set_is_said() -> None:
    row = {"card": "12 GB", "engine": "WanCore", "model": "t2v-fp8", "clip": "480p81", "runs": []}
    assert "NOT LIMITED" in report.line({**row, "limited": False})
    assert "NOT LIMITED" not in report.line({**row, "limited": True})


def test_a_run_that_never_works_has_no_least() -> None:
    least, tries = least_ram.search(lambda size: "the VAE is broken")
    assert least is None and tries[-1] == (least_ram.TO / cases.GIB, "the VAE is broken")


def test_what_a_failed_call_had_fetched_is_let_go() -> None:
    """Else it counts against every later try of the bisection."""
    import_comfy()
    import comfy.model_management as management
    import comfy.model_prefetch as prefetch
    from wancore.tools.benchmark.memory import phase_calls

    layer = torch.nn.Linear(2, 2)
    layer._prefetch = {"signature": None}  # pyright: ignore[reportArgumentType]
    prefetch.PREFETCH_QUEUES.append([None, (None, (layer, [layer])), None])
    management.STREAM_AIMDO_CAST_BUFFERS[None] = torch.empty(1)
    phase_calls.release()
    assert not hasattr(layer, "_prefetch") and not prefetch.PREFETCH_QUEUES and not management.STREAM_AIMDO_CAST_BUFFERS


def test_the_least_ram_is_found_to_its_grain() -> None:
    least, tries = least_ram.search(lambda size: "" if size >= 3 * cases.GIB else "killed for memory")
    assert least is not None and 3 * cases.GIB <= least <= 3 * cases.GIB / (1 - least_ram.GRAIN)
    assert {problem for size, problem in tries if size < 3} == {"killed for memory"}


def test_a_card_is_named_by_its_size_or_by_what_is_free_of_it() -> None:
    found = cases.cards(["whole", "12", "3.5GiB"], [25.0, 12.5])
    names = ["whole", "12 GB, 25 GB/s", "12 GB, 12.5 GB/s", "3.5GiB, 25 GB/s", "3.5GiB, 12.5 GB/s"]
    assert [card.name for card in found] == names
    assert [card.vram for card in found] == [None, *[11 * cases.GIB] * 2, *[3.5 * cases.GIB] * 2]
    with pytest.raises(ValueError):
        cases.named("large")
