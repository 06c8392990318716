"""The spellings of LoRA files: every name as `diffusion_model.<official module>.<part>`, as ComfyUI reads it.

Trainers prefix the module (diffusion_model., transformer., base_model.model., lora_unet_, nothing), write it with dots
or underscores, under official or diffusers names, and call the two matrices in a dozen ways. Nothing is computed here:
tensors keep their values, and a name that is no module of Wan stays as it is.
Sources: the headers of published files; diffusers src/diffusers/loaders/lora_conversion_utils.py (key names only).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .keys import diffusers_module

PREFIX = "diffusion_model."
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
MOST_CONFIG = 2**20  # characters
DOWN = ".lora_down.weight"
DOTTED = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer_2.",
    "transformer.",
    "unet.",
    "pipe.dit.",
    "model.",
)
OTHER_MODELS = ("lora_te", "text_encoder", "text_model")
UNDERSCORED = ("lora_unet__", "lora_unet_", "lora_transformer_", "lycoris_")

# What trainers call the parts -> what ComfyUI reads for every model. First match wins.
PARTS = (
    ("lora_A.default.weight", "lora_down.weight"),
    ("lora_B.default.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_down.weight"),
    ("lora_B.weight", "lora_up.weight"),
    ("lora_A.default", "lora_down.weight"),
    ("lora_B.default", "lora_up.weight"),
    ("lora_B.bias", "diff_b"),
    ("lora_up.bias", "diff_b"),
    ("lora_A", "lora_down.weight"),
    ("lora_B", "lora_up.weight"),
    ("lora.down.weight", "lora_down.weight"),
    ("lora.up.weight", "lora_up.weight"),
    ("lora_linear_layer.down.weight", "lora_down.weight"),
    ("lora_linear_layer.up.weight", "lora_up.weight"),
    ("lora_magnitude_vector.default.weight", "dora_scale"),
    ("lora_magnitude_vector.weight", "dora_scale"),
    ("lora_magnitude_vector", "dora_scale"),
    ("diff_m", "modulation.diff"),  # LightX2V's: a parameter of the module itself
)
AS_THEY_ARE = (
    "lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale", "diff", "diff_b", "set_weight",
    "reshape_weight", "w_norm", "b_norm", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "oft_blocks", "rescale",
    "a1.weight", "a2.weight", "b1.weight", "b2.weight",
)  # fmt: skip
ENDS = (*PARTS, *((part, part) for part in AS_THEY_ARE))

# Modules of Wan that a LoRA of another variant may carry: without them it still does what it was made for.
HARMLESS = {
    "img_emb": "picture features, which only Wan 2.1 I2V has",
    "k_img": "picture features, which only Wan 2.1 I2V has",
    "v_img": "picture features, which only Wan 2.1 I2V has",
    "norm_k_img": "picture features, which only Wan 2.1 I2V has",
    "vace_blocks": "blocks of VACE",
    "vace_patch_embedding": "blocks of VACE",
    "patch_embedding": "another number of input channels",
    "to_gate_compress": "gates of FastVideo's sparse attention, which full attention does not have",
    "lora_te[0-9]?": "the text encoder, which Wan LoRAs do not need",
    "text_encoder": "the text encoder, which Wan LoRAs do not need",
}

# Underscored names lose the dots; the modules of Wan hold these words with an underscore of their own.
WORDS = (
    "self_attn", "cross_attn", "norm_q", "norm_k_img", "norm_k", "k_img", "v_img", "text_embedding", "time_embedding",
    "time_projection", "patch_embedding", "img_emb", "vace_blocks", "vace_patch_embedding", "before_proj",
    "after_proj", "condition_embedder", "time_embedder", "text_embedder", "image_embedder", "time_proj", "linear_1",
    "linear_2", "to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj", "norm_added_k", "proj_out", "ref_conv",
    "control_adapter", "residual_blocks", "face_adapter", "fuser_blocks", "linear1_kv", "linear1_q", "q_norm", "k_norm",
    "motion_encoder", "net_app", "face_encoder", "conv1_local", "conv1_global", "out_proj", "pose_patch_embedding",
    "audio_injector", "injector_pre_norm_feat", "injector_pre_norm_vec", "injector_adain_layers",
    "casual_audio_encoder", "final_linear", "cond_encoder", "frame_packer", "proj_2x", "proj_4x", "trainable_cond_mask",
)  # fmt: skip
_WORD = re.compile("|".join(sorted(WORDS, key=len, reverse=True)))


def official_name(name: str) -> str:
    """One tensor's name: transformer.blocks.0.attn1.to_q.lora_A.weight becomes
    diffusion_model.blocks.0.self_attn.q.lora_down.weight.
    """
    module, part = _split(name)
    if not part or module.startswith(OTHER_MODELS):
        return name
    return f"{PREFIX}{_module(module)}.{part}"


def module_of(name: str) -> str:
    """The module that a tensor belongs to, under the name in which it is written."""
    return _split(name)[0]


def _split(name: str) -> tuple[str, str]:
    """Module and part; the part is empty where the name is no LoRA's."""
    for end, part in ENDS:
        if name.endswith((f".{end}", f"_{end}")) and len(name) > len(end) + 1:
            return name[: -len(end) - 1], part
    return name, ""


def _module(module: str) -> str:
    for prefix in UNDERSCORED:
        if module.startswith(prefix):
            return diffusers_module(_dotted(module[len(prefix) :]))
    stripped = True
    while stripped:
        prefix = next((prefix for prefix in DOTTED if module.startswith(prefix)), "")
        module, stripped = module[len(prefix) :], bool(prefix)
    return diffusers_module(module.replace(".processor.", "."))


def _dotted(module: str) -> str:
    """blocks_0_self_attn_q -> blocks.0.self_attn.q."""
    kept = _WORD.sub(lambda match: match[0].replace("_", "\0"), module)
    return kept.replace("_", ".").replace("\0", "_")


def why_unknown(layer: str) -> str:
    """Why it does no harm that the model lacks this module or has it in another shape; empty where it may."""
    text = layer.replace(".", "_")
    return next((why for word, why in HARMLESS.items() if re.search(rf"(?<![a-z]){word}(?![a-z])", text)), "")


@dataclass(frozen=True)
class PeftScale:
    """How much raw PEFT files scale their products by, whose alpha is in no tensor."""

    alpha: float
    rank: float
    by_root: bool = False  # rank-stabilised: alpha over the root of the rank
    by_layer: bool = False  # layers have ranks of their own
    alphas: tuple[tuple[str, float], ...] = ()  # of some layers, by the ends of their names in the file; ^: whole names

    def alpha_of(self, rank: int, layer: str = "") -> float:
        """The alpha that ComfyUI divides by the rank of a layer, by its name in the file."""
        own = (alpha for end, alpha in self.alphas if f".{layer}".endswith(f".{end.removeprefix('^')}"))
        base = rank if self.by_layer else self.rank
        return next(own, self.alpha) / (math.sqrt(base) if self.by_root else base) * rank


def peft_scale(path: Path, metadata: Mapping[str, str]) -> PeftScale | None:
    """Of a PEFT file, by its metadata or the adapter_config.json that PEFT writes beside it; None: neither is there."""
    texts = [metadata[key] for key in ("lora_adapter_metadata", "adapter_config") if key in metadata]
    if path.name == PEFT_FILE:
        with suppress(OSError, UnicodeDecodeError), (path.parent / PEFT_CONFIG).open(encoding="utf-8") as file:
            texts.append(file.read(MOST_CONFIG))
    for text in texts:
        try:
            config = json.loads(text)
        except (ValueError, RecursionError):
            continue
        flat = {name.rpartition(".")[2]: value for name, value in config.items()} if isinstance(config, dict) else {}
        alpha, rank = flat.get("lora_alpha"), flat.get("r")
        if isinstance(alpha, (int, float)) and isinstance(rank, (int, float)) and rank > 0:
            by_layer = bool(flat.get("rank_pattern"))
            return PeftScale(alpha, rank, flat.get("use_rslora") is True, by_layer, _alphas(flat.get("alpha_pattern")))
    return None


def _alphas(pattern: object) -> tuple[tuple[str, float], ...]:
    """Layers with alphas of their own."""
    found = pattern.items() if isinstance(pattern, dict) else ()
    return tuple((end, float(alpha)) for end, alpha in found if isinstance(alpha, (int, float)))
