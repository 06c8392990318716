"""Sizes of the Wan transformers, read from a checkpoint's tensors.

Source: Wan-Video/Wan2.2 wan/configs and wan/modules/model.py at 42bf4cf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

CAMERA_RAYS = 24  # channels of the camera branch: the six numbers of a ray at the four frames of a latent frame
FACE_DISTANCE = 5  # blocks from one that sees the face to the next
SOUND_BLOCKS = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)  # of S2V-14B; the tensors only tell how many
HEAD_DIM = 128  # every published Wan checkpoint; the head count cannot be read from the tensors


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of one transformer; the defaults are what every published checkpoint has."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    eps: float = 1e-6
    rope_theta: float = 10000.0
    image_dim: int = 0  # width of the CLIP features that the cross-attention takes; 0: it takes none
    image_positions: int = 0  # learned positions of those features, for a first and a last picture; 0: none
    vace_dim: int = 0  # channels of VACE's control clips; 0: takes none
    vace_blocks: tuple[int, ...] = ()  # blocks after which VACE's hints come in
    reference_dim: int = 0  # channels of a reference picture's latent (Fun Control); 0: takes none
    camera_dim: int = 0  # channels of camera rays for each latent frame (Fun Camera); 0: takes none
    camera_fold: int = 8  # pixels along one side of what the camera branch folds into one place: those of a latent's
    audio_dim: int = 0  # width of the sound features; 0: takes no sound
    audio_layers: int = 0  # layers of the sound encoder that are mixed
    audio_tokens: int = 0  # tokens of sound for each latent frame
    audio_blocks: tuple[int, ...] = ()  # blocks after which the sound comes in
    pose_dim: int = 0  # channels of a pose video's latent (Animate); 0: takes no poses and no face
    face_channels: tuple[int, ...] = ()  # of the motion encoder: as it enters, then after each halving, down to 4 x 4
    face_style: int = 0  # width of a face without its places
    face_coefficients: int = 0  # of a face's motion
    face_features: int = 0  # width of a face's motion
    face_hidden: int = 0  # width of the face encoder
    face_tokens: int = 0  # of the face for each latent frame, beside one that is learned
    face_blocks: tuple[int, ...] = ()  # blocks after which the face comes in

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(f"width {self.dim} does not split into {self.num_heads} heads of even size")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, Sequence[int]]) -> TransformerConfig:
        """Reads the sizes from {official parameter name: shape}.

        Only first axes of linear weights and biases are used where packed 4-bit weights halve the second one.

        Raises:
            KeyError: the tensors are not a Wan transformer's.
            ValueError: one of its sizes is zero.
        """
        dim = shapes["head.modulation"][-1]
        layers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
        volume = shapes["patch_embedding.weight"][2:]
        config = cls(
            dim=dim,
            ffn_dim=shapes["blocks.0.ffn.0.bias"][0],
            num_heads=max(1, dim // HEAD_DIM),
            num_layers=len(layers),
            in_dim=shapes["patch_embedding.weight"][1],
            out_dim=shapes["head.head.bias"][0] // (volume[0] * volume[1] * volume[2]),
            text_dim=shapes["text_embedding.0.weight"][1],
            freq_dim=shapes["time_embedding.0.weight"][1],
            patch_size=(volume[0], volume[1], volume[2]),
            image_dim=shapes.get("img_emb.proj.0.weight", (0,))[0],
            image_positions=shapes.get("img_emb.emb_pos", (0, 0))[1],
            reference_dim=shapes.get("ref_conv.weight", (0, 0))[1],
            **_camera(shapes),
            **_vace(shapes, len(layers)),
            **_sound(shapes, dim),
            **face_sizes(shapes),
        )
        sizes = ("dim", "ffn_dim", "in_dim", "out_dim", "text_dim", "freq_dim")
        if empty := [size for size in sizes if getattr(config, size) < 1]:
            raise ValueError(f"{empty[0]}, which is 0")
        return config


def _camera(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The fields of a checkpoint that takes camera rays."""
    conv = shapes.get("control_adapter.conv.weight")
    if conv is None:
        return {}
    return {"camera_dim": CAMERA_RAYS, "camera_fold": isqrt(conv[1] // CAMERA_RAYS)}


def _vace(shapes: Mapping[str, Sequence[int]], layers: int) -> dict[str, Any]:
    """The fields of a checkpoint with VACE's blocks, which stand at equal distances."""
    if "vace_patch_embedding.weight" not in shapes:
        return {}
    count = len({name.split(".")[1] for name in shapes if name.startswith("vace_blocks.")})
    return {
        "vace_dim": shapes["vace_patch_embedding.weight"][1],
        "vace_blocks": tuple(range(0, layers, layers // count))[:count],
    }


def _sound(shapes: Mapping[str, Sequence[int]], dim: int) -> dict[str, Any]:
    """The fields of a checkpoint that takes sound."""
    first = shapes.get("casual_audio_encoder.encoder.conv1_local.conv.weight")
    if first is None:
        return {}
    layers = {name.split(".")[2] for name in shapes if name.startswith("audio_injector.injector.")}
    return {
        "audio_dim": first[1],
        "audio_layers": shapes["casual_audio_encoder.weights"][1],
        "audio_tokens": first[0] // (dim // 4),
        "audio_blocks": SOUND_BLOCKS[: len(layers)],
    }


def face_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """The fields of a checkpoint that takes poses and a face; those of the face where its modules stand alone."""
    convs, directions = "motion_encoder.enc.net_app.convs.", shapes.get("motion_encoder.dec.direction.weight")
    if directions is None:
        return {}
    last = max(int(name[len(convs) :].split(".")[0]) for name in shapes if name.startswith(convs))
    halved = (shapes[f"{convs}{number}.conv2.1.weight"][0] for number in range(1, last))
    hidden = shapes["face_encoder.conv2.conv.weight"][0]
    blocks = {name.split(".")[2] for name in shapes if name.startswith("face_adapter.fuser_blocks.")}
    return {
        "pose_dim": shapes.get("pose_patch_embedding.weight", (0, 0))[1],
        "face_channels": (shapes[f"{convs}0.0.weight"][0], *halved),
        "face_style": shapes[f"{convs}{last}.weight"][0],
        "face_coefficients": directions[1],
        "face_features": directions[0],
        "face_hidden": hidden,
        "face_tokens": shapes["face_encoder.conv1_local.conv.weight"][0] // hidden,
        "face_blocks": tuple(range(0, FACE_DISTANCE * len(blocks), FACE_DISTANCE)),
    }
