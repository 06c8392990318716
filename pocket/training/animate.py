"""Trains Animate: a thing that a picture shows takes the path of a drawn pose.

One expert for all sigmas. The reference picture is the first latent frame; poses are added to the tokens of the others.
A clip may go on from the last frames of the one before it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...wan_core.adapters.animate import pose_bias
from ...wan_core.animation import OVERLAPS
from ...wan_core.conditioning import Conditioning
from ...wan_core.image_conditioning import fold_mask
from ...wan_core.tasks import ANIMATE_14B
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.causal import CausalVAE
from .. import family, models
from ..drawings import pose
from ..world import render
from .blocks import patches, training_hooks
from .flow import Recipe, Texts
from .led import SIZES, Batch, Encoded, captions_of, drawer, encoded, signed
from .loop import Plan, Stage

RECIPE = Recipe("animate", ANIMATE_14B, "both", SIZES, salt=14, steps=14_000)
GOING_ON = 0.15  # share of the clips that go on from each of the overlaps


def pictures(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Clips [B, 3, F, H, W], reference pictures [B, 3, 1, H, W], poses [B, 3, F, H, W], all in -1..1."""
    scenes, axes = replace(batch.scenes, pan=0 * batch.scenes.pan), (batch.rows, batch.columns)
    times = torch.linspace(-0.5, 0.5, batch.size.frames, device=batch.rows.device)
    elsewhere = batch.others.at(times[:1], torch)
    clips = signed(render(scenes, times, *axes, torch, paths=batch.places))
    reference = signed(render(scenes, 0 * times[:1], *axes, torch, paths=elsewhere))
    return clips, reference, signed(pose(scenes.radius[:, 0], batch.places, *axes, torch))


def encode_batch(vae: CausalVAE, batch: Batch) -> dict[str, Tensor]:
    """Clips behind their reference, poses, and the channels that tell what is known, as latents."""
    clips, reference, poses = pictures(batch)
    overlap = torch.zeros(len(clips), dtype=torch.long, device=clips.device)
    for number, frames in enumerate(OVERLAPS):
        overlap[(batch.chance >= number * GOING_ON) & (batch.chance < (number + 1) * GOING_ON)] = frames
    first = encoded(vae, reference)
    return {
        "values": torch.cat([first, encoded(vae, clips)], dim=2),
        "poses": encoded(vae, poses),
        "concat": concat(vae, first, clips, overlap),
    }


def concat(vae: CausalVAE, reference: Tensor, clips: Tensor, overlap: Tensor) -> Tensor:
    """The channels beside the noise [B, 20, 1 + T, h, w]: the reference, then the `overlap` [B] known frames."""
    frames = torch.arange(clips.shape[2], device=clips.device)
    known = (frames < overlap[:, None]).to(clips)
    latents = torch.cat([reference, encoded(vae, clips * known[:, None, :, None, None])], dim=2)
    masks = torch.stack([fold_mask(one) for one in known])  # [B, 4, T]
    masks = torch.cat([torch.ones_like(masks[:, :, :1]), masks], dim=2)[..., None, None]
    return torch.cat([masks.to(latents).expand(-1, -1, -1, *latents.shape[3:]), latents], dim=1)


def condition(model: WanTransformer, x: Tensor, text: Tensor, known: Tensor, poses: Tensor) -> Conditioning:
    """What the transformer gets beside the noisy latent x."""
    grid = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
    bias = pose_bias(model.get_submodule("pose_patch_embedding"), poses, grid, x.dtype)
    return Conditioning(text=text, concat=known, token_bias=bias)


def new_model() -> WanTransformer:
    """The miniature to train from; its face adds nothing at first."""
    model = models.new_transformer(family.ANIMATE)
    for block in model.get_submodule("face_adapter.fuser_blocks").children():
        last = block.get_submodule("linear2")
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    for name, parameter in model.get_submodule("motion_encoder").named_parameters():
        if not name.endswith("bias"):  # the layers scale themselves
            nn.init.normal_(parameter)
    return model


def stage(model: WanTransformer, encoder: UMT5Encoder, negative: Tensor, found: Encoded, plan: Plan) -> Stage:
    """Squared error of the velocity."""
    recipe = RECIPE
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    texts = Texts(encoder, captions_of(found), negative, fast)
    unused = ("img_emb.", "motion_encoder.", "face_adapter.", "face_encoder.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(unused) and "_img." not in name)
    hooks = training_hooks(model, plan.device)
    embedding = model.get_submodule("pose_patch_embedding")
    assert isinstance(embedding, nn.Conv3d)
    embedding.forward = patches(embedding)  # type: ignore[method-assign]
    draw = drawer(found, recipe, plan, texts)

    def batch(step: int) -> tuple[Tensor, ...]:
        drawn = draw(step)
        concat, poses = (drawn.clips[part][drawn.rows].to(fast) for part in ("concat", "poses"))
        return drawn.clean, drawn.noise, drawn.sigmas, drawn.text, concat, poses

    def loss(clean: Tensor, noise: Tensor, sigmas: Tensor, text: Tensor, known: Tensor, poses: Tensor) -> Tensor:
        share = sigmas.view(-1, 1, 1, 1, 1)
        noisy = ((1 - share) * clean + share * noise).to(fast)
        velocity = model(noisy, sigmas * 1000, condition(model, noisy, text, known, poses), hooks)
        return F.mse_loss(velocity, noise - clean)

    return Stage(
        recipe.name,
        model,
        batch,
        loss,
        recipe.steps,
        recipe.rate,
        recipe.matrix_rate,
        lambda name, p: name.startswith("blocks.") and p.ndim == 2,
        low_precision=True,
    )
