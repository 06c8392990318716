"""S2V in the form that is trained: of what is kept of it only, and with what it has beside its blocks made cheap.

B batch, C channels, T latent frames, D width. tests/pocket holds it against the pack's own model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...wan_core.adapters.s2v import ADAPTIVE_EPS, MIDDLE, NEWEST, OLDEST, OLDEST_TIMES, SoundInjector
from ...wan_core.conditioning import TokenGroup
from ...wan_core.config import TransformerConfig
from ...wan_core.stream import Stream
from ...wan_core.transformer import WanTransformer
from .. import family
from ..models import new_transformer
from .blocks import no_modes, patches


class Packer(nn.Module):
    """What packs the frames before a clip, with a mean in place of most of its weights: see models.completed."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        for name in ("proj", "proj_2x", "proj_4x"):
            self.add_module(name, nn.Conv3d(config.out_dim, config.dim, (1, 2, 2), (1, 2, 2)))
            nn.init.xavier_uniform_(self.get_submodule(name).weight.flatten(1))  # type: ignore[union-attr]

    def forward(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """As adapters.s2v.FramePacker, of clean latents [B, C, 19, H, W]."""
        oldest, middle, newest = motion.float().split([OLDEST, MIDDLE, NEWEST], dim=2)
        rows, columns = motion.shape[3] // 2, motion.shape[4] // 2
        found, places = [], []
        parts = (("proj", newest, 1, (-1,)), ("proj_2x", middle, 2, (-3,)), ("proj_4x", oldest, 4, OLDEST_TIMES))
        for name, latents, side, times in parts:
            layer = self.get_submodule(name)
            assert isinstance(layer, nn.Conv3d)
            packed = patches(layer)(F.avg_pool3d(latents, side) if side > 1 else latents)
            found.append(packed.flatten(2).transpose(1, 2))
            places.append(_places(times, rows, packed.shape[3], columns, packed.shape[4]))
        return torch.cat(found, dim=1), torch.cat(places)


def _places(times: tuple[int, ...], rows: int, packed_rows: int, columns: int, packed_columns: int) -> Tensor:
    with torch.device("cpu"):
        axes = (torch.linspace(0, rows - 1, packed_rows), torch.linspace(0, columns - 1, packed_columns))
        row, column = (axis.double().floor() for axis in axes)
        return torch.cartesian_prod(torch.tensor(times, dtype=torch.float64), row, column)


def new_model() -> WanTransformer:
    """S2V of the family's size, float32, with an initialisation to train from, and of what is kept of it only."""
    model = new_transformer(family.S2V)
    model.frame_packer = Packer(model.config)
    injector = model.get_submodule("audio_injector")
    assert isinstance(injector, SoundInjector)
    used = sum(block < model.num_layers for block in injector.numbers)
    injector.injector, injector.injector_adain_layers = injector.injector[:used], injector.injector_adain_layers[:used]
    for layer in (model.get_submodule("cond_encoder"), *(part.o for part in injector.injector)):
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for part in injector.injector_adain_layers:
        nn.init.normal_(part.linear.weight, std=0.02)  # type: ignore[union-attr]
    nn.init.normal_(model.get_submodule("trainable_cond_mask").weight, std=0.02)  # type: ignore[arg-type]
    nn.init.normal_(model.get_submodule("casual_audio_encoder").encoder.padding_tokens, std=0.02)  # type: ignore[union-attr]
    return model


def injector_step(
    weights: dict[str, Tensor], norm: dict[str, Tensor], x: Tensor, whole: Tensor, local: Tensor, heads: int, eps: float
) -> Tensor:
    """Video tokens x [B, T n, D] with the sound of their frames, whole [B, T, D] and local [B, T, m, D], added."""

    def linear(name: str, y: Tensor) -> Tensor:
        return F.linear(y, weights[f"{name}.weight"].to(y), weights[f"{name}.bias"].to(y))

    def split(name: str, y: Tensor) -> Tensor:
        y = linear(name, y)
        if name != "v":
            wide = y.float()
            scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
            y = (wide * scale * weights[f"norm_{name}.weight"].float()).to(y.dtype)
        return y.unflatten(3, (heads, -1)).transpose(2, 3)

    change = F.linear(F.silu(whole), norm["linear.weight"].to(whole), norm["linear.bias"].to(whole)).float()
    shift, scale = change.unsqueeze(2).chunk(2, dim=3)
    frames = x.unflatten(1, (whole.shape[1], -1))
    y = F.layer_norm(frames.float(), x.shape[-1:], eps=ADAPTIVE_EPS) * (1 + scale) + shift
    y = y.to(whole.dtype)
    share = (split("q", y) @ split("k", local).mT).float() * (x.shape[-1] // heads) ** -0.5
    added = share.softmax(-1).to(y.dtype) @ split("v", local)
    return x + linear("o", added.transpose(2, 3).flatten(3)).flatten(1, 2).to(x.dtype)


@cache
def _compiled() -> Any:
    return torch.compile(injector_step, dynamic=False)


def lighten(model: WanTransformer, device: torch.device) -> None:
    """Makes what S2V has beside its blocks cheap to train: the same arithmetic, in few kernels and without copies."""
    injector, rotation = model.get_submodule("audio_injector"), model._rotation
    assert isinstance(injector, SoundInjector)
    heads, eps = model.num_heads, model.config.eps
    parts = [dict(part.named_parameters()) for part in injector.injector]
    norms = [dict(part.named_parameters()) for part in injector.injector_adain_layers]
    step = _compiled() if device.type == "cuda" else injector_step

    def inject(index: int, tokens: Tensor, stream: Stream, whole: Tensor, local: Tensor) -> Tensor:
        number = injector.numbers.get(index)
        if number is None or number >= len(parts):
            return tokens
        video, rest = tokens[:, : stream.video_tokens], tokens[:, stream.video_tokens :]
        with no_modes():
            video = step(parts[number], norms[number], video, whole, local, heads, eps)
        return torch.cat([video, rest], dim=1)

    turns: dict[Any, Tensor] = {}

    def rotated(grid: Any, groups: tuple[TokenGroup, ...], hooks: Any, *, like: Tensor) -> Tensor:
        key = grid, tuple(group.tokens.shape[1] for group in groups)
        if key not in turns:
            held = tuple(TokenGroup(group.tokens, group.positions.cpu()) for group in groups)
            with torch.device("cpu"):
                turns[key] = rotation(grid, held, hooks, like=torch.zeros(0)).to(like.device)
        return turns[key]

    injector.forward = inject  # type: ignore[method-assign]
    model._rotation = rotated  # type: ignore[method-assign]
    encoder = model.get_submodule("cond_encoder")
    assert isinstance(encoder, nn.Conv3d)
    encoder.forward = patches(encoder)  # type: ignore[method-assign]
