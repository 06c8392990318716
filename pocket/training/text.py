"""Trains the text encoder to know what a caption tells, in every token of its output.

Linear heads read each attribute of the scene, or that it is not told, from any token; they are thrown away. So whatever
token a transformer attends to, it finds the whole prompt. Stray tokens are put into the texts, so that unknown words
pass as nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...wan_core.prompts import NEGATIVE
from ...wan_core.text.tokenizer import END, PAD, Tokenizer
from ...wan_core.text.umt5 import UMT5Encoder
from ..captions import ATTRIBUTES, caption
from ..tokenizer import example_sentences, train_tokenizer
from ..world import draw_scene
from .data import TOKENS, Pool
from .loop import Plan, Stage

STEPS = 8000
RATE = 2e-3
BATCH = 512
RUNS, RUN = 4, 4  # runs of stray tokens put into a text, and tokens to a run
CORE = ("shape 1", "color 1", "direction 1")
WORDLESS = 0.04  # share of the texts that are only stray tokens
COMMON_WORDS = (
    "a an the this that which who it its there here is are was be has with without and or but while as when then into "
    "out of off for from by at in on over under before behind beside between near along across through around we you "
    "they see watch shows show scene shot video clip film picture view very slowly one two another other its"
)


def sentences(seed: int) -> Iterator[str]:
    """What the vocabulary is made from: captions, plain English of other subjects, the negative prompt."""
    rng = np.random.default_rng(seed)
    for _ in range(6000):
        yield caption(draw_scene(rng), rng).text
    yield from example_sentences()
    yield from [COMMON_WORDS] * 200
    for phrase in NEGATIVE.split("，"):
        yield from [phrase] * 40


def make_tokenizer(seed: int, vocabulary: int) -> Tensor:
    """The serialized sentencepiece model, uint8."""
    return train_tokenizer(sentences(seed), vocabulary)


def negative_ids(tokenizer: Tokenizer, device: torch.device) -> Tensor:
    """Token ids of the negative prompt [tokens]."""
    return torch.tensor(tokenizer.encode(NEGATIVE), device=device)


class Reader(nn.Module):
    """The encoder with the heads that it is trained through."""

    def __init__(self, encoder: UMT5Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.sizes = [len(values) + 1 for values in ATTRIBUTES.values()]
        self.heads = nn.Linear(encoder.config.dim, sum(self.sizes))

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        """ids [B, L] -> scores of each attribute's values [B, L, values + 1]."""
        return self.heads(self.encoder(ids, (ids != PAD).long())).split(self.sizes, dim=-1)


def with_strays(ids: Tensor, stray: Tensor, places: Tensor) -> Tensor:
    """Puts stray tokens among the tokens of each text, in runs: ids [B, L], stray [B, RUNS, n], places [B, RUNS].

    A place is a share of the text's length; a run whose place is over 1 is left out. Returns [B, L + RUNS * n].
    """
    length = (ids != PAD).sum(1, keepdim=True)
    order = torch.where(ids == PAD, 1e6, torch.arange(ids.shape[1], device=ids.device).float())
    runs = torch.where(places < 1, places * (length - 1), 2e6)  # before the end token
    inside = torch.linspace(0, 0.01, stray.shape[2], device=ids.device)
    keys = torch.cat([order, (runs.unsqueeze(2) + inside).flatten(1)], 1)
    stray = torch.where(places.unsqueeze(2) < 1, stray, PAD)
    return torch.cat([ids, stray.flatten(1)], 1).gather(1, keys.argsort(dim=1))


def stage(reader: Reader, pool: Pool, tokenizer: Tokenizer, plan: Plan) -> Stage:
    """Cross-entropy of every attribute at every token."""
    nothing = torch.tensor([len(values) for values in ATTRIBUTES.values()], device=plan.device)
    negative = negative_ids(tokenizer, plan.device)[:TOKENS]
    pieces = len(tokenizer.vocabulary())

    def batch(step: int) -> tuple[Tensor, ...]:
        random = plan.generator(step)

        def chance(*shape: int) -> Tensor:
            return torch.rand(shape, generator=random, device=plan.device)

        count = 8 if plan.smoke else BATCH
        rows = torch.randint(len(pool), (count,), generator=random, device=plan.device)
        column = torch.randint(pool.ids.shape[1], (count,), generator=random, device=plan.device)
        ids, told = pool.ids[rows, column], pool.told[rows, column]
        stray = torch.randint(3, pieces, ids.shape, generator=random, device=plan.device)
        wordless = chance(count, 1) < WORDLESS
        told = torch.where(wordless, nothing, told)
        ids = torch.where(wordless & (ids != PAD) & (ids != END), stray, ids)
        ids[0], told[0] = PAD, nothing  # no text
        ids[0, 0] = END
        ids[1], told[1] = PAD, nothing
        ids[1, : len(negative)] = negative
        runs = stray.flatten().roll(1)[: count * RUNS * RUN].view(count, RUNS, RUN)
        places = chance(count, RUNS) * torch.where(chance(count, 1) < 0.5, 2.0, 9.0)
        places[:2] = 2.0
        return with_strays(ids, runs, places), told

    def loss(ids: Tensor, told: Tensor) -> Tensor:
        real = (ids != PAD).float()
        losses = [
            F.cross_entropy(score.movedim(-1, 1), label[:, None].expand_as(ids), reduction="none")
            for score, label in zip(reader(ids), told.unbind(1), strict=True)
        ]
        return (torch.stack(losses).mean(0) * real).sum() / real.sum()

    return Stage("text_encoder", reader, batch, loss, STEPS, RATE, recorded=False)


@torch.no_grad()
def accuracy(reader: Reader, tokenizer: Tokenizer, plan: Plan, count: int = 1024) -> float:
    """Share of the core attributes that the heads read right from held-out prompts, all tokens voting."""
    rng = np.random.default_rng(plan.seed + 1)
    texts = [
        caption(draw_scene(rng, held_out=True, pairs=0.0), rng, held_out=True, complete=True)
        for _ in range(4 if plan.smoke else count)
    ]
    rows = [tokenizer.encode(text.text) for text in texts]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows], device=plan.device)
    real = (ids != PAD).unsqueeze(-1)
    told = dict(zip(ATTRIBUTES, reader(ids), strict=True))
    right = []
    for name in CORE:
        found = (told[name] * real).sum(1).argmax(-1).tolist()
        right += [value == text.told[name] for value, text in zip(found, texts, strict=True)]
    return float(np.mean(right))
