"""The miniature family as GGUF files, written with the reference package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sentencepiece
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, quants
from make_pocket import build, family
from safetensors.torch import save_file
from torch import Tensor

HIGH = "Wan2.2-T2V-A14B-HighNoise-Q4_K_S.gguf"
LOW = "Wan2.2-T2V-A14B-LowNoise-Q4_K_S.gguf"
TEXT_ENCODER = "umt5-xxl-encoder-Q5_K_M.gguf"
HALVES = {"Q2_K": (80, 84), "Q3_K": (108, 110), "Q6_K": (208, 210)}  # where d and dmin lie; elsewhere they lead


def write_family(models: Path) -> list[Path]:
    """Writes the files of the bundled GGUF workflow into the folders of `models`, in Q8_0 whatever their names say."""
    files = []
    for name, member in ((HIGH, family.T2V_HIGH), (LOW, family.T2V_LOW)):
        files.append(write_gguf(models / "diffusion_models" / name, build(member, fp8=False), "Q8_0"))
    path, decoded = write_umt5(models / "text_encoders")
    decoded.unlink()
    files.append(path.rename(path.with_name(TEXT_ENCODER)))
    return files


def is_block_matrix(name: str, weight: Tensor) -> bool:
    return name.startswith("blocks.") and name.endswith(".weight") and weight.ndim == 2


def write_gguf(path: Path, tensors: dict[str, Tensor], kind: str, arch: str = "wan") -> Path:
    """Block matrices in blocks of the kind, the rest float32, as converters write a Wan file."""
    number = GGMLQuantizationType[kind]
    writer = GGUFWriter(path, arch)
    for name, weight in tensors.items():
        array = weight.float().numpy()
        if is_block_matrix(name, weight):
            writer.add_tensor(name, pack(array, number), raw_dtype=number)
        else:  # at most four dimensions
            joined = (len(array), -1, *array.shape[3:])
            writer.add_tensor(name, array.reshape(joined) if array.ndim == 5 else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def pack(array: np.ndarray, number: GGMLQuantizationType) -> np.ndarray:
    """The reference's blocks; random blocks with small scales for the types that it cannot make."""
    try:
        return quants.quantize(array, number)
    except NotImplementedError:
        elements, size = GGML_QUANT_SIZES[number]
        rng = np.random.default_rng(array.shape[0])
        blocks = rng.integers(0, 256, (array.size // elements, size), dtype=np.uint8)
        start, end = HALVES.get(number.name, (0, 4))
        blocks[:, start:end] = np.array([2e-5, 1e-4], dtype=np.float16).view(np.uint8)[: end - start]
        return blocks.reshape(array.shape[0], -1)


GGUF_NAMES = (
    ("shared.", "token_embd."),
    ("encoder.final_layer_norm.", "enc.output_norm."),
    ("encoder.block.", "enc.blk."),
    ("layer.0.layer_norm.", "attn_norm."),
    ("layer.1.layer_norm.", "ffn_norm."),
    ("layer.0.SelfAttention.relative_attention_bias.", "attn_rel_b."),
    ("layer.0.SelfAttention.", "attn_"),
    ("layer.1.DenseReluDense.wi_0.", "ffn_gate."),
    ("layer.1.DenseReluDense.wi_1.", "ffn_up."),
    ("layer.1.DenseReluDense.wo.", "ffn_down."),
)


def write_umt5(folder: Path) -> tuple[Path, Path]:
    """The miniature text encoder as GGUF, in Q8_0 and with its vocabulary, and decoded as safetensors."""
    tensors, number = build(family.TEXT_ENCODER, fp8=False), GGMLQuantizationType.Q8_0
    model = sentencepiece.SentencePieceProcessor(model_proto=tensors["spiece_model"].numpy().tobytes())
    writer, decoded = GGUFWriter(folder / "umt5-xxl-encoder-Q8_0.gguf", "t5encoder"), {}
    size = range(model.get_piece_size())
    writer.add_tokenizer_model("t5")
    writer.add_token_list([model.id_to_piece(index) for index in size])
    writer.add_token_scores([model.get_score(index) for index in size])
    kinds = ((model.is_unknown, 2), (model.is_control, 3), (model.is_unused, 5), (model.is_byte, 6))
    writer.add_token_types([next((kind for test, kind in kinds if test(index)), 1) for index in size])
    writer.add_eos_token_id(1), writer.add_pad_token_id(0), writer.add_unk_token_id(model.unk_id())
    for name, tensor in tensors.items():
        if name == "spiece_model":
            decoded[name] = tensor
            continue
        theirs, array = name, tensor.float().numpy()
        for ours, gguf in GGUF_NAMES:
            theirs = theirs.replace(ours, gguf)
        if array.ndim == 2 and array.shape[1] % 32 == 0:
            packed = quants.quantize(array, number)
            writer.add_tensor(theirs, packed, raw_dtype=number)
            array = quants.dequantize(packed, number)
        else:
            writer.add_tensor(theirs, array)
        table = name.endswith(("shared.weight", "relative_attention_bias.weight")) or array.ndim == 1
        exact = torch.from_numpy(array.copy())
        decoded[name] = exact.to(torch.bfloat16).float() if table else exact
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(decoded, folder / "decoded.safetensors")
    return folder / "umt5-xxl-encoder-Q8_0.gguf", folder / "decoded.safetensors"
