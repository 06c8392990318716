"""Parameter names of UMT5 encoder files: the official and the Hugging Face spelling, one to the other.

ComfyUI's files and LoRA key maps use the Hugging Face spelling, so that is what the encoder's parameters are called.
Source of the official names: Wan-Video/Wan2.2 wan/modules/t5.py at 42bf4cf.
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIXES = ("text_encoders.umt5xxl.transformer.", "umt5xxl.transformer.", "text_encoder.")

_OUTSIDE = {
    "token_embedding": "shared",
    "encoder.embed_tokens": "shared",
    "norm": "encoder.final_layer_norm",
}
_INSIDE_BLOCK = {
    "norm1": "layer.0.layer_norm",
    "norm2": "layer.1.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}

# llama.cpp's names. Source: ggml-org/llama.cpp gguf-py/gguf/constants.py, T5ENCODER.
_OUTSIDE |= {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}
_INSIDE_GGUF_BLOCK = {
    "attn_norm": "layer.0.layer_norm",
    "ffn_norm": "layer.1.layer_norm",
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
}


def encoder_names(names: Iterable[str]) -> dict[str, str]:
    """{name in the file: name in the encoder}; what is no parameter (`spiece_model`, `scaled_fp8`) keeps its name.

    The second copy of a tied table is left out.
    """
    mapped: dict[str, str] = {}
    for name in sorted(names, key=lambda name: "embed_tokens" in name):
        target = encoder_name(name)
        if target not in mapped.values() or "embed_tokens" not in name:
            mapped[name] = target
    return mapped


def encoder_name(name: str) -> str:
    """One tensor's name in the encoder: a parameter, or what belongs to one (`.scale_weight`, `.comfy_quant`)."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    module, dot, leaf = name.rpartition(".")
    if module in _OUTSIDE:
        return f"{_OUTSIDE[module]}{dot}{leaf}"
    parts = module.split(".", 2)
    if len(parts) == 3 and parts[0] == "blocks" and parts[2] in _INSIDE_BLOCK:
        return f"encoder.block.{parts[1]}.{_INSIDE_BLOCK[parts[2]]}{dot}{leaf}"
    parts = module.split(".", 3)
    if len(parts) == 4 and parts[:2] == ["enc", "blk"] and parts[3] in _INSIDE_GGUF_BLOCK:
        return f"encoder.block.{parts[2]}.{_INSIDE_GGUF_BLOCK[parts[3]]}{dot}{leaf}"
    return name
