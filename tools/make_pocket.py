"""Writes the miniature Wan family under the published file names: python3 tools/make_pocket.py MODELS_FOLDER.

Members with trained weights in pocket/weights get them. The others' are random, seeded by member and tensor name, so
that the same files come out on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import re
from pathlib import Path

import torch
from pack import import_pack
from safetensors.torch import save_file
from torch import Tensor

import_pack()
from wancore.pocket import family, storage  # noqa: E402
from wancore.pocket.models import completed, read_weights, shapes_of, weights_file, weights_file_of  # noqa: E402
from wancore.pocket.tokenizer import example_sentences, train_tokenizer  # noqa: E402

FP8_MAX = 448.0  # largest float8_e4m3fn
# Official UMT5 names -> the names in ComfyUI's files. Source: transformers' UMT5EncoderModel, wan_t5.py.
UMT5_NAMES = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"encoder.block.\1.layer.0.SelfAttention."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)


def draw(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """One float32 weight: norms near 1, biases and modulation small, matrices scaled by their fan-in."""
    key = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
    noise = torch.rand(shape, generator=generator) * 2 - 1
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "gamma" or (leaf == "weight" and len(shape) == 1):
        return 1 + 0.2 * noise
    if leaf == "weights":  # shares of the sound encoder's layers, which must not cancel out
        return 1 + 0.2 * noise
    if leaf in ("bias", "modulation"):
        return 0.1 * noise
    if leaf == "kernel":  # a blur, whose values sum to 1
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        return torch.outer(row, row)
    if name.startswith("motion_encoder."):  # stored at unit spread, scaled in use
        return noise * math.sqrt(3)
    if "embedding.weight" in name and "patch" not in name:
        return noise
    return noise * math.sqrt(3 / math.prod(shape[1:]))


def published_name(name: str, member: family.Member) -> str:
    if member is family.TEXT_ENCODER:
        for pattern, replacement in UMT5_NAMES:
            name = re.sub(pattern, replacement, name)
    return name


def scale_to_fp8(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stores the matrices of the blocks as float8 with one scale each, as the published *_fp8_scaled files do."""
    out = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for name, weight in weights.items():
        matrix = name.endswith(".weight") and weight.ndim == 2 and ("blocks." in name or ".block." in name)
        if not matrix or "relative_attention_bias" in name:
            out[name] = weight
            continue
        scale = (weight.float().abs().max() / FP8_MAX).clamp(min=1e-12)  # a matrix may be all zeros
        out[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
        out[name.removesuffix("weight") + "scale_weight"] = scale.reshape(())
    return out


def build(member: family.Member, *, fp8: bool, trained: bool = True) -> dict[str, Tensor]:
    """All tensors of one file: bfloat16, or the published precision; trained weights where there are some."""
    kept = weights_file(member)
    if trained and kept.is_file():
        stored = {name: value for name, value in read_weights(member).items() if member.keeps(name)}
        if member in (family.S2V, family.AUDIO_ENCODER):
            stored = completed(member, stored)
        weights = {name: value.to(getattr(torch, member.dtype)) for name, value in stored.items()}
        tokenizer = storage.load_spiece(kept) if member is family.TEXT_ENCODER else b""
        spiece = torch.frombuffer(bytearray(tokenizer), dtype=torch.uint8) if tokenizer else None
    else:
        weights = {
            published_name(name, member): draw(name, shape, member.seed).to(getattr(torch, member.dtype))
            for name, shape in shapes_of(member)
        }
        spiece = train_tokenizer(example_sentences(), family.VOCABULARY) if member is family.TEXT_ENCODER else None
    if fp8 and member.fp8:
        weights = scale_to_fp8(weights)
    return weights if spiece is None else {**weights, storage.SPIECE: spiece}


def build_lora(lora: family.Lora, base: dict[str, tuple[int, ...]], *, trained: bool = True) -> dict[str, Tensor]:
    """Low-rank pairs for every matrix of the blocks and `diff_b` for its bias, with integer alphas."""
    kept = weights_file_of(lora.short)
    if trained and kept.is_file():
        return with_alphas(storage.load(kept), lora.rank)
    out: dict[str, Tensor] = {}
    for name, shape in base.items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2):
            continue
        key = "diffusion_model." + name.removesuffix(".weight")
        out[f"{key}.lora_down.weight"] = draw(key + ".down", (lora.rank, shape[1]), lora.seed).to(torch.bfloat16)
        out[f"{key}.lora_up.weight"] = (0.1 * draw(key + ".up", (shape[0], lora.rank), lora.seed)).to(torch.bfloat16)
        out[f"{key}.alpha"] = torch.tensor(lora.rank)
        out[f"{key}.diff_b"] = (0.01 * draw(key + ".diff_b", (shape[0], 1), lora.seed)[:, 0]).to(torch.bfloat16)
    return out


def with_alphas(pairs: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Kept pairs as the published 4-step LoRAs have them: with alphas, which are whole numbers, of the rank."""
    downs = [name for name in pairs if name.endswith(".lora_down.weight")]
    return {**pairs, **{name.replace(".lora_down.weight", ".alpha"): torch.tensor(rank) for name in downs}}


def write(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes beside the target and renames, so that a name never stands for half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()}, part, metadata={"format": "pt", **metadata}
    )
    part.replace(path)


def make_pocket(models: Path, *, fp8: bool = True, trained: bool = True) -> list[Path]:
    """Writes every member and LoRA into the folders of `models`; returns their paths."""
    paths = []
    for member in family.MEMBERS:
        paths.append(models / member.folder / member.name)
        write(build(member, fp8=fp8, trained=trained), paths[-1], member.metadata)
    members = {member.name: member for member in family.MEMBERS}
    for lora in (*family.LORAS, *family.STYLES):
        paths.append(models / "loras" / lora.name)
        write(build_lora(lora, dict(shapes_of(members[lora.base])), trained=trained), paths[-1], {})
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, help="a ComfyUI models folder; sub-folders are made as needed")
    parser.add_argument("--bf16", action="store_true", help="plain bfloat16 in place of the published fp8 layout")
    parser.add_argument("--untrained", action="store_true", help="random weights for every member")
    args = parser.parse_args()
    for path in make_pocket(args.models, fp8=not args.bf16, trained=not args.untrained):
        print(f"{path.stat().st_size / 2**20:6.2f} MiB  {path}")


if __name__ == "__main__":
    main()
