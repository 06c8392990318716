"""Where published files lie, by their names: an error that misses one says where to get it.

Sources: the file lists of these repositories on Hugging Face. A name that is not in them has no address.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

HUB = "https://huggingface.co"
WAN_21 = f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN_22 = f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
KIJAI = f"{HUB}/Kijai/WanVideo_comfy/resolve/main"
ANIMATE = f"{HUB}/Kijai/WanVideo_comfy_fp8_scaled/resolve/main/Wan22Animate"
GGUF = f"{HUB}/QuantStack/Wan2.2"
TINY_VAES = f"{HUB}/lightx2v/Autoencoders/resolve/main"
UMT5_GGUF = f"{HUB}/city96/umt5-xxl-encoder-gguf/resolve/main"

# A whole file name, and the folder that it lies in; `{1}` and `{2}` are groups of the name.
ROWS = (
    (r"umt5_xxl_(?:fp8_e4m3fn_scaled|fp16)\.safetensors", f"{WAN_21}/text_encoders"),
    (r"clip_vision_h\.safetensors", f"{WAN_21}/clip_vision"),
    (r"wan(?:_2\.1|2\.2)_vae\.safetensors", f"{WAN_22}/vae"),
    (r"wav2vec2_large_english_fp16\.safetensors", f"{WAN_22}/audio_encoders"),
    (r"wan2\.2_t2v_lightx2v_4steps_lora_v1\.1_(?:high|low)_noise\.safetensors", f"{WAN_22}/loras"),
    (r"wan2\.2_i2v_lightx2v_4steps_lora_v1_(?:high|low)_noise\.safetensors", f"{WAN_22}/loras"),
    (r"Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16\.safetensors", f"{KIJAI}/FastWan"),
    (r"Wan22_TI2V_5B_Turbo_lora_rank_64_fp16\.safetensors", f"{KIJAI}/LoRAs/Wan22-Turbo"),
    (r"wan2\.2_[ti]2v_(?:high|low)_noise_14B_(?:fp8_scaled|fp16)\.safetensors", f"{WAN_22}/diffusion_models"),
    (
        r"wan2\.2_fun_(?:vace|control|camera|inpaint)_(?:high|low)_noise_14B_fp8_scaled\.safetensors",
        f"{WAN_22}/diffusion_models",
    ),
    (r"wan2\.2_(?:ti2v_5B_fp16|s2v_14B_fp8_scaled|animate_14B_bf16)\.safetensors", f"{WAN_22}/diffusion_models"),
    (r"Wan2_2-Animate-14B_fp8_e4m3fn_scaled_KJ\.safetensors", ANIMATE),
    (r"Wan2\.2-([TI]2V)-A14B-((?:High|Low)Noise)-\w+\.gguf", f"{GGUF}-{{1}}-A14B-GGUF/resolve/main/{{2}}"),
    (r"lighttaew2_[12]\.safetensors", TINY_VAES),
    (r"umt5-xxl-encoder-\w+\.gguf", UMT5_GGUF),
)


def address_of(name: str) -> str | None:
    """Where a file with this name, of any folder, can be downloaded; None: nobody publishes it that we know of."""
    base = PurePosixPath(name.replace("\\", "/")).name
    for pattern, folder in ROWS:
        if found := re.fullmatch(pattern, base):
            return f"{folder.format(found[0], *found.groups())}/{base}"
    return None


def with_address(name: str) -> str:
    """The name for a sentence: with its address behind it where there is one."""
    address = address_of(name)
    return f"{name} ({address})" if address else name
