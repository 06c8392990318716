"""Random checkpoints with the names and shapes of published files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ...pocket import gguf_file
from ...pocket.aside import written_aside
from ...wan_core.weights.ggml_types import BY_NAME

SHAPES = Path(__file__).resolve().parents[2] / "tests" / "shapes"
FLOAT8_MAX = 448.0
HEADER = 1 << 20  # bytes kept for the table of a file; spaces fill it up
TYPES = {torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float32: "F32", torch.uint8: "U8"}
LORA_RANK = 32
GGUF_SCALES = {"Q8_0": 1 / 74, "Q4_K": 1 / 150}  # of blocks of random bytes whose values have a deviation of 1
GGUF = tuple(GGUF_SCALES)
GGUF_METADATA = {"general.architecture": gguf_file.text("wan")}
Sizes = dict[int, int]


def shapes_of(name: str, layers: int | None = None, sizes: Sizes | None = None) -> dict[str, tuple[int, ...]]:
    """{tensor: shape} of a published file, cut to `layers` blocks, with other widths where `sizes` has them."""
    shapes: dict[str, list[int]] = json.loads((SHAPES / f"{name}.json").read_text())["shapes"]
    return {
        key: tuple(length if sizes is None else sizes.get(length, length) for length in shape)
        for key, shape in shapes.items()
        if layers is None or not key.startswith("blocks.") or int(key.split(".")[1]) < layers
    }


def transformer(
    shapes: dict[str, tuple[int, ...]], device: torch.device, *, outliers: bool
) -> Iterator[tuple[str, Tensor]]:
    """Weights in bfloat16 that keep the size of what runs through them; `outliers`: some channels 10 times as large."""
    generator = torch.Generator(device).manual_seed(3)
    for name, shape in shapes.items():
        noise = torch.randn(shape, device=device, generator=generator)
        if name.endswith("modulation"):
            value = 0.2 * noise
            if outliers and name.startswith("blocks."):  # scales of both norms
                value[:, 1, 7::640], value[:, 4, 11::640] = 12.0, 12.0
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.1 * noise
        elif name.endswith("bias"):
            value = 0.02 * noise
        else:
            value = noise / math.prod(shape[1:]) ** 0.5
            if outliers and name.endswith("ffn.0.weight"):
                value[::1000] *= 6
            if outliers and name.endswith("self_attn.v.weight"):
                value[5::640] *= 8
        yield name, value.to(torch.bfloat16)


def autoencoder(shapes: dict[str, tuple[int, ...]], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Weights of a VAE in bfloat16."""
    generator = torch.Generator(device).manual_seed(4)
    for name, shape in shapes.items():
        noise = torch.randn(shape, device=device, generator=generator)
        if name.endswith("gamma"):
            value = 1 + 0.1 * noise
        else:
            value = 0.02 * noise if name.endswith("bias") else noise / math.prod(shape[1:]) ** 0.5
        yield name, value.to(torch.bfloat16)


def in_float8(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The matrices of the blocks in float8 with one scale each, as ComfyUI's scaled files have them."""
    mark = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    for name, weight in weights:
        if not is_matrix(name, weight.shape):
            yield name, weight
            continue
        wide, layer = weight.float(), name.removesuffix(".weight")
        scale = wide.abs().amax() / FLOAT8_MAX
        yield name, (wide / scale).to(torch.float8_e4m3fn)
        yield f"{layer}.weight_scale", scale
        yield f"{layer}.comfy_quant", mark


def low_rank(shapes: dict[str, tuple[int, ...]], device: torch.device, seed: int) -> Iterator[tuple[str, Tensor]]:
    """A LoRA of rank LORA_RANK on every matrix of the blocks."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, shape in shapes.items():
        if is_matrix(name, shape):
            layer, (rows, columns) = f"diffusion_model.{name.removesuffix('.weight')}", shape
            for part, size in (("lora_A", (LORA_RANK, columns)), ("lora_B", (rows, LORA_RANK))):
                noise = torch.randn(size, device=device, generator=generator)
                yield f"{layer}.{part}.weight", (0.1 * noise / size[1] ** 0.5).to(torch.bfloat16)


def is_matrix(name: str, shape: Iterable[int]) -> bool:
    """Whether formats of few bits store this tensor in theirs."""
    return name.startswith("blocks.") and name.endswith(".weight") and len(tuple(shape)) == 2


def write(weights: Iterable[tuple[str, Tensor]], path: Path) -> Path:
    """Saves as safetensors, tensor by tensor as they come, and returns the path."""
    table: dict[str, object] = {}
    position = 0
    with written_aside(path) as part, part.open("wb") as file:
        file.seek(8 + HEADER)
        for name, tensor in weights:
            data = tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
            end = position + data.nbytes
            table[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
            file.write(data.data)
            position = end
        file.seek(0)
        file.write(struct.pack("<Q", HEADER) + json.dumps(table).encode().ljust(HEADER))
    return path


def in_gguf(shapes: dict[str, tuple[int, ...]], kind: str) -> list[gguf_file.Stored]:
    """The tensors as a GGUF file has them: matrices of the blocks in the kind, float16 elsewhere, at most four axes."""
    return [
        gguf_file.Stored(
            name, (*shape[:2], *shape[3:]) if len(shape) == 5 else shape, kind if is_matrix(name, shape) else "F16"
        )
        for name, shape in shapes.items()
    ]


def write_gguf(shapes: dict[str, tuple[int, ...]], kind: str, device: torch.device, path: Path) -> Path:
    """A GGUF file with random blocks in the matrices of the transformer's blocks."""
    generator = torch.Generator(device).manual_seed(6)
    small = {name: shape for name, shape in shapes.items() if not is_matrix(name, shape)}
    plain = dict(transformer(small, device, outliers=False))

    def fill(file: BinaryIO, tensor: gguf_file.Stored) -> None:
        if tensor.name in plain:
            data = plain[tensor.name].half()
        else:
            size = GGUF_SCALES[kind] / tensor.shape[1] ** 0.5
            data = _blocks(kind, tensor.nbytes, size, generator)
        file.write(data.cpu().numpy().tobytes())

    return gguf_file.write(path, GGUF_METADATA, in_gguf(shapes, kind), fill)


def _blocks(kind: str, count: int, size: float, generator: torch.Generator) -> Tensor:
    """So many bytes of random blocks, whose first bytes are float16 scales."""
    shape = count // BY_NAME[kind].nbytes, BY_NAME[kind].nbytes
    blocks = torch.randint(0, 256, shape, dtype=torch.uint8, device=generator.device, generator=generator)
    scale = torch.tensor([size, 8 * size], dtype=torch.float16).view(torch.uint8)
    heads = 2 if kind == "Q8_0" else 4
    blocks[:, :heads] = scale[:heads].to(blocks.device)
    return blocks
