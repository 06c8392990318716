"""Which published safetensors file stands for a pickle: nobody has to look for what to take instead.

Sources: the file lists of Wan-AI's models (what is published as pickles), Comfy-Org/Wan_2.1_ComfyUI_repackaged,
Comfy-Org/Wan_2.2_ComfyUI_Repackaged, Kijai/WanVideo_comfy and lightx2v/Autoencoders on Hugging Face (what is published
as safetensors). Of the tiny VAEs only lightx2v's have the names by which ComfyUI finds one for its previews.
"""

from __future__ import annotations

import re
from pathlib import Path

from .downloads import with_address

MODELS = "models/diffusion_models"
PAIR = "wan2.2_{task}_{expert}_noise_14B_fp8_scaled.safetensors"
LORAS = {
    "t2v": "wan2.2_t2v_lightx2v_4steps_lora_v1.1_{expert}_noise.safetensors",
    "i2v": "wan2.2_i2v_lightx2v_4steps_lora_v1_{expert}_noise.safetensors",
}
FASTWAN = "Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors"
TURBO = "Wan22_TI2V_5B_Turbo_lora_rank_64_fp16.safetensors"
FEW_STEPS = r"light(x2v|ning)|(?<!\d)4[-_ ]?steps?"

# What a folder's or file's name says, the file to take, and its folder; the first that matches counts. `{expert}` is
# high or low, `{task}` t2v or i2v, both out of the name.
ROWS = (
    (r"taew?2[._]?2|lighttae.*2[._]2", "lighttaew2_2.safetensors", "models/vae_approx"),
    (r"taew?2[._]?1|lighttae", "lighttaew2_1.safetensors", "models/vae_approx"),
    (r"relight", "WanAnimate_relight_lora_fp16.safetensors", "models/loras"),
    (rf"(?=.*lora)(?=.*({FEW_STEPS}))(?=.*(high|low)).*t2v", LORAS["t2v"], "models/loras"),
    (rf"(?=.*lora)(?=.*({FEW_STEPS}))(?=.*(high|low)).*i2v", LORAS["i2v"], "models/loras"),
    (r"(?=.*5b(?![a-z])).*fastwan", FASTWAN, "models/loras"),
    (r"(?=.*5b(?![a-z])).*turbo", TURBO, "models/loras"),
    (r"lora", "", "models/loras"),
    (r"wav2vec", "wav2vec2_large_english_fp16.safetensors", "models/audio_encoders"),
    (r"umt5|(?<![a-z])t5(?![a-z])|text_encoder", "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "models/text_encoders"),
    (r"clip|vit[-_]?h(?![a-z])", "clip_vision_h.safetensors", "models/clip_vision"),
    (r"2[._]?2[-_ ]?vae|vae[-_ ]?2[._]?2", "wan2.2_vae.safetensors", "models/vae"),
    (r"vae", "wan_2.1_vae.safetensors", "models/vae"),
    (r"ti2v|(?<!\d)5b(?![a-z])", "wan2.2_ti2v_5B_fp16.safetensors", MODELS),
    (r"s2v", "wan2.2_s2v_14B_fp8_scaled.safetensors", MODELS),
    (r"animate", "wan2.2_animate_14B_bf16.safetensors", MODELS),
    (r"vace", "wan2.2_fun_vace_{expert}_noise_14B_fp8_scaled.safetensors", MODELS),
    (r"(?=.*(high|low)[-_ ]?noise).*(t2v|i2v)", PAIR, MODELS),
)
NO_PICKLE = "this pack opens no pickle and no archive"


def instead_of(path: Path) -> str:
    """What to do with a pickle: the safetensors file to take, by what the names of folder and file say."""
    file, folder = published_for(path)
    if file:
        return f"Take {with_address(file)} instead, into {folder}; {NO_PICKLE}"
    where = f", into {folder}" if folder else ""
    return f"Take {path.stem}.safetensors from the page of the same model{where}; {NO_PICKLE}"


def published_for(path: Path) -> tuple[str, str]:
    """The published file that this one is meant to be, by the names of folder and file, and its place.

    Both are empty for names that say nothing, the file alone where no other is published.
    """
    name = f"{path.parent.name}/{path.name}".lower()
    for pattern, file, folder in ROWS:
        if re.search(pattern, name):
            words = {"expert": "low" if "low" in name else "high", "task": "i2v" if "i2v" in name else "t2v"}
            return file.format(**words), folder
    return "", ""
