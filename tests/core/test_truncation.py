"""Every kind of weights file, cut off everywhere: the number of missing bytes is said, and nothing is allocated."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from pocket_gguf import write_umt5
from wancore.wan_core.errors import WeightsFileError
from wancore.wan_core.weights import gguf, inspect

from . import weight_files as files
from .test_detection import gguf as hollow_gguf
from .test_detection import scaled, sharded

LAYERS = 4  # of 40: headers are read a thousand times here
POINTS = 64


@pytest.fixture(autouse=True)
def few_layers(monkeypatch):
    full = files.shapes_of
    known: dict[str, dict[str, list[int]]] = {}

    def few(name: str) -> dict[str, list[int]]:
        if name not in known:
            known[name] = {
                key: size
                for key, size in full(name).items()
                if not (key.startswith("blocks.") and int(key.split(".")[1]) >= LAYERS)
            }
        return known[name]

    monkeypatch.setattr(files, "shapes_of", few)


def lora(folder: Path) -> Path:
    layers = [f"diffusion_model.blocks.{block}.ffn.{part}" for block in range(LAYERS) for part in (0, 2)]
    tensors = {f"{layer}.lora_A.weight": ("F16", [64, 5120]) for layer in layers}
    return files.write_hollow(folder / "lora.safetensors", tensors)


def shard(folder: Path) -> Path:
    """The second of three; the model is read by its folder."""
    return sharded(folder, "t2v_A14B_expert") / "diffusion_pytorch_model-00002-of-00003.safetensors"


def single(shapes: str) -> Callable[[Path], Path]:
    return lambda folder: files.write_model(folder / "x.safetensors", shapes)


KINDS: dict[str, Callable[[Path], Path]] = {
    "model": single("t2v_A14B_expert"),
    "scaled fp8 model": lambda folder: scaled(folder, "ti2v_5B", "scale_weight", "scaled_fp8"),
    "shard": shard,
    "GGUF model": lambda folder: hollow_gguf(folder, "t2v_A14B_expert", "Q4_K"),
    "text encoder": single("umt5_xxl"),
    "GGUF text encoder": lambda folder: write_umt5(folder)[0],
    "VAE": single("vae22"),
    "LoRA": lora,
}


def header_end(path: Path) -> int:
    """The first byte of the data."""
    if path.suffix == ".gguf":
        return min(tensor.start for tensor in gguf.read_header(path).tensors.values())
    with path.open("rb") as file:
        return 8 + struct.unpack("<Q", file.read(8))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_cut_off_anywhere_says_how_much_is_missing(kind, tmp_path):
    path = KINDS[kind](tmp_path)
    read = path.parent if kind == "shard" else path
    end, size = header_end(path), path.stat().st_size
    if path.suffix == ".gguf":  # behind the last tensor a hole may be
        size = max(tensor.start + tensor.nbytes for tensor in gguf.read_header(path).tensors.values())
    rng = random.Random(kind)
    header, data = (sorted(rng.sample(range(*span), POINTS // 2)) for span in ((8, end - 8), (end + 9, size - 1)))
    cuts = sorted({*header, *data, *range(end - 8, end + 9), size - 1}, reverse=True)
    assert len(cuts) == POINTS + 18
    for cut in cuts:  # downwards: the file is written once
        os.truncate(path, cut)
        is_traced = cut % 4 == 0
        if is_traced:
            tracemalloc.start()
        with pytest.raises(WeightsFileError) as caught:
            inspect(read)
        taken = tracemalloc.get_traced_memory()[1] if is_traced else 0
        tracemalloc.stop()
        error = caught.value
        assert "cut off" in error.what and str(path) in error.where and "Download" in error.remedy, cut
        assert taken < 2**20 + 30 * end, "memory was taken for data"
        if cut >= end or (path.suffix == ".gguf" and error.found.endswith("missing")):
            assert error.found == f"{size - cut} bytes missing", cut
        elif path.suffix == ".gguf":  # a header that ends early does not say how long it would have been
            assert error.found.startswith("at least ") and int(error.found.split()[2]) > 0, cut
        else:
            assert error.found == f"{end - cut} bytes missing", cut
