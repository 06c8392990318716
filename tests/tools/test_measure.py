"""The tools that measure the loaders: their files are what they say, and their roundings are those of the formats."""

from __future__ import annotations

import sys

import bench_loading
import measure_precision
import pytest
import torch
from wancore.tools.benchmark.memory import files
from wancore.wan_core.weights import inspect

from ..comfy_host import import_comfy

WIDTHS = {5120: 256, 13824: 512, 30720: 1536, 4096: 128}


@pytest.fixture
def small(monkeypatch):
    whole = files.shapes_of
    monkeypatch.setattr(files, "shapes_of", lambda name, layers=None: whole(name, layers or 2, WIDTHS))
    monkeypatch.setattr(files, "PIECE", 2**20)


@pytest.mark.parametrize("kind", bench_loading.FORMATS)
def test_written_files_are_of_their_format(kind, small, tmp_path):
    path = tmp_path / f"wan2.2_t2v_high_noise.{'gguf' if kind in bench_loading.IN_BLOCKS else 'safetensors'}"
    bench_loading.write(path, kind)
    found = inspect(path)
    assert (found.family.id, found.config.dim, found.config.num_layers) == ("t2v-A14B", 256, 2)
    assert found.precision == {"fp8": "fp8_e4m3fn"}.get(kind, kind)
    assert found.quantised == {"fp8": "scaled_fp8"}.get(kind, "")


def test_a_file_of_fewer_layers_is_never_taken_for_a_whole_one(small, tmp_path, monkeypatch):
    for options in (["--layers", "1"], []):
        monkeypatch.setattr(sys, "argv", ["bench_loading", str(tmp_path), "--write", "--format", "Q8_0", *options])
        assert bench_loading.main() == 0
    found = [inspect(path).config.num_layers for path in sorted(tmp_path.glob("wan2.2*"))]
    assert found == [2, 1]


def test_measuring_reads_a_whole_file(small, tmp_path):
    path = tmp_path / "a.gguf"
    for file in (path, bench_loading.one_block(path)):
        bench_loading.write(file, "Q8_0", 1)
    found = bench_loading.measure("read", path)
    assert 0 <= found["load"] <= found["first"] and found["anonymous"] >= 0
    assert list(bench_loading.ways_of("Q8_0")) == ["read", "ours"]


def test_a_process_of_its_own_measures_a_load(small, tmp_path):
    path = tmp_path / "wan2.2_t2v_high_noise.gguf"
    for file in (path, bench_loading.one_block(path)):
        bench_loading.write(file, "Q8_0", 1)
    found = bench_loading.runs_of(path, ("ours",), 1)
    (run,) = found["ours"]
    assert 0 < run["load"] < run["first"] and 0 <= run["peak"] < 1 and run["once"] > 0 == run["attention"]
    (row,) = bench_loading.rows("Q8_0", 0.1, found)
    assert row.count("|") == bench_loading.HEADER.splitlines()[0].count("|")


@torch.inference_mode()
def test_errors_grow_as_bits_shrink():
    import_comfy()
    measured = measure_precision.Measured("cpu", 256, 512, 2)
    found = {name: measured.errors(rounding) for name, (_, rounding) in measure_precision.FORMATS.items()}
    for better, worse in (("fp16", "bf16"), ("bf16", "Q8_0"), ("Q8_0", "Q6_K"), ("Q6_K", "fp8 e4m3fn, scaled"),
                          ("Q5_K", "Q4_K"), ("Q4_K", "Q3_K"), ("Q3_K", "Q2_K"), ("mxfp8", "nvfp4")):  # fmt: skip
        assert found[better][0] < found[worse][0] and found[better][1] < found[worse][1], (better, worse)
    assert all(0 < weights < answer < 1 for weights, answer in found.values())
