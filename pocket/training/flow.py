"""Trains an expert of the text-to-video pair: flow matching on its own share of the sigmas, the text dropped at times.

Flow matching as in Wan (arXiv 2503.20314) and Lipman et al. (arXiv 2210.02747): x = (1 - sigma) * latent + sigma *
noise, and the network's velocity is noise - latent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...wan_core.attention import attention
from ...wan_core.conditioning import Conditioning
from ...wan_core.hooks import Hooks
from ...wan_core.tasks import T2V_A14B
from ...wan_core.text.tokenizer import END, PAD
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.wan21 import WanVAE21
from .data import Pool, Size, draw_clips
from .loop import Plan, Stage
from .vae import encode

SIZES = (  # and how many of 16 clips have it
    (Size(17, 96, 96), 5),
    (Size(17, 64, 64), 2),
    (Size(17, 64, 112), 1),
    (Size(17, 112, 64), 1),
    (Size(9, 96, 96), 1),
    (Size(33, 64, 96), 1),
    (Size(17, 80, 128), 1),
    (Size(33, 96, 96), 1),
    (Size(17, 128, 128), 1),
    (Size(25, 96, 64), 1),
    (Size(49, 64, 64), 1),
)
BATCH_TOKENS = 24_000
STEPS = 26_000
RATE = 1.2e-3
WORDLESS = 0.12  # share of the clips trained on without their text, for guidance; half get the negative prompt
OVERLAP = 0.04  # how far each expert is trained beyond the boundary, in unshifted time
ANY_SHIFT = 0.25  # share of the sigmas drawn evenly, for schedules of another shift


TEXT_ROWS = 72  # rows of text that training computes; the rest of the 512 are copies of the last one


def short_text(model: WanTransformer) -> Hooks:
    """Makes a training forward compute TEXT_ROWS rows of text, and returns the hooks that make up for the others.

    The rows of padding are equal, so 512 of them weigh in the cross-attention as one does whose score is raised by the
    logarithm of their number.
    """
    copies = model.config.text_len - TEXT_ROWS + 1
    model.config = replace(model.config, text_len=TEXT_ROWS)

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        if k.shape[1] != TEXT_ROWS:
            return attention(q, k, v, heads)
        bias = torch.zeros(TEXT_ROWS, device=q.device, dtype=q.dtype)
        bias[-1:] += math.log(copies)
        q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
        mask = bias.expand(len(q), heads, q.shape[2], -1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)

    return Hooks(attention=attend)


@dataclass(frozen=True)
class Latents:
    """Clips of one size, encoded."""

    values: Tensor  # [N, 16, F, H, W] normalised
    ids: Tensor  # [N, CAPTIONS, TOKENS]


def save_latents(latents: list[Latents], path: Path) -> None:
    """Keeps encoded clips, so that both experts find them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {f"values.{index}": part.values for index, part in enumerate(latents)}
    save_file({**named, **{f"ids.{index}": part.ids for index, part in enumerate(latents)}}, path)


def load_latents(path: Path, device: torch.device) -> list[Latents]:
    """Reads what `save_latents` wrote."""
    named = load_file(path, device=str(device))
    return [Latents(named[f"values.{index}"], named[f"ids.{index}"]) for index in range(len(SIZES))]


@torch.no_grad()
def encode_pool(vae: WanVAE21, pool: Pool, plan: Plan, batch_pixels: int = 12_000_000) -> list[Latents]:
    """Draws and encodes every scene of the pool in one of the sizes."""
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    found, start = [], 0
    for size, share in SIZES:
        stop = start + len(pool) * share // sum(share for _, share in SIZES)
        step = max(1, batch_pixels // (size.frames * size.height * size.width))
        parts = []
        if plan.smoke:
            stop = start + 3
        for first in range(start, stop, step):
            rows = torch.arange(first, min(first + step, stop), device=plan.device)
            clips = draw_clips(pool.scenes.rows(rows), size)
            parts.append(encode(vae, clips.to(fast)).to(torch.bfloat16))
        found.append(Latents(torch.cat(parts), pool.ids[start:stop]))
        start = stop
    return found


def shifted(time: Tensor, shift: float) -> Tensor:
    """Unshifted time 0..1 -> sigma."""
    return shift * time / (1 + (shift - 1) * time)


def draw_sigmas(expert: str, count: int, random: torch.Generator) -> Tensor:
    """Sigmas [count] of one expert: as the official schedule spreads them, some of them evenly."""
    shift, boundary = T2V_A14B.shift, T2V_A14B.boundary
    assert boundary is not None
    edge = boundary / (shift - (shift - 1) * boundary)  # the boundary in unshifted time
    low, high = (edge - OVERLAP, 1.0) if expert == "high" else (0.0, edge + OVERLAP)
    official, even = torch.rand((2, count), generator=random, device=random.device)
    ends = [float(shifted(torch.tensor(end), shift)) for end in (low, high)]
    sigmas = shifted(low + (high - low) * official, shift)
    any_shift = torch.rand(count, generator=random, device=random.device) < ANY_SHIFT
    return torch.where(any_shift, ends[0] + (ends[1] - ends[0]) * even, sigmas)


def embed(encoder: UMT5Encoder, ids: Tensor) -> Tensor:
    """Token ids [B, L] -> context [B, L, D], zero on padding as the transformer gets it."""
    mask = (ids != PAD).long()
    return encoder(ids, mask) * mask.unsqueeze(-1)


def drop_texts(ids: Tensor, negative: Tensor, random: torch.Generator) -> Tensor:
    """Replaces some texts by nothing or by the negative prompt."""
    chance = torch.rand(len(ids), generator=random, device=ids.device)[:, None]
    empty = torch.full_like(ids, PAD)
    empty[:, 0] = END
    default = torch.full_like(ids, PAD)
    default[:, : len(negative)] = negative[: ids.shape[1]]
    return torch.where(chance < WORDLESS / 2, empty, torch.where(chance < WORDLESS, default, ids))


def stage(
    model: WanTransformer,
    expert: str,
    encoder: UMT5Encoder,
    negative: Tensor,
    latents: list[Latents],
    plan: Plan,
    steps: int = STEPS,
) -> Stage:
    """Squared error of the velocity; every size has its share of the steps."""
    hooks = short_text(model)
    turns = [index for index, (_, share) in enumerate(SIZES) for _ in range(share)]

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + (1 if expert == "high" else 2) * 10_000_000)
        index = turns[step * 7 % len(turns)]  # 7 and 16 share no factor: all turns come, mixed
        clips, size = latents[index], SIZES[index][0]
        count = 2 if plan.smoke else max(4, BATCH_TOKENS // size.tokens)
        rows = torch.randint(len(clips.ids), (count,), generator=random, device=plan.device)
        column = torch.randint(clips.ids.shape[1], (count,), generator=random, device=plan.device)
        with torch.no_grad():
            text = embed(encoder, drop_texts(clips.ids[rows, column], negative, random))
        clean = clips.values[rows].float()
        noise = torch.randn(clean.shape, generator=random, device=plan.device)
        return clean, noise, draw_sigmas(expert, count, random), text

    def loss(clean: Tensor, noise: Tensor, sigmas: Tensor, text: Tensor) -> Tensor:
        share = sigmas.view(-1, 1, 1, 1, 1)
        noisy = ((1 - share) * clean + share * noise).to(torch.bfloat16)
        velocity = model(noisy, sigmas * 1000, Conditioning(text=text), hooks)
        return F.mse_loss(velocity, noise - clean)

    return Stage(f"t2v_{expert}", model, batch, loss, steps, RATE)
