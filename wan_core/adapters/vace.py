"""VACE: a second, shorter row of blocks reads control clips and gives hints to the first.

B batch, C channels, F/H/W latent frames/rows/columns, L tokens of the video, D width. Parameter names are the official
ones. Source: Wan-Video/Wan2.1 wan/modules/vace_model.py and wan/vace.py at 9737cba; equal to it in
tools/golden_cases/vace.py. The official code computes all hints before the first block; none depends on the blocks
that the hints go to, so here each is computed where it is added, and one is kept at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..blocks import Block
from ..config import TransformerConfig
from ..errors import InputError
from ..geometry import FRAME_STRIDE
from ..hooks import Hooks
from ..ops import Ops
from ..stream import Stream
from . import AdapterRun

MASK_FOLD = 8  # rows and columns of mask pixels that become channels of one latent place


class VaceBlock(Block):
    """A block like the transformer's own, with the way in (the first one only) and the way out."""

    def __init__(self, config: TransformerConfig, *, first: bool, ops: type[Ops], **place: Any) -> None:
        super().__init__(config, ops=ops, **place)
        if first:
            self.before_proj = ops.Linear(config.dim, config.dim, **place)
        self.after_proj = ops.Linear(config.dim, config.dim, **place)


def vace_parts(config: TransformerConfig, *, ops: type[Ops], **place: Any) -> dict[str, nn.Module]:
    """The modules that a VACE checkpoint has beside the plain transformer's."""
    patch, count = config.patch_size, len(config.vace_blocks)
    return {
        "vace_patch_embedding": ops.Conv3d(config.vace_dim, config.dim, kernel_size=patch, stride=patch, **place),
        "vace_blocks": nn.ModuleList(VaceBlock(config, first=i == 0, ops=ops, **place) for i in range(count)),
    }


@dataclass(frozen=True)
class ControlClip:
    """What VACE reads: kept picture 16, changed picture 16, mask 64 channels; references stand in front in time."""

    latent: Tensor  # [B, 96, F, H, W]
    strength: float = 1.0


@dataclass(frozen=True)
class Vace:
    """Control clips of one prompt, bound to the blocks that read them."""

    embedding: nn.Module
    blocks: Sequence[nn.Module]
    places: tuple[int, ...]  # the transformer's blocks that get hints
    clips: tuple[ControlClip, ...]

    def begin(self, tokens: Tensor, stream: Stream, hooks: Hooks) -> AdapterRun:
        """See Adapter.

        Raises:
            InputError: a control clip has another size than the video.
        """
        video = tokens[:, : stream.video_tokens]
        return VaceRun(self, [self._entering(clip.latent, video, stream) for clip in self.clips], stream, hooks)

    def _entering(self, latent: Tensor, video: Tensor, stream: Stream) -> Tensor:
        """Tokens that enter the first VACE block, [B, L, D]."""
        embedded = self.embedding(kernels.eager.wide(latent))
        if tuple(embedded.shape[2:]) != stream.grid:
            raise InputError(
                "The VACE control clip and the latent differ in size",
                where="vace_frames of the conditioning",
                found="{} latent frames of {}x{} tokens".format(*embedded.shape[2:]),
                expected="{} of {}x{}".format(*stream.grid),
                remedy="Give both the same width, height and length, and do not trim the latent before the sampler",
            )
        tokens = embedded.flatten(2).transpose(1, 2).to(stream.dtype)
        return self.blocks[0].get_submodule("before_proj")(tokens).to(video) + video


class VaceRun(AdapterRun):
    """Takes each control clip through the VACE blocks, one block for each hint."""

    def __init__(self, vace: Vace, entering: list[Tensor], stream: Stream, hooks: Hooks) -> None:
        self.blocks = dict(zip(vace.places, vace.blocks, strict=True))
        self.strengths = [clip.strength for clip in vace.clips]
        self.tokens, self.stream, self.hooks = entering, stream.of_video(), hooks

    def after_block(self, index: int, tokens: Tensor) -> Tensor:
        block = self.blocks.get(index)
        if block is None:
            return tokens
        video, others = tokens[:, : self.stream.video_tokens], tokens[:, self.stream.video_tokens :]
        for number, strength in enumerate(self.strengths):
            self.tokens[number] = block(self.tokens[number], self.stream, self.hooks)
            hint = block.get_submodule("after_proj")(self.tokens[number].to(self.stream.dtype))
            video = torch.add(video, hint.to(video), alpha=strength)
        return torch.cat([video, others], dim=1) if others.shape[1] else video


def vace_adapters(transformer: nn.Module, config: TransformerConfig, clips: Sequence[ControlClip]) -> tuple[Vace, ...]:
    """Binds control clips to a transformer with VACE blocks; those of strength 0 change nothing and cost nothing."""
    heard = tuple(clip for clip in clips if clip.strength)
    if not heard:
        return ()
    blocks = transformer.get_submodule("vace_blocks")
    assert isinstance(blocks, nn.ModuleList)
    return (Vace(transformer.get_submodule("vace_patch_embedding"), list(blocks), config.vace_blocks, heard),)


def mask_channels(mask: Tensor, references: int = 0) -> Tensor:
    """The mask as VACE reads it: [frames, H, W] of 0..1, 1 is to change -> [64, references + T, H / 8, W / 8].

    Places of 8 x 8 pixels become channels, frames are thinned out to latent frames, and reference pictures, which
    stand in front, are kept: 0.
    """
    frames, height, width = mask.shape
    rows, columns = height // MASK_FOLD, width // MASK_FOLD
    folded = mask.reshape(frames, rows, MASK_FOLD, columns, MASK_FOLD).permute(2, 4, 0, 1, 3).flatten(0, 1)
    latent_frames = (frames + FRAME_STRIDE - 1) // FRAME_STRIDE
    thinned = F.interpolate(folded[None], size=(latent_frames, rows, columns), mode="nearest-exact")[0]
    return F.pad(thinned, (0, 0, 0, 0, references, 0))
