"""Trains a transformer: flow matching on its share of the sigmas, the text dropped at times.

Flow matching as in Wan (arXiv 2503.20314) and Lipman et al. (arXiv 2210.02747): x = (1 - sigma) * latent + sigma *
noise, and the network's velocity is noise - latent. One recipe for all tasks: a picture comes in through more channels
(I2V-A14B) or as a first latent frame without noise (TI2V-5B).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...wan_core.conditioning import Conditioning
from ...wan_core.image_conditioning import fold_mask
from ...wan_core.tasks import I2V_A14B, T2V_A14B, TI2V_5B, Task
from ...wan_core.text.tokenizer import END, PAD
from ...wan_core.text.umt5 import UMT5Encoder
from ...wan_core.transformer import WanTransformer
from ...wan_core.vae.causal import CausalVAE
from .blocks import training_hooks
from .data import Pool, Size, draw_clips, in_turn
from .loop import Plan, Stage
from .low_rank import LowRank
from .vae import encode

WORDLESS = 0.12  # share of the clips trained on without their text, for guidance; half get the negative prompt
OVERLAP = 0.04  # how far each expert is trained beyond the boundary, in unshifted time
ANY_SHIFT = 0.4  # share of the sigmas drawn evenly, for schedules of another shift
FIRST = 3.0  # weight of I2V's first latent frame, which is asked to be the picture
PICTURELESS = 0.7  # share of TI2V's clips that are trained on without a picture
WRONG = 0.2  # share of T2V's clips with the text of another one, as in what is gathered from the web: guidance mends it
RIGHT = 0.2  # share of its experts' steps, the last ones, with right texts only: near colours are told apart again

Sizes = tuple[tuple[Size, int], ...]  # and how many of 16 clips have it
SIZES_A14B: Sizes = (
    (Size(17, 96, 96), 11),
    (Size(17, 80, 128), 2),
    (Size(17, 128, 80), 1),
    (Size(33, 96, 96), 2),
)
SIZES_5B: Sizes = (
    (Size(17, 128, 128), 13),
    (Size(17, 96, 128), 2),
    (Size(17, 128, 96), 1),
)


@dataclass(frozen=True)
class Recipe:
    """What a transformer is trained for."""

    name: str  # of the stage
    task: Task
    expert: str  # high, low, or both
    sizes: Sizes
    picture: str = ""  # concat: in more channels; frame: as the first latent frame; nothing: none
    salt: int = 0
    steps: int = 10_000
    tokens: int = 24_000  # of a batch
    rate: float = 1.5e-3
    matrix_rate: float = 2e-3
    wrong: float = 0.0  # share of clips with a wrong text
    right: float = 0.0  # share of the steps, the last ones, without any
    falls: bool = True  # the learning rate falls to the end; not where others go on from these weights

    def wrong_at(self, step: int) -> float:
        """Share of the clips of a step with a wrong text."""
        return self.wrong if step < (1 - self.right) * self.steps else 0.0


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("t2v_both", T2V_A14B, "both", SIZES_A14B, salt=28, wrong=WRONG, falls=False),
        Recipe("t2v_high", T2V_A14B, "high", SIZES_A14B, salt=1, steps=13_000, wrong=WRONG, right=RIGHT),
        Recipe("t2v_low", T2V_A14B, "low", SIZES_A14B, salt=2, steps=13_000, wrong=WRONG, right=RIGHT),
        Recipe("i2v_both", I2V_A14B, "both", SIZES_A14B, "concat", salt=29, falls=False),
        Recipe("i2v_high", I2V_A14B, "high", SIZES_A14B, "concat", salt=3, steps=13_000),
        Recipe("i2v_low", I2V_A14B, "low", SIZES_A14B, "concat", salt=4, steps=13_000),
        Recipe("ti2v", TI2V_5B, "both", SIZES_5B, "frame", salt=5, steps=20_000),
    )
}


@dataclass(frozen=True)
class Latents:
    """Clips of one size, encoded."""

    values: Tensor  # [N, C, F, H, W] normalised
    ids: Tensor  # [N, CAPTIONS, TOKENS]
    pictures: Tensor | None = None  # [N, C, F, H, W] the first frame, grey after it


def save_latents(latents: list[Latents], path: Path) -> None:
    """Keeps encoded clips, so that all transformers of a VAE find them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    named = {f"values.{index}": part.values.contiguous() for index, part in enumerate(latents)}
    named |= {f"ids.{index}": part.ids for index, part in enumerate(latents)}
    named |= {
        f"pictures.{index}": part.pictures.contiguous()
        for index, part in enumerate(latents)
        if part.pictures is not None
    }
    save_file(named, path)


def load_latents(paths: Sequence[Path], device: torch.device) -> list[Latents]:
    """Reads what `save_latents` wrote, from several files as if from one."""
    files = [load_file(path, device=str(device)) for path in paths]

    def joined(name: str) -> Tensor | None:
        return torch.cat([file[name] for file in files]) if name in files[0] else None

    found = []
    while (values := joined(f"values.{len(found)}")) is not None:
        ids = joined(f"ids.{len(found)}")
        assert ids is not None
        found.append(Latents(values, ids, joined(f"pictures.{len(found)}")))
    return found


@torch.no_grad()
def encode_pool(
    vae: CausalVAE,
    pool: Pool,
    sizes: Sizes,
    plan: Plan,
    *,
    pictures: bool,
    look: Callable[[Tensor], Tensor] = lambda clips: clips,
    batch_pixels: int = 6_000_000,
) -> list[Latents]:
    """Draws and encodes every scene of the pool in one of the sizes; `look` is given the clips before."""
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    vae = vae.to(fast)
    found, start = [], 0
    for size, share in sizes:
        stop = start + len(pool) * share // sum(share for _, share in sizes)
        step = size.clips_within(batch_pixels)
        if plan.smoke:
            stop, step = start + 2, 2
        parts, firsts = [], []
        for first in range(start, stop, step):  # the last one filled up: cuDNN measures every shape anew
            rows = torch.arange(first, first + step, device=plan.device).clamp(max=stop - 1)
            clips = look(draw_clips(pool.scenes.rows(rows), size))
            parts.append(encode(vae, clips.to(fast)).to(torch.bfloat16))
            if pictures:
                firsts.append(encode_first(vae, clips.to(fast)).to(torch.bfloat16))
        count = stop - start
        kept = torch.cat(firsts)[:count] if pictures else None
        found.append(Latents(torch.cat(parts)[:count], pool.ids[start:stop], kept))
        start = stop
    return found


def encode_first(vae: CausalVAE, clips: Tensor) -> Tensor:
    """Latents of the clips' first frames with mid grey after them, as I2V-A14B takes them."""
    return encode(vae, torch.cat([clips[:, :, :1], torch.zeros_like(clips[:, :, 1:])], dim=2))


def picture_channels(pictures: Tensor) -> Tensor:
    """Those latents [B, 16, F, H, W] under the mask that tells the first frame: [B, 20, F, H, W]."""
    known = torch.zeros(4 * pictures.shape[2] - 3, device=pictures.device)
    known[:1].fill_(1)
    mask = fold_mask(known).to(pictures)[None, :, :, None, None]
    return torch.cat([mask.expand(len(pictures), -1, -1, *pictures.shape[3:]), pictures], dim=1)


@torch.no_grad()
def begin_from(model: WanTransformer, other: Mapping[str, Tensor]) -> None:
    """Copies the weights of a trained model that fit: its first blocks, its last one as the last."""
    blocks = 1 + max(int(name.split(".")[1]) for name in other if name.startswith("blocks."))
    for name, parameter in model.named_parameters():
        last = f"blocks.{model.num_layers - 1}."
        found = other.get(name.replace(last, f"blocks.{blocks - 1}.") if name.startswith(last) else name)
        if found is not None and found.shape == parameter.shape:
            parameter.copy_(found)


def shifted(time: Tensor, shift: float) -> Tensor:
    """Unshifted time 0..1 -> sigma."""
    return shift * time / (1 + (shift - 1) * time)


def draw_sigmas(recipe: Recipe, count: int, random: torch.Generator) -> Tensor:
    """Sigmas [count] of one expert: as the official schedule spreads them, some of them evenly."""
    shift, low, high = recipe.task.shift, 0.0, 1.0
    if recipe.expert != "both":
        boundary = recipe.task.boundary
        assert boundary is not None
        edge = boundary / (shift - (shift - 1) * boundary)  # the boundary in unshifted time
        low, high = (edge - OVERLAP, 1.0) if recipe.expert == "high" else (0.0, edge + OVERLAP)
    official, even = torch.rand((2, count), generator=random, device=random.device)
    ends = [float(shifted(torch.tensor(end), shift)) for end in (low, high)]
    sigmas = shifted(low + (high - low) * official, shift)
    any_shift = torch.rand(count, generator=random, device=random.device) < ANY_SHIFT
    return torch.where(any_shift, ends[0] + (ends[1] - ends[0]) * even, sigmas)


def embed(encoder: UMT5Encoder, ids: Tensor) -> Tensor:
    """Token ids [B, L] -> context [B, L, D], zero on padding as the transformer gets it."""
    mask = (ids != PAD).long()
    return encoder(ids, mask) * mask.unsqueeze(-1)


class Texts:
    """The captions of encoded clips as contexts, and those of no text and of the negative prompt."""

    @torch.no_grad()
    def __init__(self, encoder: UMT5Encoder, latents: list[Latents], negative: Tensor, dtype: torch.dtype) -> None:
        self._captions = [
            torch.cat([embed(encoder, ids).to(dtype) for ids in part.ids.flatten(0, 1).split(4096)]).unflatten(
                0, part.ids.shape[:2]
            )
            for part in latents
        ]
        length = self._captions[0].shape[2]
        wordless = torch.full((2, length), PAD, device=negative.device)
        wordless[0, 0] = END
        wordless[1, : len(negative)] = negative[:length]
        self.nothing, self.negative = embed(encoder, wordless).to(dtype)

    def draw(self, part: int, rows: Tensor, random: torch.Generator, wrong: float = 0.0) -> Tensor:
        """Contexts [B, TOKENS, D] for these clips, some without their text, a share `wrong` with another one's."""
        captions = self._captions[part]
        column = torch.randint(captions.shape[1], rows.shape, generator=random, device=rows.device)
        if wrong:
            mixed = torch.rand(len(rows), generator=random, device=rows.device) < wrong
            rows = torch.where(mixed, rows.roll(1), rows)
        chance = torch.rand(len(rows), generator=random, device=rows.device)[:, None, None]
        found = torch.where(chance < WORDLESS, self.negative, captions[rows, column])
        return torch.where(chance < WORDLESS / 2, self.nothing, found)


def stage(
    recipe: Recipe,
    model: WanTransformer,
    encoder: UMT5Encoder,
    negative: Tensor,
    latents: list[Latents],
    plan: Plan,
    pairs: LowRank | None = None,
) -> Stage:
    """Squared error of the velocity; every size has its share of the steps. With `pairs`, they alone are trained."""
    hooks = training_hooks(model, plan.device, pairs and pairs.weights)
    fast = torch.bfloat16 if plan.device.type == "cuda" else torch.float32
    texts = Texts(encoder, latents, negative, fast)
    shares = [share for _, share in recipe.sizes]
    tokens_of = [part.values.shape[2] * (part.values.shape[3] // 2) * (part.values.shape[4] // 2) for part in latents]

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step + recipe.salt * 10_000_000)
        index = in_turn(shares, step)
        clips = latents[index]
        count = 2 if plan.smoke else max(4, recipe.tokens // tokens_of[index])
        rows = torch.randint(len(clips.ids), (count,), generator=random, device=plan.device)
        text = texts.draw(index, rows, random, recipe.wrong_at(step))
        clean = clips.values[rows].float()
        noise = torch.randn(clean.shape, generator=random, device=plan.device)
        sigmas = draw_sigmas(recipe, count, random)
        if recipe.picture == "concat":
            assert clips.pictures is not None
            return clean, noise, sigmas, text, picture_channels(clips.pictures[rows].to(fast))
        if recipe.picture == "frame":
            sigmas = sigmas[:, None].repeat(1, clean.shape[2])
            given = torch.rand(count, generator=random, device=plan.device) >= PICTURELESS
            sigmas[:, 0] *= ~given
        return clean, noise, sigmas, text

    def loss(clean: Tensor, noise: Tensor, sigmas: Tensor, text: Tensor, concat: Tensor | None = None) -> Tensor:
        share = sigmas.view(len(clean), 1, -1, 1, 1)
        noisy = ((1 - share) * clean + share * noise).to(fast)
        velocity = model(noisy, sigmas * 1000, Conditioning(text=text, concat=concat), hooks)
        error = (velocity - noise + clean).square()
        if recipe.picture == "concat":
            error = torch.cat([FIRST * error[:, :, :1], error[:, :, 1:]], dim=2)
        if recipe.picture == "frame":  # a frame without noise is given, not predicted
            error = error * (share > 0)
        return error.mean()

    return Stage(
        recipe.name,
        pairs or model,
        batch,
        loss,
        recipe.steps,
        recipe.rate,
        recipe.matrix_rate,
        lambda name, p: name.startswith("blocks.") and p.ndim == 2,
        low_precision=pairs is None,
        falls=recipe.falls,
    )
