"""What is run: models with their files, clips, and cards."""

from __future__ import annotations

from dataclasses import dataclass

UMT5 = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE21 = "wan_2.1_vae.safetensors"
VAE22 = "wan2.2_vae.safetensors"
GIB = 2**30


@dataclass(frozen=True)
class Model:
    """Files by their published names, and the template that names them."""

    template: str
    files: tuple[str, ...]  # the experts
    shapes: str  # file in tests/shapes
    precision: str  # "fp8", "Q4_K", "fp16"
    vae: str = VAE21
    text_encoder: str = UMT5

    @property
    def has_picture(self) -> bool:
        return "Image" in self.template and self.vae == VAE21


MODELS = {
    "t2v-fp8": Model(
        "Wan 2.2 Text to Video",
        ("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"),
        "t2v_A14B_expert",
        "fp8",
    ),
    "i2v-fp8": Model(
        "Wan 2.2 Image to Video",
        ("wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors", "wan2.2_i2v_low_noise_14B_fp8_scaled.safetensors"),
        "i2v_A14B_expert",
        "fp8",
    ),
    "i2v-bf16": Model(
        "Wan 2.2 Image to Video",
        ("wan2.2_i2v_high_noise_14B_bf16.safetensors", "wan2.2_i2v_low_noise_14B_bf16.safetensors"),
        "i2v_A14B_expert",
        "bf16",
    ),
    "t2v-Q4_K": Model(
        "Wan 2.2 Text to Video",
        ("Wan2.2-T2V-A14B-HighNoise-Q4_K_S.gguf", "Wan2.2-T2V-A14B-LowNoise-Q4_K_S.gguf"),
        "t2v_A14B_expert",
        "Q4_K",
    ),
    "ti2v-5B": Model(
        "Wan 2.2 5B Text and Image to Video", ("wan2.2_ti2v_5B_fp16.safetensors",), "ti2v_5B", "fp16", VAE22
    ),
}


@dataclass(frozen=True)
class Clip:
    """Pixels, frames and forwards."""

    name: str
    width: int
    height: int
    frames: int
    steps: int = 4
    cfg: float = 1.0


CLIPS = {
    "480p81": Clip("480p81", 832, 480, 81),
    "720p81": Clip("720p81", 1280, 720, 81),
    "5b121": Clip("5b121", 1280, 704, 121),
    "smoke": Clip("smoke", 64, 64, 9),
}


@dataclass(frozen=True)
class Card:
    """What is left of the GPU, of the RAM and of the link between them."""

    name: str
    vram: int | None  # bytes that are free when ComfyUI starts; None: the whole card
    ram: int | None  # bytes; None: the machine's
    rate: float | None = None  # GB/s; None: the machine's


def card(name: str, gib: float, ram: int, rate: float | None) -> Card:
    return Card(f"{name}, {rate:g} GB/s" if rate else name, int(gib * GIB), ram * GIB, rate)


FREE = {"8": (7.2, 24), "12": (11, 32), "16": (15, 32), "24": (23, 32)}  # card -> GiB free, GiB of RAM
RAM = 32  # GiB beside a card that is named by what is free


def named(name: str) -> str:
    """The name of a card: "8" and the like, "whole", or GiB that are free ("3.5GiB").

    Raises:
        ValueError: it is none of these.
    """
    if name not in ("whole", *FREE):
        float(name.removesuffix("GiB"))
    return name


def cards(names: list[str], rates: list[float]) -> list[Card]:
    """The cards of these names, each at every rate."""
    found = []
    for name in names:
        if name == "whole":
            found.append(Card("whole", None, None))
        elif name in FREE:
            gib, ram = FREE[name]
            found.extend(card(f"{name} GB", gib, ram, rate) for rate in rates)
        else:
            found.extend(card(name, float(name.removesuffix("GiB")), RAM, rate) for rate in rates)
    return found
