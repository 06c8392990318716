"""What a weights file is, read from its tensor names and shapes: one row per family, first match wins.

Sources: Wan-Video/Wan2.2 wan/modules at 42bf4cf for Wan; the published files' headers for the rest.
A new variant is one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..config import TransformerConfig
from ..tasks import (
    ANIMATE_14B,
    FLF2V_21,
    FUN_5B,
    FUN_21,
    FUN_A14B,
    I2V_21,
    I2V_A14B,
    S2V_14B,
    T2V_1_3B,
    T2V_21,
    T2V_A14B,
    TI2V_5B,
    VACE_21,
    VACE_FUN_A14B,
)

Shapes = Mapping[str, tuple[int, ...]]
DIFFUSION_MODEL, TEXT_ENCODER, VAE, LORA = "diffusion_model", "text_encoder", "vae", "lora"
CLIP_VISION, AUDIO_ENCODER, TINY_VAE, UNKNOWN = "clip_vision", "audio_encoder", "tiny_vae", "unknown"

KIND_TITLES = {
    DIFFUSION_MODEL: "diffusion model",
    TEXT_ENCODER: "text encoder",
    VAE: "VAE",
    LORA: "LoRA",
    CLIP_VISION: "CLIP vision model",
    AUDIO_ENCODER: "audio encoder",
    TINY_VAE: "tiny VAE for previews",
    UNKNOWN: "file of a kind that this pack does not know",
}

NATIVE_LOADERS = {  # display names of ComfyUI's own nodes
    DIFFUSION_MODEL: "Load Diffusion Model",
    TEXT_ENCODER: "Load CLIP",
    VAE: "Load VAE",
    CLIP_VISION: "Load CLIP Vision",
    AUDIO_ENCODER: "Load Audio Encoder",
}


@dataclass(frozen=True)
class Family:
    """One kind of file: how it is recognised and what it is called in errors."""

    kind: str
    id: str
    title: str
    matches: Callable[[Shapes], bool]
    of_wan21: bool = False  # only files whose name says Wan 2.1: the tensors are those of the next row
    of_experts: bool = False  # only files whose name says which expert they hold: the tensors are those of the next row


def _has(*names: str) -> Callable[[Shapes], bool]:
    return lambda shapes: all(name in shapes for name in names)


def _all(*conditions: Callable[[Shapes], bool]) -> Callable[[Shapes], bool]:
    return lambda shapes: all(condition(shapes) for condition in conditions)


def _any_start(*starts: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.startswith(starts) for name in shapes)


def _any_end(*ends: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.endswith(ends) for name in shapes)


def _latent_channels(channels: int) -> Callable[[Shapes], bool]:
    mark = "decoder.middle.0.residual.0.gamma"
    return lambda shapes: mark in shapes and shapes.get("conv2.weight", ())[:1] == (channels,)


def _tiny(channels: int) -> Callable[[Shapes], bool]:
    """TAEHV of madebyollin/taehv, as ComfyUI's comfy/sd.py tells it, with so many latent channels."""
    return lambda shapes: "decoder.22.bias" in shapes and shapes.get("decoder.1.weight", ())[1:2] == (channels,)


LAYERS = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
LORA_ENDS = (".lora_A.weight", ".lora_down.weight", ".lora_up.weight", ".lora_A.default.weight", ".lora.down.weight",
             ".lora_A", ".lora_linear_layer.down.weight", ".lokr_w1", ".lokr_w1_a", ".hada_w1_a", ".oft_blocks",
             ".diff", ".diff_b", ".diff_m", "_lora.up.weight", "_lora.down.weight",
             ".lora_A.default", ".w_norm", ".set_weight", ".a1.weight")  # fmt: skip

FILES = (
    Family(LORA, "lora", "LoRA", _any_end(*LORA_ENDS)),
    Family(DIFFUSION_MODEL, "module", "module of VACE without its model", _any_start("vace_blocks.")),
    Family(DIFFUSION_MODEL, "other", "diffusion model of another family",
           _any_start("double_blocks.", "single_blocks.", "joint_blocks.", "input_blocks.", "transformer_blocks.",
                      "model.diffusion_model.", "diffusion_model.", "down_blocks.", "double_stream_blocks.")),
    Family(TEXT_ENCODER, "umt5", "UMT5", _has("shared.weight", LAYERS.format(0), LAYERS.format(1))),
    Family(TEXT_ENCODER, "umt5", "UMT5", _has("encoder.embed_tokens.weight", LAYERS.format(0), LAYERS.format(1))),
    Family(TEXT_ENCODER, "umt5", "UMT5",
           _has("token_embedding.weight", "blocks.0.pos_embedding.embedding.weight",
                "blocks.1.pos_embedding.embedding.weight")),
    Family(TEXT_ENCODER, "umt5", "UMT5",
           _has("token_embd.weight", "enc.blk.0.attn_rel_b.weight", "enc.blk.1.attn_rel_b.weight")),
    Family(TEXT_ENCODER, "t5", "T5", _has("token_embd.weight", "enc.blk.0.attn_q.weight")),
    Family(TEXT_ENCODER, "t5", "T5", _has("encoder.block.0.layer.0.SelfAttention.q.weight")),
    Family(TEXT_ENCODER, "language model", "language model", _any_start("model.layers.", "model.language_model.")),
    Family(CLIP_VISION, "clip_vision", "CLIP vision model", _any_start("vision_model.", "visual.", "model.visual.")),
    Family(CLIP_VISION, "clip_vision", "CLIP vision model", _has("cls_embedding", "pos_embedding")),
    Family(TEXT_ENCODER, "clip", "CLIP text encoder", _any_start("text_model.", "transformer.resblocks.")),
    Family(AUDIO_ENCODER, "wav2vec2", "wav2vec2", _any_start("wav2vec2.", "feature_extractor.conv_layers.")),
    Family(AUDIO_ENCODER, "whisper", "Whisper", _any_start("model.encoder.embed_positions.")),
    Family(VAE, "vae22", "Wan 2.2 VAE", _latent_channels(48)),
    Family(VAE, "vae21", "Wan 2.1 VAE", _latent_channels(16)),
    Family(TINY_VAE, "taew22", "tiny VAE for previews of Wan 2.2 5B", _tiny(48)),
    Family(TINY_VAE, "taew21", "tiny VAE for previews of Wan 2.1 latents, or HunyuanVideo's", _tiny(16)),
    Family(VAE, "other", "VAE of another family", _any_start("decoder.", "first_stage_model.", "taesd_decoder.")),
)  # fmt: skip


def _plain(in_dim: int, out_dim: int, *, small: bool = False) -> Callable[[Shapes], bool]:
    def matches(shapes: Shapes) -> bool:
        config = TransformerConfig.from_shapes(shapes)
        return (config.in_dim, config.out_dim, config.dim == 1536) == (in_dim, out_dim, small)

    return matches


def _channels(*sizes: tuple[int, int]) -> Callable[[Shapes], bool]:
    """Any of these pairs of channels in and out."""

    def matches(shapes: Shapes) -> bool:
        config = TransformerConfig.from_shapes(shapes)
        return (config.in_dim, config.out_dim) in sizes

    return matches


CAMERA, CLIP_BRANCH = "control_adapter.conv.weight", "img_emb.proj.0.bias"

TRUNKS = (  # files with `head.modulation`; names as in the official spelling
    Family(DIFFUSION_MODEL, VACE_FUN_A14B.id, VACE_FUN_A14B.title, _has("vace_patch_embedding.weight"),
           of_experts=True),
    Family(DIFFUSION_MODEL, VACE_21.id, VACE_21.title, _has("vace_patch_embedding.weight")),
    Family(DIFFUSION_MODEL, FUN_21.id, FUN_21.title, _has(CAMERA, CLIP_BRANCH)),
    Family(DIFFUSION_MODEL, FUN_A14B.id, FUN_A14B.title,
           _all(_has(CAMERA), _channels((36, 16)))),
    Family(DIFFUSION_MODEL, FUN_5B.id, FUN_5B.title, _all(_has(CAMERA), _channels((100, 48)))),
    Family(DIFFUSION_MODEL, "camera", "Wan Fun Camera of a size that this pack does not know", _has(CAMERA)),
    Family(DIFFUSION_MODEL, S2V_14B.id, S2V_14B.title, _has("casual_audio_encoder.encoder.final_linear.weight")),
    Family(DIFFUSION_MODEL, "humo", "HuMo", _has("audio_proj.audio_proj_glob_1.layer.bias")),
    Family(DIFFUSION_MODEL, ANIMATE_14B.id, ANIMATE_14B.title, _has("face_adapter.fuser_blocks.0.k_norm.weight")),
    Family(DIFFUSION_MODEL, "scail2", "SCAIL-2", _has("patch_embedding_mask.weight")),
    Family(DIFFUSION_MODEL, "scail", "SCAIL", _has("patch_embedding_pose.weight")),
    Family(DIFFUSION_MODEL, "dancer", "WanDancer", _has("patch_embedding_global.weight")),
    Family(DIFFUSION_MODEL, FLF2V_21.id, FLF2V_21.title, _has("img_emb.emb_pos")),
    Family(DIFFUSION_MODEL, FUN_21.id, FUN_21.title,
           _all(_has(CLIP_BRANCH), _channels((48, 16)))),
    Family(DIFFUSION_MODEL, I2V_21.id, I2V_21.title, _has(CLIP_BRANCH)),
    Family(DIFFUSION_MODEL, FUN_A14B.id, FUN_A14B.title, _channels((52, 16))),
    Family(DIFFUSION_MODEL, FUN_5B.id, FUN_5B.title, _channels((100, 48), (148, 48))),
    Family(DIFFUSION_MODEL, TI2V_5B.id, TI2V_5B.title, _plain(48, 48)),
    Family(DIFFUSION_MODEL, I2V_A14B.id, I2V_A14B.title, _plain(36, 16)),
    Family(DIFFUSION_MODEL, T2V_1_3B.id, T2V_1_3B.title, _plain(16, 16, small=True)),
    Family(DIFFUSION_MODEL, T2V_21.id, T2V_21.title, _plain(16, 16), of_wan21=True),
    Family(DIFFUSION_MODEL, T2V_A14B.id, T2V_A14B.title, _plain(16, 16)),
    Family(DIFFUSION_MODEL, "wan", "Wan variant that this pack does not know", lambda _: True),
)  # fmt: skip
