"""What is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Forward:
    """One call of a transformer."""

    name: str
    shapes: str  # file in tests/shapes
    frames: int
    height: int
    width: int
    channels: int = 16
    spatial: int = 8  # pixels to a latent row

    @property
    def latent(self) -> tuple[int, ...]:
        return 1, self.channels, (self.frames - 1) // 4 + 1, self.height // self.spatial, self.width // self.spatial


@dataclass(frozen=True)
class Autoencoding:
    """Decoding and encoding one clip."""

    name: str
    shapes: str
    frames: int
    height: int
    width: int
    channels: int = 16
    spatial: int = 8

    @property
    def latent(self) -> tuple[int, ...]:
        return 1, self.channels, (self.frames - 1) // 4 + 1, self.height // self.spatial, self.width // self.spatial


FORWARDS = {
    "480p81": Forward("14B 832x480x81", "t2v_A14B_expert", 81, 480, 832),
    "720p81": Forward("14B 1280x720x81", "t2v_A14B_expert", 81, 720, 1280),
    "5b": Forward("5B 1280x704x121", "ti2v_5B", 121, 704, 1280, 48, 16),
}
CLIPS = {
    "vae480": Autoencoding("VAE 2.1 832x480x81", "vae21", 81, 480, 832),
    "vae720": Autoencoding("VAE 2.1 1280x720x81", "vae21", 81, 720, 1280),
    "vae22": Autoencoding("VAE 2.2 1280x704x121", "vae22", 121, 704, 1280, 48, 16),
}
ERROR = Forward("error: 4 layers, 832x480x17", "t2v_A14B_expert", 17, 480, 832)
SMOKE_FORWARDS = {
    "480p81": Forward("smoke 14B", "t2v_A14B_expert", 5, 64, 64),
    "5b": Forward("smoke 5B", "ti2v_5B", 5, 128, 128, 48, 16),
}
SMOKE_CLIPS = {"vae480": Autoencoding("smoke VAE 2.1", "vae21", 5, 32, 32)}
SMOKE_ERROR = Forward("error: smoke", "t2v_A14B_expert", 5, 64, 64)
SMOKE_SIZES = {5120: 256, 13824: 512, 30720: 1536, 3072: 256, 14336: 512, 18432: 1536}  # published width -> small one
SMOKE_VAE_SIZES = {96: 16, 192: 32, 384: 64, 768: 128, 1152: 192}
