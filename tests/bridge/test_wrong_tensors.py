"""Files whose tensors are wrong, for every part of a model: refused by name, with the node or file to take.

Names, shapes and types are judged by the header, numbers when the file is loaded. Two matrices of one shape that were
swapped cannot be told apart; of two shapes they can.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from make_pocket import build
from safetensors.torch import save_file
from torch import Tensor

from ..comfy_host import import_comfy

import_comfy()

import comfy.utils
from wancore.nodes.bridge.audio_encoder import load_audio_encoder
from wancore.nodes.bridge.clip_vision import load_clip_vision
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.text_encoder import load_text_encoder
from wancore.nodes.bridge.vae import load_vae
from wancore.pocket import family
from wancore.wan_core.errors import WanError, WeightsFileError, WrongModelError

Tensors = dict[str, Tensor]
NAN, INFINITY = float("nan"), float("inf")
MOST = 5  # names in an error


@dataclass(frozen=True)
class Part:
    """One kind of file, and tensors of it by what they are for."""

    member: family.Member
    load: Callable[[str], Any]
    matrix: str
    other: str  # a matrix of another shape
    vector: str
    basic: str  # from which the size of the network is read
    node: str  # ComfyUI's own, which an error names
    fp8: bool = False
    holds_more: bool = False  # published files hold more than the part


WO, GATE = (f"encoder.block.1.layer.1.DenseReluDense.{name}.weight" for name in ("wo", "wi_0"))
FEED = "encoder.layers.1.feed_forward."
VISION = "vision_model.encoder.layers.0.mlp."
RESIDUAL = "decoder.middle.0.residual"
MODEL = ("blocks.1.ffn.0.weight", "blocks.1.ffn.2.weight", "blocks.1.ffn.0.bias", "head.modulation")
VAES = (f"{RESIDUAL}.2.weight", "decoder.conv1.weight", f"{RESIDUAL}.2.bias", "encoder.conv1.weight")
PARTS = {
    "model": Part(family.T2V_HIGH, load_model, *MODEL, "Load Diffusion Model"),
    "fp8 model": Part(family.T2V_HIGH, load_model, *MODEL, "Load Diffusion Model", fp8=True),
    "fp8 text encoder": Part(
        family.TEXT_ENCODER, load_text_encoder, WO, GATE, "encoder.final_layer_norm.weight",
        "encoder.block.0.layer.0.SelfAttention.q.weight", "Load CLIP", fp8=True
    ),
    "VAE 2.1": Part(family.VAE, load_vae, *VAES, "Load VAE"),
    "VAE 2.2": Part(family.VAE22, load_vae, *VAES, "Load VAE"),
    "CLIP vision": Part(
        family.CLIP_VISION, load_clip_vision, f"{VISION}fc1.weight", f"{VISION}fc2.weight", f"{VISION}fc1.bias",
        "visual_projection.weight", "Load CLIP Vision", holds_more=True
    ),
    "audio encoder": Part(
        family.AUDIO_ENCODER, load_audio_encoder, f"{FEED}output_dense.weight", f"{FEED}intermediate_dense.weight",
        f"{FEED}output_dense.bias", "encoder.layer_norm.bias", "Load Audio Encoder", holds_more=True
    ),
}  # fmt: skip


def left_over(tensors: Tensors, part: Part) -> None:
    tensors[f"{part.matrix.removesuffix('.weight').rpartition('.')[0]}.977.weight"] = torch.zeros(2)


def whole_numbers(tensors: Tensors, name: str) -> None:
    tensor = tensors[name]
    tensors[name] = tensor.view(torch.int8) if tensor.dtype.itemsize == 1 else tensor.to(torch.int64)


def swapped(tensors: Tensors, part: Part) -> None:
    tensors[part.matrix], tensors[part.other] = tensors[part.other], tensors[part.matrix]


def scale(value: float) -> Callable[[Tensors, Part], Any]:
    return lambda tensors, part: tensors[part.matrix.replace("weight", "scale_weight")].fill_(value)


BY_HEADER: dict[str, tuple[Callable[[Tensors, Part], Any], str]] = {  # the change, and what is said of it
    "missing": (lambda tensors, part: tensors.pop(part.matrix), "missing"),
    "basic one missing": (lambda tensors, part: tensors.pop(part.basic), ""),
    "left over": (left_over, "left over"),
    "shorter": (lambda tensors, part: tensors.update({part.matrix: tensors[part.matrix][:-1]}), "of another shape"),
    "longer vector": (lambda tensors, part: tensors.update({part.vector: torch.zeros(977)}), "of another shape"),
    "whole numbers": (lambda tensors, part: whole_numbers(tensors, part.matrix), "of another type"),
    "vector of whole numbers": (lambda tensors, part: whole_numbers(tensors, part.vector), "of another type"),
    "swapped": (swapped, "of another shape"),
}
BY_NUMBERS = {
    "NaN": lambda tensors, part: tensors[part.vector].fill_(NAN),
    "one infinity": lambda tensors, part: tensors[part.vector][:1].fill_(INFINITY),
}
SCALES = {"scale of NaN": scale(NAN), "infinite scale": scale(INFINITY), "scale of zero": scale(0.0)}


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensors]:
    """The tensors of every part, unchanged."""
    return {name: build(part.member, fp8=part.fp8) for name, part in PARTS.items()}


def write(folder: Path, part: Part, tensors: Tensors) -> str:
    path = folder / part.member.name
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=part.member.metadata)
    return str(path)


def refused(part: Part, path: str) -> WanError:
    with pytest.raises(WanError) as caught:
        part.load(path)
    error = caught.value
    assert path in error.where and error.remedy and error.found
    return error


@pytest.fixture
def nothing_is_read(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(comfy.utils, "load_torch_file", refuse)


HEADER_CASES = [(name, change) for name in PARTS for change in BY_HEADER
                if not (change == "left over" and PARTS[name].holds_more)]  # fmt: skip
NUMBER_CASES = [(name, change) for name in PARTS for change in (*BY_NUMBERS, *SCALES)
                if change in BY_NUMBERS or PARTS[name].fp8]  # fmt: skip


@pytest.mark.parametrize(("name", "change"), HEADER_CASES)
def test_wrong_tensors_are_refused_before_weights_are_read(name, change, whole, tmp_path, nothing_is_read):
    part, tensors = PARTS[name], {key: tensor.clone() for key, tensor in whole[name].items()}
    alter, words = BY_HEADER[change]
    alter(tensors, part)
    error = refused(part, write(tmp_path, part, tensors))
    assert isinstance(error, WrongModelError | WeightsFileError)
    if words:
        assert words in error.found and len(re.findall(r"\.(weight|bias)", error.found)) <= MOST
        assert part.node in error.remedy, "the node to take instead"
    else:
        assert part.basic.split(".")[-2] in str(error) or "width" in error.found or part.member.name in error.remedy


@pytest.mark.parametrize("name", [name for name, part in PARTS.items() if part.holds_more])
def test_what_a_file_holds_beside_the_part_does_no_harm(name, whole, tmp_path):
    part, tensors = PARTS[name], dict(whole[name])
    left_over(tensors, part)
    assert part.load(write(tmp_path, part, tensors)) is not None


@pytest.mark.parametrize(("name", "change"), NUMBER_CASES)
def test_numbers_that_are_none_are_named(name, change, whole, tmp_path):
    part, tensors = PARTS[name], {key: tensor.clone() for key, tensor in whole[name].items()}
    ({**BY_NUMBERS, **SCALES})[change](tensors, part)
    error = refused(part, write(tmp_path, part, tensors))
    assert isinstance(error, WeightsFileError) and "Download" in error.remedy
    assert (part.matrix.replace("weight", "scale_weight") if change in SCALES else part.vector) in error.found


SIZES = {  # tensors that say a size, with no numbers and an axis that no network has
    "model": ("blocks.0.ffn.0.bias", (0,)),
    "VAE 2.1": ("encoder.conv1.weight", (2**40, 0, 3, 3, 3)),
    "VAE 2.2": ("encoder.conv1.weight", (2**40, 0, 3, 3, 3)),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_no_network_has_are_refused(name, whole, tmp_path, nothing_is_read):
    tensor, shape = SIZES[name]
    tensors = {key: value for key, value in whole[name].items() if key != tensor}
    path = Path(write(tmp_path, PARTS[name], tensors))
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    table = json.loads(path.read_bytes()[8 : 8 + length])
    table[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]}
    header = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + path.read_bytes()[8 + length :])
    assert isinstance(refused(PARTS[name], str(path)), WrongModelError | WeightsFileError)


@pytest.mark.parametrize("name", PARTS)
def test_a_name_that_stands_twice_is_refused(name, whole, tmp_path, nothing_is_read):
    part = PARTS[name]
    path = Path(write(tmp_path, part, whole[name]))
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entry = json.loads(raw[8 : 8 + length])[part.matrix]
    header = b"{" + json.dumps({part.matrix: entry})[1:-1].encode() + b"," + raw[8 : 8 + length].lstrip()[1:]
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])
    error = refused(part, str(path))
    assert isinstance(error, WeightsFileError) and "occurs twice" in error.found and part.matrix[:50] in error.found


def test_there_are_sixty_cases() -> None:
    assert len(HEADER_CASES) + len(NUMBER_CASES) + len(PARTS) >= 60
