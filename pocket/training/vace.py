"""Trains VACE's own blocks on the frozen text-to-video experts, as VACE was made: they learn to read control clips.

A clip is led by a depth map or an outline, or kept but for a box that is to be filled, or told by its text alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...wan_core.adapters.vace import ControlClip, mask_channels, vace_adapters
from ...wan_core.conditioning import Conditioning
from ...wan_core.stream import Stream
from ...wan_core.tasks import VACE_FUN_A14B
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.causal import CausalVAE
from ..drawings import boxes, depth, outline
from ..world import render
from .blocks import patches, runner, training_hooks
from .flow import Recipe, Texts
from .led import SIZES, Batch, Encoded, captions_of, drawer, encoded, signed
from .loop import Plan, Stage

KINDS = {"depth": 0.35, "outline": 0.3, "box": 0.2, "text": 0.15}  # shares of the clips
RECIPES = {
    expert: Recipe(f"vace_{expert}", VACE_FUN_A14B, expert, SIZES, salt=10 + number, steps=6_700)
    for number, expert in enumerate(("high", "low"))
}
PARTS = ("vace_patch_embedding.", "vace_blocks.")


def begin(model: WanTransformer) -> None:
    """VACE's blocks start as copies of the transformer's first ones that add nothing."""
    for place, block in zip(model.config.vace_blocks, model.get_submodule("vace_blocks").children(), strict=True):
        block.load_state_dict(model.blocks[place].state_dict(), strict=False)
        after = block.get_submodule("after_proj")
        assert isinstance(after, nn.Linear)
        nn.init.zeros_(after.weight)
        nn.init.zeros_(after.bias)


def controls(batch: Batch, kind: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Clips and control clips [B, 3, F, H, W] in -1..1, grey where there is nothing, and masks [B, F, H, W].

    All of one kind, or each of its own.
    """
    scenes, places, axes = batch.scenes, batch.places, (batch.rows, batch.columns)
    clips = signed(render(scenes, _times(batch), *axes, torch, paths=places))
    drawn = {
        "depth": signed(depth(scenes, places, *axes, torch)),
        "outline": signed(outline(scenes, places, *axes, torch)),
        "box": clips,
        "text": torch.zeros_like(clips),
    }
    box = boxes(scenes.radius[:, 0], places, *axes)
    control, mask = torch.zeros_like(clips), torch.ones_like(box)
    low = 0.0
    for name, share in KINDS.items():
        own = (batch.chance >= low) & (batch.chance < low + share) if not kind else batch.chance >= 2.0 * (kind != name)
        own, low = own.view(-1, 1, 1, 1), low + share
        control = torch.where(own[..., None], drawn[name], control)
        if name == "box":
            mask = torch.where(own, box, mask)
            control = torch.where(own[..., None] & (box[:, None] > 0), 0.0, control)
    return clips, control, mask


def _times(batch: Batch) -> Tensor:
    frames = batch.size.frames
    return torch.linspace(-0.5, 0.5, frames, device=batch.rows.device)


def read(vae: CausalVAE, control: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """What VACE reads of control clips and masks: their latents [B, 32, T, h, w] and folded masks [B, 64, T, h, w]."""
    holes = mask[:, None]
    latents = torch.cat([encoded(vae, control * (1 - holes)), encoded(vae, control * holes)], dim=1)
    return {"control": latents, "mask": torch.stack([mask_channels(one) for one in mask]).to(torch.uint8)}


def encode_batch(vae: CausalVAE, batch: Batch) -> dict[str, Tensor]:
    """Clips and what leads them, as latents."""
    clips, control, mask = controls(batch)
    return {"values": encoded(vae, clips), **read(vae, control, mask)}


def condition(model: WanTransformer, text: Tensor, control: Tensor) -> Conditioning:
    """What the transformer gets; control [B, 96, T, h, w]."""
    return Conditioning(text=text, adapters=vace_adapters(model, model.config, [ControlClip(control)]))


def train_fast(model: WanTransformer, device: torch.device) -> None:
    """Makes VACE's own blocks compute as training_hooks makes the transformer's."""
    run = runner(model, device)
    embedding = model.get_submodule("vace_patch_embedding")
    assert isinstance(embedding, nn.Conv3d)
    embedding.forward = patches(embedding)  # type: ignore[method-assign]
    for block in model.get_submodule("vace_blocks").children():
        weights = dict(block.named_parameters())

        def forward(x: Tensor, stream: Stream, _hooks: Any, weights: dict[str, Tensor] = weights) -> Tensor:
            return run(weights, x, stream)

        block.forward = forward


def stage(
    expert: str, model: WanTransformer, encoder: UMT5Encoder, negative: Tensor, found: Encoded, plan: Plan
) -> Stage:
    """Squared error of the velocity; the text-to-video expert stays as it is."""
    recipe = RECIPES[expert]
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    texts = Texts(encoder, captions_of(found), negative, fast)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(PARTS))
    model.to(fast)
    hooks = training_hooks(model, plan.device)
    train_fast(model, plan.device)
    draw = drawer(found, recipe, plan, texts)

    def batch(step: int) -> tuple[Tensor, ...]:
        drawn = draw(step)
        control = torch.cat([drawn.clips[part][drawn.rows].to(fast) for part in ("control", "mask")], dim=1)
        return drawn.clean, drawn.noise, drawn.sigmas, drawn.text, control

    def loss(clean: Tensor, noise: Tensor, sigmas: Tensor, text: Tensor, control: Tensor) -> Tensor:
        share = sigmas.view(-1, 1, 1, 1, 1)
        noisy = ((1 - share) * clean + share * noise).to(fast)
        velocity = model(noisy, sigmas * 1000, condition(model, text, control), hooks)
        return F.mse_loss(velocity, noise - clean)

    return Stage(
        recipe.name,
        model,
        batch,
        loss,
        recipe.steps,
        recipe.rate,
        recipe.matrix_rate,
        lambda name, p: name.startswith("vace_blocks.") and p.ndim == 2,
        low_precision=True,
    )
