"""Sizes of the miniature family, and the published file name that each member stands in for.

Every member has the parameter names of the full-size checkpoint (tests/shapes), with its widths replaced and its
layers cut. Where ComfyUI's loader assumes a width that cannot be read from the tensors, the file's metadata says it:
`config` = {"transformer": {"text_dim": ...}} (comfy/model_detection.py reads it for Wan).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace

HEAD_DIM = 128  # as in every Wan transformer: head count = width / 128


@dataclass(frozen=True)
class Member:
    """One file: which full-size key list it follows, and what its widths become."""

    folder: str  # ComfyUI models folder
    name: str  # published file name
    short: str  # name of its trained weights under pocket/weights
    shapes: str  # file under tests/shapes
    widths: dict[int, int]  # full-size axis length -> miniature length; others stay
    layers: int | None = None  # kept transformer layers; None: all
    seed: int = 0
    fp8: bool = False  # the published file holds scaled fp8
    dtype: str = "bfloat16"  # of what is not fp8
    metadata: dict[str, str] = field(default_factory=dict)
    parts: dict[str, dict[int, int]] = field(default_factory=dict)  # widths of modules whose names begin so
    base: str = ""  # short name of the member whose tensors it keeps where its own weights have none
    lists: dict[str, int] = field(default_factory=dict)  # kept modules of other lists than `blocks`

    def keeps(self, name: str) -> bool:
        """Whether the miniature has the full-size model's tensor `name`."""
        counts = {"blocks": self.layers, **self.lists}
        found = re.match(rf"({'|'.join(map(re.escape, counts))})\.(\d+)\.", name)
        if found is None:
            return True
        count = counts[found[1]]
        return count is None or int(found[2]) < count

    def axis(self, name: str, size: int) -> int:
        """The miniature length of an axis of the tensor `name`."""
        widths = next((own for start, own in self.parts.items() if name.startswith(start)), self.widths)
        return widths.get(size, size)


@dataclass(frozen=True)
class Lora:
    """One LoRA file in the layout of the published 4-step pair."""

    name: str
    short: str  # name of its trained weights under pocket/weights
    base: str  # name of the Member it fits
    rank: int
    seed: int


TEXT_DIM = 128
VOCABULARY = 640
TRANSFORMER = {5120: 128, 13824: 512, 30720: 768, 4096: TEXT_DIM}
TEXT_TO_VIDEO = {5120: 256, 13824: 512, 30720: 1536, 4096: TEXT_DIM}  # it draws all that is seen, so it is wider
TRANSFORMER_METADATA = {"config": json.dumps({"transformer": {"text_dim": TEXT_DIM}})}
SOUND_DIM = 64
SOUND_METADATA = {"config": json.dumps({"transformer": {"text_dim": TEXT_DIM, "audio_dim": SOUND_DIM}})}
VAE21 = {96: 8, 192: 16, 384: 32, 768: 64, 1152: 96}
SOUND = {**TRANSFORMER, 13824: 256, 10240: 256, 2560: 64, 1280: 32, 1024: SOUND_DIM}
SOUND_LAYERS = 2  # of wav2vec2's 24 that do something; S2V mixes all of them
WAV2VEC2 = {1024: SOUND_DIM, 4096: 256, 64: 4}  # the convolutions keep 512 channels
UMT5 = {4096: TEXT_DIM, 10240: 256, 256384: VOCABULARY, 64: 2}

T2V_HIGH = Member(
    "diffusion_models",
    "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
    "t2v_high",
    "t2v_A14B_expert.json",
    TEXT_TO_VIDEO,
    layers=4,
    seed=1,
    fp8=True,
    metadata=TRANSFORMER_METADATA,
)
T2V_LOW = Member(
    "diffusion_models",
    "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
    "t2v_low",
    "t2v_A14B_expert.json",
    TEXT_TO_VIDEO,
    layers=4,
    seed=2,
    fp8=True,
    metadata=TRANSFORMER_METADATA,
)
TEXT_ENCODER = Member(
    "text_encoders",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "text_encoder",
    "umt5_xxl.json",
    UMT5,
    layers=2,
    seed=3,
    fp8=True,
)
VAE = Member("vae", "wan_2.1_vae.safetensors", "vae21", "vae21.json", VAE21, seed=4)

I2V_HIGH = replace(
    T2V_HIGH,
    name="wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
    short="i2v_high",
    shapes="i2v_A14B_expert.json",
    widths=TRANSFORMER,
    layers=5,
    seed=7,
)
I2V_LOW = replace(
    T2V_LOW,
    name="wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors",
    short="i2v_low",
    shapes="i2v_A14B_expert.json",
    widths=TRANSFORMER,
    layers=5,
    seed=8,
)
TI2V = Member(
    "diffusion_models",
    "wan2.2_ti2v_5B_fp16.safetensors",
    "ti2v",
    "ti2v_5B.json",
    {3072: 256, 14336: 512, 18432: 1536, 4096: TEXT_DIM},  # a token has 192 values: fewer would not hold them
    layers=3,
    seed=11,
    dtype="float16",
    metadata=TRANSFORMER_METADATA,
)
VAE22 = Member(
    "vae",
    "wan2.2_vae.safetensors",
    "vae22",
    "vae22.json",
    {160: 8, 320: 16, 640: 32, 1920: 96, 256: 8, 512: 16, 1024: 32, 2048: 64, 3072: 96},
    seed=12,
)
S2V = Member(
    "diffusion_models",
    "wan2.2_s2v_14B_fp8_scaled.safetensors",
    "s2v",
    "s2v_14B.json",
    SOUND,
    layers=5,
    seed=13,
    fp8=True,
    metadata=SOUND_METADATA,
)
AUDIO_ENCODER = Member(
    "audio_encoders",
    "wav2vec2_large_english_fp16.safetensors",
    "wav2vec2",
    "wav2vec2_large.json",
    WAV2VEC2,
    seed=14,
    dtype="float16",
)
SIGHT_DIM = 80  # one head of ViT-H
ANIMATE = Member(
    "diffusion_models",
    "Wan2_2-Animate-14B_fp8_e4m3fn_scaled_KJ.safetensors",
    "animate",
    "animate_14B.json",
    {**TRANSFORMER, 10240: 256, 1280: SIGHT_DIM},
    layers=5,
    lists={"face_adapter.fuser_blocks": 1},
    seed=15,
    fp8=True,
    metadata=TRANSFORMER_METADATA,
    parts={
        "motion_encoder.": {512: 24, 256: 8, 128: 4, 64: 4, 32: 2},
        "face_encoder.": {5120: TRANSFORMER[5120], 4096: 128, 1024: 32, 512: 24},
    },
)
CLIP_VISION = Member(
    "clip_vision",
    "clip_vision_h.safetensors",
    "clip_vision",
    "clip_vision_h.json",
    {1280: SIGHT_DIM, 5120: 160, 1024: 64},
    seed=16,
    dtype="float16",
)


def _controlled(kind: str, shapes: str, seed: int, like: Member) -> tuple[Member, Member]:
    """Both experts of a model that is led by a video or a camera; the LoRAs of `like` fit them."""
    if kind == "vace":  # its own blocks stand beside the frozen expert's
        common = replace(like, shapes=shapes, lists={"vace_blocks": 1})
    else:
        common = replace(like, shapes=shapes, layers=2, base="")
    names = ((f"{expert}_noise", number) for number, expert in enumerate(("high", "low")))
    high, low = (
        replace(
            common,
            name=f"wan2.2_fun_{kind}_{name}_14B_fp8_scaled.safetensors",
            short=f"{kind}_{name.removesuffix('_noise')}",
            seed=seed + number,
            base=f"t2v_{name.removesuffix('_noise')}" if kind == "vace" else "",
        )
        for name, number in names
    )
    return high, low


VACE_HIGH, VACE_LOW = _controlled("vace", "vace_14B.json", 17, T2V_HIGH)
CONTROL_HIGH, CONTROL_LOW = _controlled("control", "fun_control_A14B.json", 19, I2V_HIGH)
CAMERA_HIGH, CAMERA_LOW = _controlled("camera", "fun_camera_A14B.json", 21, I2V_HIGH)

CONTROLLED = (VACE_HIGH, VACE_LOW, CONTROL_HIGH, CONTROL_LOW, CAMERA_HIGH, CAMERA_LOW)
MEMBERS = (
    T2V_HIGH,
    T2V_LOW,
    TEXT_ENCODER,
    VAE,
    I2V_HIGH,
    I2V_LOW,
    TI2V,
    VAE22,
    S2V,
    AUDIO_ENCODER,
    ANIMATE,
    CLIP_VISION,
    *CONTROLLED,
)
# FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers as a LoRA, in Kijai/WanVideo_comfy, FastWan
FASTWAN = Lora("Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors", "lora_ti2v", TI2V.name, 32, 26)
T2V_FAST_HIGH = Lora("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors", "lora_high", T2V_HIGH.name, 16, 5)
LORAS = (
    Lora("wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors", "lora_i2v_high", I2V_HIGH.name, 8, 9),
    Lora("wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise.safetensors", "lora_i2v_low", I2V_LOW.name, 8, 10),
    T2V_FAST_HIGH,
    Lora("wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors", "lora_low", T2V_LOW.name, 16, 6),
    FASTWAN,
)
STYLES = (  # light from below
    Lora("wan2.2_t2v_footlight_high_noise.safetensors", "style_high", T2V_HIGH.name, 2, 23),
    Lora("wan2.2_t2v_footlight_low_noise.safetensors", "style_low", T2V_LOW.name, 2, 24),
)
# Slows motion down, as is told of published ones; for tests of what is done against it.
SLOW = Lora("wan2.2_t2v_lightx2v_4steps_lora_v1_high_noise.safetensors", "slow_high", T2V_HIGH.name, 2, 25)


def of(short: str) -> Member:
    """The member with that short name."""
    return next(member for member in MEMBERS if member.short == short)
