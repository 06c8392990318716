"""Tells from the header alone what a weights file holds: kind, variant, sizes, expert, precision."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..config import TransformerConfig
from ..errors import WeightsFileError
from ..tasks import TASKS, Task
from .container import read_header, refuse_part
from .families import DIFFUSION_MODEL, FILES, KIND_TITLES, TEXT_ENCODER, TRUNKS, UNKNOWN, VAE, Family
from .ggml_types import BLOCK_TYPES
from .header import Header, TensorEntry
from .keys import spelling_of
from .names import expert_at, is_wan21
from .vae_keys import is_diffusers_vae, official_vae_names

NESTED = ("", "vae.", "first_stage_model.", "model.", "text_encoders.umt5xxl.transformer.")
FLOATS = {"F64": "fp32", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8_e4m3fn", "F8_E5M2": "fp8_e5m2"}
UNMARKED = {"scale_weight", "weight_scale"}
NO_FAMILY = Family(UNKNOWN, UNKNOWN, KIND_TITLES[UNKNOWN], lambda _: True)


@dataclass(frozen=True)
class Checkpoint:
    """One weights file, as its header describes it."""

    header: Header
    family: Family
    prefix: str = ""  # before every official name; of diffusers names nothing
    names: Mapping[str, str] = field(default_factory=dict)  # name in the file -> official name
    config: TransformerConfig | None = None  # of a Wan transformer
    expert: str | None = None  # "high", "low"; from the name only: the tensors of both experts look alike
    # Of most matrices: fp32, fp16, bf16, fp8_e4m3fn, fp8_e5m2, mxfp8, nvfp4, int8, int4, packed, or a GGUF type.
    precision: str = "bf16"
    # "" plain, "scaled_fp8" (one scale per layer), "comfy_quant", "lightx2v_nvfp4", and without any mark:
    # "one scale" for a layer, or "unmarked" scales of channels or blocks
    quantised: str = ""

    @property
    def path(self) -> Path:
        return self.header.path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def kind(self) -> str:
        """diffusion_model, text_encoder, vae, lora, clip_vision, audio_encoder, tiny_vae or unknown."""
        return self.family.kind

    @property
    def task(self) -> Task | None:
        return TASKS.get(self.family.id) if self.kind == DIFFUSION_MODEL else None

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.header.metadata

    @property
    def is_gguf(self) -> bool:
        return self.header.container == "gguf"

    @property
    def in_blocks(self) -> bool:
        """A GGUF file, whose matrices are blocks of packed numbers."""
        return any(entry.dtype in BLOCK_TYPES for entry in self.header.tensors.values())

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{official name: shape} of the tensors that belong to it."""
        return {official: self.header.tensors[name].shape for name, official in self.names.items()}

    @property
    def is_packed(self) -> bool:
        """True if a byte of the matrices holds two numbers, so that their last axis is half as long."""
        return self.precision in ("nvfp4", "int4")

    @property
    def unpacked_shapes(self) -> dict[str, tuple[int, ...]]:
        """As `shapes`, with the last axis of packed matrices in numbers and not in bytes."""
        if not self.is_packed:
            return self.shapes
        types = self.types
        return {
            name: (shape[0], 2 * shape[1]) if len(shape) == 2 and types[name] in ("U8", "I8") else shape
            for name, shape in self.shapes.items()
        }

    @property
    def types(self) -> dict[str, str]:
        """{official name: type of storage} of the tensors that belong to it."""
        return {official: self.header.tensors[name].dtype for name, official in self.names.items()}

    @property
    def width(self) -> int | None:
        """Width of what it exchanges with the others: latent channels of a VAE, embedding of a text encoder."""
        shapes = self.shapes
        if self.kind == VAE:
            return shapes.get("conv2.weight", (None,))[0]
        for name in ("shared.weight", "encoder.embed_tokens.weight", "token_embedding.weight", "token_embd.weight"):
            if self.kind == TEXT_ENCODER and name in shapes:
                return shapes[name][-1]
        return None


def inspect(path: str | Path) -> Checkpoint:
    """Reads the header of a weights file and tells what it is; no tensor is touched.

    Raises:
        WeightsFileError: the file is not readable as weights, or calls itself Wan and lacks its basic tensors.
    """
    refuse_part(Path(path).absolute())
    header = read_header(path)
    transformer = _transformer(header)
    if transformer is not None:
        return transformer
    for prefix in NESTED:
        names = {name: name[len(prefix) :] for name in header.tensors if name.startswith(prefix)}
        if is_diffusers_vae(names.values()):
            official = official_vae_names(names.values())
            names = {name: official[theirs] for name, theirs in names.items()}
        shapes = {official: header.tensors[name].shape for name, official in names.items()}
        family = next((family for family in FILES if family.matches(shapes)), None)
        if family is not None and family.id != "other":
            return _other(header, family, prefix, names)
    names = {name: name for name in header.tensors}
    return _other(header, next((family for family in FILES if family.matches(header.shapes)), NO_FAMILY), "", names)


def _other(header: Header, family: Family, prefix: str, names: Mapping[str, str]) -> Checkpoint:
    precision, quantised = _precision(header.tensors), _scaling(header)
    return Checkpoint(header, family, prefix, names, precision=precision, quantised=quantised)


def _transformer(header: Header) -> Checkpoint | None:
    spelling = spelling_of(header.tensors)
    if spelling is None:
        return None
    names = {name: official for name in header.tensors if (official := spelling.official(name))}
    tensors = {official: header.tensors[name] for name, official in names.items()}
    shapes = {name: entry.shape for name, entry in tensors.items()}
    try:
        config = _overridden(TransformerConfig.from_shapes(shapes), header.metadata)
        expert = expert_at(header.path)
        old = is_wan21(header.path.name) and not expert
        rows = (row for row in TRUNKS if (expert or not row.of_experts) and (old or not row.of_wan21))
        family = next(family for family in rows if family.matches(shapes))
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise WeightsFileError(
            "The weights file lacks basic tensors of a Wan transformer",
            where=repr(str(header.path)),
            found=f"no usable {error}",
            remedy="Take the bf16, fp8_scaled or GGUF file of this model; if this is one, download it again",
        ) from None
    return Checkpoint(header, family, spelling.prefix, names, config, expert, _precision(tensors), _scaling(header))


def _overridden(config: TransformerConfig, metadata: Mapping[str, str]) -> TransformerConfig:
    """The head count is in no tensor; ComfyUI's files may state it as config = {"transformer": {"num_heads": n}}."""
    try:
        heads = json.loads(metadata["config"])["transformer"]["num_heads"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return config
    return replace(config, num_heads=heads) if type(heads) is int and heads > 0 else config


def _precision(tensors: Mapping[str, TensorEntry]) -> str:
    """The type of most elements of the matrices."""
    counts: Counter[str] = Counter()
    for entry in tensors.values():
        if len(entry.shape) > 1:
            counts[entry.dtype] += entry.count
    dtype = counts.most_common(1)[0][0] if counts else "BF16"
    if dtype in BLOCK_TYPES:
        return dtype
    scales = {name.rpartition(".")[2]: entry for name, entry in tensors.items()}
    if dtype == "U8" and scales.keys() & {"weight_scale_2", "weight_global_scale", "input_global_scale"}:
        return "nvfp4"
    in_blocks = "weight_scale" in scales and scales["weight_scale"].dtype in ("F8_E8M0", "U8")
    if in_blocks and (dtype == "F8_E4M3" or (dtype == "U8" and _is_whole(tensors))):  # U8: LightX2V's
        return "mxfp8"
    if dtype == "I8" and _is_halved(tensors):
        return "int4"
    return FLOATS.get(dtype, "int8" if dtype == "I8" else "packed")


def _is_whole(tensors: Mapping[str, TensorEntry]) -> bool:
    """True if a square matrix of the transformer holds one value in each byte."""
    square = tensors.get("blocks.0.self_attn.q.weight")
    return square is not None and square.shape == (square.shape[0], square.shape[0])


def _is_halved(tensors: Mapping[str, TensorEntry]) -> bool:
    """True if a square matrix of the transformer holds two values in one byte."""
    square = tensors.get("blocks.0.self_attn.q.weight")
    return square is not None and square.shape[1:] == (square.shape[0] // 2,)


def _scaling(header: Header) -> str:
    """How quantised weights say what their scales mean."""
    leaves = {name.rpartition(".")[2] for name in header.tensors}
    if "comfy_quant" in leaves or "_quantization_metadata" in header.metadata:
        return "comfy_quant"
    if "scaled_fp8" in leaves:
        return "scaled_fp8"
    if "weight_global_scale" in leaves or {"alpha", "input_global_scale"} <= leaves:
        return "lightx2v_nvfp4"
    if not leaves & UNMARKED:
        return ""
    scales = [entry for name, entry in header.tensors.items() if name.rpartition(".")[2] in UNMARKED]
    return "one scale" if all(entry.count == 1 for entry in scales) else "unmarked"
