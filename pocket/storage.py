"""The form in which trained weights are kept: GGUF files, six to eight bits to a weight.

Large tensors are stored as Q6_K, or as Q8_0 where they do not divide into its blocks; small ones as BF16. What does not
fit the format's rows, as convolutions and narrow matrices, is stored as one row, with its shape in the metadata
(`comfy.gguf.orig_shape.NAME`). The T2V pair's files are checkpoints, which the pack loads as they are.
Blocks: ggml-org/ggml ggml-quants.c, quantize_row_q8_0_ref and quantize_row_q6_K_ref, whose search for the best scales
is left out here.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..wan_core.weights import gguf
from ..wan_core.weights.ggml import dequantize
from ..wan_core.weights.ggml_types import BY_NAME, SUPER
from . import gguf_file

SUFFIX = ".gguf"
LEAST = 512  # elements; smaller tensors are kept as bfloat16
SHAPE = "comfy.gguf.orig_shape."
SPIECE = "spiece_model"  # the tokenizer, compressed bytes in the metadata


def quantize(weight: Tensor, kind: str) -> Tensor:
    """Weights -> their blocks as uint8 [bytes]; rows have to be whole blocks."""
    if kind == "BF16":
        return weight.to(torch.bfloat16).contiguous().view(torch.uint8).flatten()
    rows = weight.float().reshape(-1, BY_NAME[kind].elements)
    return {"Q8_0": _q8_0, "Q6_K": _q6_k}[kind](rows).flatten()


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8).reshape(len(values), -1)


def _q8_0(rows: Tensor) -> Tensor:
    scale = (rows.abs().amax(1, keepdim=True) / 127).half()
    numbers = (rows / scale.float().clamp(min=1e-12)).round().clamp(-127, 127)
    return torch.cat([_bytes(scale), _bytes(numbers.to(torch.int8))], 1)


def _q6_k(rows: Tensor) -> Tensor:
    groups = rows.unflatten(1, (16, 16))
    extreme = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)
    scales = extreme / -32  # the number of largest size is -32, so that is what the largest weight becomes
    top = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    whole = (top / -128).half()
    steps = (scales / torch.where(whole == 0, 1, whole.float())).round().clamp(-128, 127)
    size = whole.float() * steps
    numbers = (groups / torch.where(size == 0, 1, size).unsqueeze(2)).round().clamp(-32, 31) + 32
    numbers = numbers.to(torch.uint8).reshape(-1, 2, 4, 32)
    first, second, third, fourth = numbers.unbind(2)
    low = torch.cat([(first & 15) | ((third & 15) << 4), (second & 15) | ((fourth & 15) << 4)], 2)
    high = (first >> 4) | (second >> 4) << 2 | (third >> 4) << 4 | (fourth >> 4) << 6
    return torch.cat([low.flatten(1), high.flatten(1), _bytes(steps.to(torch.int8)), _bytes(whole)], 1)


def kind_of(weight: Tensor, *, checkpoint: bool = False) -> str:
    """The type that a tensor is stored as; `checkpoint`: as loaders of GGUF files take it."""
    narrow = weight.ndim > 1 and weight.shape[-1] % SUPER > 0
    if weight.ndim < 2 or weight.numel() < LEAST or weight.numel() % 32 or (checkpoint and weight.ndim > 2):
        return "BF16"
    return "Q8_0" if weight.numel() % SUPER or (checkpoint and narrow) else "Q6_K"


def _dimensions(weight: Tensor, kind: str) -> tuple[int, ...]:
    """The shape that the format can hold: at most four axes, rows of whole blocks."""
    if kind != "BF16" and (weight.ndim > 2 or weight.shape[-1] % BY_NAME[kind].elements):
        return (weight.numel(),)
    return tuple(weight.shape) if weight.ndim <= 4 else (len(weight), math.prod(weight.shape[1:]))


def save(
    weights: Mapping[str, Tensor],
    path: Path,
    metadata: Mapping[str, str] | None = None,
    *,
    spiece: bytes = b"",
    checkpoint: bool = False,
) -> None:
    """Writes a GGUF file, whole or not at all.

    A `checkpoint` is one that the pack's loader takes as it is: its matrices keep their rows.
    """
    entries = {key: gguf_file.text(value) for key, value in (metadata or {}).items()}
    entries["general.architecture"] = gguf_file.text("wan")
    if spiece:
        entries[SPIECE] = gguf_file.array(gguf_file.UINT8, "B", zlib.compress(spiece, 9))
    tensors = []
    for name, weight in weights.items():
        kind = kind_of(weight, checkpoint=checkpoint)
        tensors.append(gguf_file.Stored(name, _dimensions(weight, kind), kind))
        if tensors[-1].shape != weight.shape:
            entries[SHAPE + name] = gguf_file.array(gguf_file.INT32, "i", weight.shape)
    path.parent.mkdir(parents=True, exist_ok=True)

    def fill(file: BinaryIO, tensor: gguf_file.Stored) -> None:
        file.write(quantize(weights[tensor.name].detach().cpu(), tensor.kind).numpy().data)

    gguf_file.write(path, entries, tensors, fill, by=f"{os.getpid()}_")


def load(path: Path) -> dict[str, Tensor]:
    """What `save` wrote, in bfloat16 and in the shapes that it had."""
    header, raw = gguf.read_header(path), path.read_bytes()
    found = {}
    for name, entry in header.tensors.items():
        shape = gguf.numbers(header, SHAPE + name) if SHAPE + name in header.metadata else entry.shape
        packed = torch.frombuffer(bytearray(raw[entry.start : entry.start + entry.nbytes]), dtype=torch.uint8)
        found[name] = dequantize(packed, entry.kind, tuple(map(int, shape)), torch.bfloat16)
    return found


def load_spiece(path: Path) -> bytes:
    """The tokenizer in a text encoder's file."""
    return zlib.decompress(bytes(map(int, gguf.numbers(gguf.read_header(path), SPIECE))))
