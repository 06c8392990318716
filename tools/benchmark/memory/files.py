"""Full-size files of random weights, written tensor by tensor, so that they need no memory."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ....pocket import gguf_file
from ....pocket.aside import written_aside
from ....wan_core.weights.ggml_types import BY_NAME
from ..weights import GGUF, GGUF_METADATA, in_gguf, shapes_of

PIECE = 64 * 2**20  # bytes of random numbers, written again and again
BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}
UMT5_NAMES = (
    ("attn.", "layer.0.SelfAttention."),
    ("pos_embedding.embedding.", "layer.0.SelfAttention.relative_attention_bias."),
    ("norm1.", "layer.0.layer_norm."),
    ("norm2.", "layer.1.layer_norm."),
    ("ffn.gate.0.", "layer.1.DenseReluDense.wi_0."),
    ("ffn.fc1.", "layer.1.DenseReluDense.wi_1."),
    ("ffn.fc2.", "layer.1.DenseReluDense.wo."),
)
Shapes = dict[str, tuple[int, ...]]


class Random:
    """Bytes of finite numbers of the size of weights."""

    def __init__(self, seed: int) -> None:
        self.rng, self.known = np.random.default_rng(seed), {}

    def write(self, file: Any, kind: str, count: int) -> None:
        """`count` bytes of a type."""
        if kind not in self.known:
            self.known[kind] = self._piece(kind)
        data = memoryview(self.known[kind])
        while count > 0:
            part = min(count, len(data))
            file.write(data[:part])
            count -= part

    def _piece(self, kind: str) -> bytes:
        if kind in GGUF:
            size = BY_NAME[kind].nbytes
            blocks = self.rng.integers(0, 256, (PIECE // size, size), dtype=np.uint8)
            if kind == "Q4_K":  # value = d * scale * q - dmin * min, centred where dmin is 7.5 d
                blocks[:, :4] = np.array([1e-4, 7.5e-4], dtype=np.float16).view(np.uint8)
            else:
                blocks[:, :2] = np.array([2e-4], dtype=np.float16).view(np.uint8)
            return blocks.tobytes()
        values = self.rng.standard_normal(PIECE // BYTES[kind], dtype=np.float32) * np.float32(0.02)
        if kind == "F16":
            return values.astype(np.float16).tobytes()
        if kind == "BF16":
            return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        if kind == "F8_E4M3":  # any pattern but NaN's; sizes between 2^-4 and 2^3
            return (
                self.rng.integers(24, 80, PIECE, np.uint8) | self.rng.integers(0, 2, PIECE, np.uint8) << 7
            ).tobytes()
        return values.tobytes()


def transformer(
    path: Path, shapes: str, precision: str, *, layers: int | None = None, numbers: Random | None = None
) -> Path:
    """A diffusion model in "bf16", "fp16", "fp8" or a type of GGUF."""
    named = shapes_of(shapes, layers)
    if precision in GGUF:
        return _gguf(path, named, precision, numbers or Random(0))
    plain = "F16" if precision == "fp16" else "BF16"
    blocks = "F8_E4M3" if precision == "fp8" else plain
    return _safetensors(path, dict(_typed(named, plain, blocks, "blocks.")), numbers, scaled=precision == "fp8")


def text_encoder(path: Path, spiece: bytes, *, numbers: Random | None = None) -> Path:
    """UMT5-XXL with its matrices in scaled fp8, as ComfyUI's file names them."""
    named: Shapes = {}
    for name, shape in shapes_of("umt5_xxl").items():
        name = name.replace("token_embedding.", "shared.").replace("blocks.", "encoder.block.")
        name = name if name.startswith("encoder.") or not name.startswith("norm.") else f"encoder.final_layer_{name}"
        for old, new in UMT5_NAMES:
            name = name.replace(f".{old}", f".{new}")
        named[name] = shape
    kinds = dict(_typed(named, "F16", "F8_E4M3", "encoder.block."))
    for name in kinds:
        if "relative_attention_bias" in name:
            kinds[name] = ("F16", kinds[name][1])
    return _safetensors(path, kinds, numbers, scaled=True, spiece=spiece)


def vae(path: Path, shapes: str, *, numbers: Random | None = None) -> Path:
    """A VAE in bfloat16."""
    return plain(path, shapes, "BF16", numbers=numbers)


def plain(path: Path, shapes: str, kind: str, *, numbers: Random | None = None) -> Path:
    """A file of one type, "BF16" or "F16"."""
    return _safetensors(path, dict(_typed(shapes_of(shapes), kind, kind, "")), numbers)


def _typed(named: Shapes, plain: str, matrices: str, prefix: str) -> Iterator[tuple[str, tuple[str, tuple[int, ...]]]]:
    for name, shape in named.items():
        is_matrix = name.startswith(prefix) and name.endswith(".weight") and len(shape) == 2
        yield name, (matrices if is_matrix else plain, shape)


def _safetensors(
    path: Path,
    tensors: dict[str, tuple[str, tuple[int, ...]]],
    numbers: Random | None,
    *,
    scaled: bool = False,
    spiece: bytes = b"",
) -> Path:
    table: dict[str, Any] = {}
    parts: list[tuple[str, int, float]] = []
    position = 0

    def add(name: str, kind: str, shape: tuple[int, ...], value: float = 0.0, size: int | None = None) -> None:
        nonlocal position
        size = BYTES[kind] * math.prod(shape) if size is None else size
        table[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [position, position + size]}
        parts.append((kind, size, value))
        position += size

    if scaled:
        add("scaled_fp8", "F8_E4M3", (0,))
    for name, (kind, shape) in tensors.items():
        # Norms, and the shares of a sound encoder's layers, by whose sum it divides.
        ones = ("norm" in name and name.endswith("weight")) or name.endswith(".weights")
        add(name, kind, shape, 1.0 if ones else 0.0)
        if kind == "F8_E4M3":
            add(f"{name.removesuffix('weight')}scale_weight", "F32", (), 0.3 / math.sqrt(shape[1]))
    if spiece:
        add("spiece_model", "U8", (len(spiece),), size=len(spiece))
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    numbers = numbers or Random(0)
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for kind, size, value in parts:
            if kind == "U8":
                file.write(spiece)
            elif value and kind == "F32":
                file.write(struct.pack("<f", value))
            elif value:
                file.write(_ones(kind, size))
            else:
                numbers.write(file, kind, size)
    return path


def _ones(kind: str, size: int) -> bytes:
    one = {"F16": b"\x00\x3c", "BF16": b"\x80\x3f"}[kind]
    return one * (size // 2)


def _gguf(path: Path, named: Shapes, kind: str, numbers: Random) -> Path:
    def fill(file: BinaryIO, tensor: gguf_file.Stored) -> None:
        if "norm" in tensor.name and tensor.name.endswith("weight"):
            file.write(_ones("F16", tensor.nbytes))
        else:
            numbers.write(file, tensor.kind, tensor.nbytes)

    return gguf_file.write(path, GGUF_METADATA, in_gguf(named, kind), fill)
