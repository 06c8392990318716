"""Wan 2.x video transformer: patch embedding, equal blocks, modulated head.

B batch, C channels, F/H/W latent frames/rows/columns, L tokens, D width, R rows of modulation.
Source: Wan-Video/Wan2.2 wan/modules/model.py at 42bf4cf; equal to it in tests/core/test_golden.py.
Knows no task: T2V, I2V, TI2V, S2V, Animate and VACE differ only in the Conditioning that they pass.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import kernels
from .adapters import AdapterRun
from .adapters.parts import variant_parts
from .blocks import Block
from .conditioning import Conditioning, ContextGroup, TokenGroup
from .config import TransformerConfig
from .errors import WrongModelError
from .guidance import Against
from .hooks import Hooks
from .ops import Ops, TorchOps
from .rope import grid_axes, grid_rotation, rotation
from .stream import Span, Stream


def sinusoid(timestep: Tensor, size: int) -> Tensor:
    """Cosines, then sines, of the timestep (0..1000) at size / 2 frequencies: [...] -> [..., size] float64."""
    wide_enough = torch.float32 if timestep.device.type == "mps" else torch.float64  # MPS has no float64
    half = size // 2
    ladder = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = timestep.to(wide_enough).unsqueeze(-1) * ladder.to(timestep.device, wide_enough)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ImageEmbedding(nn.Module):
    """Brings CLIP features of a picture, or of a first and a last one, to the transformer's width."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        ops: type[Ops],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        self.proj = nn.Sequential(
            ops.LayerNorm(config.image_dim, **place),
            ops.Linear(config.image_dim, config.image_dim, **place),
            nn.GELU(),
            ops.Linear(config.image_dim, config.dim, **place),
            ops.LayerNorm(config.dim, **place),
        )
        if config.image_positions:
            self.emb_pos = nn.Parameter(torch.zeros(1, config.image_positions, config.image_dim, **place))

    def forward(self, features: Tensor) -> Tensor:
        """[B, n, image_dim] -> [B, n, D]"""
        if hasattr(self, "emb_pos"):
            features = features + self.emb_pos[:, : features.shape[1]].to(features)
        return self.proj(features)


class Head(nn.Module):
    """From tokens to the values of their patches, in float32."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        ops: type[Ops],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.ops, self.eps = ops, config.eps
        size = math.prod(config.patch_size) * config.out_dim
        self.head = ops.Linear(config.dim, size, device=device, dtype=dtype)
        self.modulation = nn.Parameter(torch.zeros(1, 2, config.dim, device=device, dtype=dtype))

    def forward(self, x: Tensor, time: Tensor, span: Span) -> Tensor:
        """Video tokens x [B, L, D] and their rows of time [B, R, D] -> [B, L, patch values * channels] float32."""
        shift, scale = (time.unsqueeze(2) + self.ops.parameter(self, "modulation", time).unsqueeze(1)).unbind(2)
        form = kernels.Form(time.dtype)
        return self.head(kernels.modulated_norm(x, shift, scale, (span,), eps=self.eps, form=form))


def _run(block: nn.Module, tokens: Tensor, stream: Stream, hooks: Hooks) -> Tensor:
    """The block's answer, with the host's help where there is one and the block fails."""
    call = partial(block, tokens, stream, hooks)
    return call() if hooks.recovery is None else hooks.recovery.attempt(call)


class WanTransformer(nn.Module):
    """Predicts the flow velocity of a noisy latent."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        ops: type[Ops] = TorchOps,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        residual_dtype: torch.dtype | None = None,
    ) -> None:
        """Builds the layers of `config`, weights in `dtype`.

        residual_dtype is that of the tokens between the blocks: None keeps the video's (fast), float32 is what the
        official code does (quality). The linear layers compute in the dtype of the video that forward gets.
        """
        super().__init__()
        self.config, self.ops, self.dtype, self.residual_dtype = config, ops, dtype or torch.float32, residual_dtype
        self.dim, self.num_heads, self.num_layers = config.dim, config.num_heads, config.num_layers
        self.in_dim, self.out_dim, self.patch_size = config.in_dim, config.out_dim, config.patch_size
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        dim, patch = config.dim, config.patch_size
        self.patch_embedding = ops.Conv3d(config.in_dim, dim, kernel_size=patch, stride=patch, **place)
        self.text_embedding = nn.Sequential(
            ops.Linear(config.text_dim, dim, **place), nn.GELU(approximate="tanh"), ops.Linear(dim, dim, **place)
        )
        self.time_embedding = nn.Sequential(
            ops.Linear(config.freq_dim, dim, **place), nn.SiLU(), ops.Linear(dim, dim, **place)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), ops.Linear(dim, 6 * dim, **place))
        self.blocks = nn.ModuleList(Block(config, ops=ops, **place) for _ in range(config.num_layers))
        self.head = Head(config, ops=ops, **place)
        if config.image_dim:
            self.img_emb = ImageEmbedding(config, ops=ops, **place)
        for name, part in variant_parts(config, ops=ops, **place).items():
            self.add_module(name, part)

    def forward(
        self, video: Tensor, timestep: Tensor, conditioning: Conditioning, hooks: Hooks | None = None
    ) -> Tensor:
        """video [B, C, F, H, W], timestep [B] or [B, R] in 0..1000 -> velocity [B, C_out, F, H, W] float32.

        R has to divide the number of video tokens: one timestep per latent frame, or one per token.

        Raises:
            WrongModelError: video and concat channels together are not what this checkpoint takes.
        """
        hooks = hooks or Hooks()
        tokens, stream = self.embed(video, timestep, conditioning, hooks)
        runs = [adapter.begin(tokens, stream, hooks) for adapter in conditioning.adapters]
        for index, block in self.ops.stream(self.blocks, tokens.device, hooks.stream_options):
            tokens = self._advance(index, block, tokens, stream, runs, hooks)
        span = stream.spans[0]
        patches = self.head(tokens[:, : span.tokens], stream.time[:, : span.rows], span)
        frames, rows, columns = video.shape[2:]
        return self._video(patches, stream.grid)[:, :, :frames, :rows, :columns]

    def _advance(
        self, index: int, block: nn.Module, tokens: Tensor, stream: Stream, runs: list[AdapterRun], hooks: Hooks
    ) -> Tensor:
        """One block with what adapters and hooks put around it."""
        if hooks.at_block is not None:  # the truth of a method is more than a compiler follows
            hooks.at_block(index, self.num_layers, stream.grid)
        replace = hooks.replace_block.get(index)
        if replace:
            tokens = replace(tokens, stream, lambda x, stream: _run(block, x, stream, hooks))
        else:
            tokens = _run(block, tokens, stream, hooks)
        for hook in hooks.after_block:
            tokens = hook(index, tokens, stream)
        for run in runs:  # after the hooks, as in ComfyUI's models of these variants
            tokens = run.after_block(index, tokens)
        return tokens

    def embed(self, video: Tensor, timestep: Tensor, conditioning: Conditioning, hooks: Hooks) -> tuple[Tensor, Stream]:
        """Returns the tokens that enter the first block, [B, L, D], and what every block reads."""
        dtype = video.dtype
        video = self.padded(self._with_concat(video, conditioning.concat))
        tokens = self.patch_embedding(kernels.eager.wide(video)).to(
            self.residual_dtype or dtype
        )  # [B, D, F, H / 2, W / 2]
        grid = (tokens.shape[2], tokens.shape[3], tokens.shape[4])
        tokens = tokens.flatten(2).transpose(1, 2)
        if conditioning.token_bias is not None:
            tokens = tokens + conditioning.token_bias.to(tokens)
        groups = conditioning.groups
        time, spans = self._time(timestep.to(video.device), tokens, groups)
        stream = Stream(
            video=video,
            grid=grid,
            spans=spans,
            time=time,
            rows=self.time_projection(time).unflatten(2, (6, self.dim)),
            rotation=self._rotation(grid, groups, hooks, like=time),
            context=self._context(conditioning.text.to(video), hooks),
            extra_contexts=self._extra_contexts(conditioning.contexts, like=video),
            dtype=dtype,
            against=self._against(conditioning.against, hooks, like=video),
            int8=hooks.layers_in_int8,
        )
        return torch.cat([tokens, *(group.tokens.to(tokens) for group in groups)], dim=1), stream

    def _with_concat(self, video: Tensor, concat: Tensor | None) -> Tensor:
        if concat is not None:
            video = torch.cat([video, concat.to(video)], dim=1)
        channels = self.patch_embedding.weight.shape[1]  # more than in_dim where a control LoRA has widened it
        if video.shape[1] != channels:
            raise WrongModelError(
                "The inputs do not fit the diffusion model",
                found=f"{video.shape[1]} channels",
                expected=f"{channels}",
                remedy="Use the nodes, the VAE and the checkpoint of one task (text, image or text and image to video)",
            )
        return video

    def padded(self, video: Tensor) -> Tensor:
        """Whole patches, filled up from the other side, as ComfyUI does; cut from the result again."""
        missing = [-size % patch for size, patch in zip(video.shape[2:], self.patch_size, strict=True)]
        if not any(missing):
            return video
        return F.pad(video, (0, missing[2], 0, missing[1], 0, missing[0]), mode="circular")

    def _time(
        self, timestep: Tensor, tokens: Tensor, groups: tuple[TokenGroup, ...]
    ) -> tuple[Tensor, tuple[Span, ...]]:
        """Embeds one row per distinct place of the timestep: [B, R, D] float32, and which tokens each row is for."""
        rows = timestep.unsqueeze(1) if timestep.ndim == 1 else timestep
        count = tokens.shape[1]
        if count % rows.shape[1]:
            raise ValueError(f"{rows.shape[1]} timesteps cannot be shared out evenly over {count} tokens")
        spans = [Span(count, rows.shape[1])]
        steps = [rows]
        for group in groups:
            steps.append(rows[:, -1:] if group.timestep is None else group.timestep.to(rows).unsqueeze(1))
            spans.append(Span(group.tokens.shape[1], 1))
        values = sinusoid(torch.cat(steps, dim=1), self.config.freq_dim)
        return self.time_embedding(values.to(torch.promote_types(tokens.dtype, torch.float32))), tuple(spans)

    def _rotation(
        self, grid: tuple[int, int, int], groups: tuple[TokenGroup, ...], hooks: Hooks, *, like: Tensor
    ) -> Tensor:
        size, theta = self.config.head_dim, self.config.rope_theta
        video = grid_rotation(grid_axes(grid, hooks.positions), size, theta, like=like)
        return torch.cat([video, *(rotation(group.positions, size, theta, like=like) for group in groups)], dim=1)

    def _context(self, text: Tensor, hooks: Hooks) -> Tensor:
        """Embeds the text with its padding: the official model was trained to attend to the padding rows as well."""
        missing = max(0, self.config.text_len - text.shape[1])
        embedded = self.text_embedding(F.pad(text, (0, 0, 0, missing)))
        return embedded if hooks.texts is None else hooks.texts.known(embedded)

    def _against(self, against: Against | None, hooks: Hooks, *, like: Tensor) -> Against | None:
        return against and replace(against, text=self._context(against.text.to(like), hooks))

    def _extra_contexts(self, groups: tuple[ContextGroup, ...], *, like: Tensor) -> tuple[Tensor, ...]:
        if groups and not self.config.image_dim:
            raise WrongModelError(
                "This diffusion model takes no CLIP vision features",
                remedy="Leave the CLIP vision input open, or load a model that has that branch (Wan 2.1 I2V, Animate)",
            )
        return tuple(self.img_emb(group.tokens.to(like)) for group in groups)

    def _video(self, patches: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """[B, L, patch values * channels], channels fastest -> [B, C, F, H, W]"""
        values = patches.unflatten(2, (*self.patch_size, self.out_dim)).unflatten(1, grid)
        values = values.permute(0, 7, 1, 4, 2, 5, 3, 6)  # [B, f, h, w, pf, ph, pw, C] -> [B, C, f, pf, h, ph, w, pw]
        return values.flatten(6, 7).flatten(4, 5).flatten(2, 3)
