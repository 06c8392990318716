"""Animate: a pose video beside the noise, and a face video that every fifth block looks at.

B batch, C channels, T latent frames (the reference picture is frame 0), L tokens of the video, D width, n tokens of the
face in a latent frame. Parameter names are the official ones. Source: Wan-Video/Wan2.2 wan/modules/animate
(model_animate.py, face_blocks.py) at 42bf4cf; equal to it in tools/golden_cases/animate.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..attention import attention
from ..config import TransformerConfig
from ..errors import InputError
from ..hooks import Hooks
from ..ops import Ops
from ..stream import Span, Stream
from . import AdapterRun
from .causal import CausalConv, activated
from .face_motion import MotionEncoder

EPS = 1e-6
PICTURES = 8  # of the face that are encoded at once: 512 x 512 in float32 takes 32 MiB each


class FaceEncoder(nn.Module):
    """Vectors of motion, one for each frame, to tokens of latent frames."""

    def __init__(self, config: TransformerConfig, *, ops: type[Ops], **place: Any) -> None:
        super().__init__()
        hidden, self.heads = config.face_hidden, config.face_tokens
        self.conv1_local = CausalConv(config.face_features, hidden * self.heads, 1, ops=ops, **place)
        self.conv2 = CausalConv(hidden, hidden, 2, ops=ops, **place)
        self.conv3 = CausalConv(hidden, hidden, 2, ops=ops, **place)
        self.out_proj = ops.Linear(hidden, config.dim, **place)
        self.padding_tokens = nn.Parameter(torch.zeros(1, 1, 1, config.dim, **place))

    def forward(self, motion: Tensor) -> Tensor:
        """[B, frames, features] -> [B, frames / 4 rounded up, n, D]"""
        x = self.conv1_local(motion.transpose(1, 2)).unflatten(1, (self.heads, -1)).flatten(0, 1)
        x = activated(self.conv3(activated(self.conv2(activated(x))))).transpose(1, 2)
        tokens = self.out_proj(x).unflatten(0, (-1, self.heads)).transpose(1, 2)  # [B, T, heads, D]
        padding = self.padding_tokens.to(tokens).expand(*tokens.shape[:2], 1, -1)
        return torch.cat([tokens, padding], dim=2)


class FaceBlock(nn.Module):
    """Attention of one latent frame's tokens to the face in that frame; queries and keys are normed head by head."""

    def __init__(self, config: TransformerConfig, *, ops: type[Ops], **place: Any) -> None:
        super().__init__()
        self.ops, self.heads = ops, config.num_heads
        self.linear1_kv = ops.Linear(config.dim, 2 * config.dim, **place)
        self.linear1_q = ops.Linear(config.dim, config.dim, **place)
        self.linear2 = ops.Linear(config.dim, config.dim, **place)
        self.q_norm = ops.RMSNorm(config.head_dim, eps=EPS, **place)
        self.k_norm = ops.RMSNorm(config.head_dim, eps=EPS, **place)

    def forward(self, x: Tensor, face: Tensor, dtype: torch.dtype) -> Tensor:
        """x [B, L, D], face [B, T, n, D] -> [B, L, D] to be added; computes in `dtype`."""
        frames = face.shape[1]
        q = self._headwise(self.linear1_q(_normed(x, dtype)), self.q_norm)
        k, v = self.linear1_kv(_normed(face.flatten(1, 2), dtype)).chunk(2, dim=2)
        k = self._headwise(k, self.k_norm)
        q, k, v = (part.unflatten(1, (frames, -1)).flatten(0, 1) for part in (q, k, v))
        out = attention(q, k, v, self.heads)
        return self.linear2(out.unflatten(0, (-1, frames)).flatten(1, 2))

    def _headwise(self, x: Tensor, norm: nn.Module) -> Tensor:
        with self.ops.weights(norm, kernels.wide(x[:1, :1])) as (weight, _):
            return kernels.rms_norm(x.unflatten(2, (self.heads, -1)).flatten(1, 2), weight, eps=EPS).view(x.shape)


class FaceAdapter(nn.Module):
    """The blocks that look at the face."""

    def __init__(self, config: TransformerConfig, *, ops: type[Ops], **place: Any) -> None:
        super().__init__()
        self.fuser_blocks = nn.ModuleList(FaceBlock(config, ops=ops, **place) for _ in config.face_blocks)


def animate_parts(config: TransformerConfig, *, ops: type[Ops], **place: Any) -> dict[str, nn.Module]:
    """The modules that an Animate checkpoint has beside the plain transformer's."""
    patch = config.patch_size
    return {
        "pose_patch_embedding": ops.Conv3d(config.pose_dim, config.dim, kernel_size=patch, stride=patch, **place),
        "motion_encoder": MotionEncoder(config, ops=ops, **place),
        "face_adapter": FaceAdapter(config, ops=ops, **place),
        "face_encoder": FaceEncoder(config, ops=ops, **place),
    }


@dataclass(frozen=True)
class Face:
    """A face's tokens, bound to the blocks that look at them; [B, latent frames, n, D], the reference's first."""

    adapter: nn.Module
    places: tuple[int, ...]  # the transformer's blocks after which the face comes in
    tokens: Tensor

    def begin(self, tokens: Tensor, stream: Stream, hooks: Hooks) -> AdapterRun:
        """See Adapter."""
        return FaceRun(self, stream)


class FaceRun(AdapterRun):
    """Adds what the tokens see in the face after the blocks that it belongs to."""

    def __init__(self, face: Face, stream: Stream) -> None:
        blocks = face.adapter.get_submodule("fuser_blocks").children()
        self.blocks = dict(zip(face.places, blocks, strict=True))
        self.stream, frames = stream, stream.grid[0]
        tokens = face.tokens[:, :frames].to(stream.dtype)
        self.face = F.pad(tokens, (0, 0, 0, 0, 0, frames - tokens.shape[1]))

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        block = self.blocks.get(index)
        if block is None:
            return tokens
        video, others = tokens[:, : self.stream.video_tokens], tokens[:, self.stream.video_tokens :]
        video = video + block(video, self.face, self.stream.dtype).to(video)
        return torch.cat([video, others], dim=1) if others.shape[1] else video


def face_of(transformer: nn.Module, config: TransformerConfig, pictures: Tensor) -> Face:
    """Pictures of the face [B, 3, frames, side, side] in -1..1, one for each frame after the reference, as an adapter.

    Nothing is seen in the reference's frame, nor in frames after the last picture.

    Raises:
        InputError: the pictures are not of the size that the motion encoder takes.
    """
    side = 4 * 2 ** (len(config.face_channels) - 1)
    if tuple(pictures.shape[3:]) != (side, side):
        raise InputError(
            "The pictures of the face have another size than the model takes",
            where="face_video_pixels of the conditioning",
            found=f"{pictures.shape[4]}x{pictures.shape[3]} pixels",
            expected=f"{side}x{side}",
            remedy="Take Wan Animate to Video or ComfyUI's node, which scale the face video",
        )
    encoder = transformer.get_submodule("motion_encoder")
    frames = pictures.transpose(1, 2).flatten(0, 1)
    if bool((frames == frames[:1]).all()):  # there is no face: one picture tells as much as all
        motion = encoder(frames[:1]).expand(len(frames), -1)
    else:
        motion = torch.cat([encoder(some) for some in frames.split(PICTURES)])
    tokens = transformer.get_submodule("face_encoder")(motion.unflatten(0, (len(pictures), -1)))
    return Face(transformer.get_submodule("face_adapter"), config.face_blocks, F.pad(tokens, (0, 0, 0, 0, 1, 0)))


def pose_bias(embedding: nn.Module, poses: Tensor, grid: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Latents of the poses [B, C, frames, H, W] -> what is added to the tokens of a grid, [B, L, D].

    The reference's frame gets nothing, nor do frames after the last pose.

    Raises:
        InputError: the poses have another size than the video.
    """
    embedded = embedding(kernels.wide(poses)).to(dtype)
    if tuple(embedded.shape[3:]) != grid[1:]:
        raise InputError(
            "The pose video and the latent differ in size",
            where="pose_video_latent of the conditioning",
            found="{}x{} tokens".format(*embedded.shape[3:]),
            expected="{}x{}".format(*grid[1:]),
            remedy="Give both the same width and height",
        )
    embedded = embedded[:, :, : grid[0] - 1]
    missing = grid[0] - 1 - embedded.shape[2]
    return F.pad(embedded, (0, 0, 0, 0, 1, missing)).flatten(2).transpose(1, 2)


def _normed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, L, D] normed over the width."""
    nothing = kernels.wide(x.new_zeros(x.shape[0], 1, x.shape[2]))
    form = kernels.Form(dtype)
    normed = kernels.modulated_norm(x, nothing, nothing, (Span(x.shape[1], 1),), eps=EPS, form=form)
    assert isinstance(normed, Tensor)  # of that form
    return normed
