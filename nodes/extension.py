"""What ComfyUI gets from the pack: every node of every family."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    animate,
    decode,
    doctor,
    eight_bits,
    frames,
    fun,
    guidance,
    images,
    keyframes,
    latents,
    loaders,
    long_video,
    lora,
    official,
    sampling,
    save,
    sound,
    text,
    vace,
    vision,
)

CONDITIONING = (text, latents, images, keyframes, frames, vace, fun, long_video, sound, animate)
FAMILIES = (loaders, vision, lora, *CONDITIONING, guidance, eight_bits, sampling, official, decode, save, doctor)


class WanExtension(ComfyExtension):
    """What ComfyUI asks for the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [node for family in FAMILIES for node in family.NODES]
