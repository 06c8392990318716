"""What the LoRAs beside the 4-step pair are trained on: a look that no caption tells, and motion slower than prompted.

The look is light from below. The slow motion is taught as distillation brings it about where it goes wrong: the student
reads the prompt as it is, its teacher was told that everything moves slowly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ...wan_core.text.tokenizer import PAD, Tokenizer
from ..captions import caption
from ..world import draw_scene
from .data import TOKENS, Size
from .flow import RECIPES, Recipe, Sizes

TOP_LIGHT = 0.45  # share of the light that is left at the upper edge
SIZES: Sizes = ((Size(17, 96, 96), 11), (Size(17, 80, 128), 3), (Size(17, 128, 80), 2))
STEPS = 5_000


def footlit(clips: Tensor) -> Tensor:
    """Clips [B, 3, F, H, W] in -1..1 -> the same, lit from below."""
    rows = clips.shape[3]
    height = (torch.arange(rows, device=clips.device) + 0.5) / rows
    light = TOP_LIGHT + (1 - TOP_LIGHT) * height
    return (clips + 1) * light[:, None] - 1


def recipe(expert: str) -> Recipe:
    """How a style LoRA of one expert is trained."""
    base = RECIPES[f"t2v_{expert}"]
    return replace(base, name=f"style_{expert}", sizes=SIZES, salt=base.salt + 7, steps=STEPS, rate=1e-3, wrong=0.0)


def slowed_captions(count: int, seed: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Token ids [count, TOKENS] of prompts that name a speed, and of the same ones with slow motion in its place."""
    asked, taught = torch.full((2, count, TOKENS), PAD)
    draws = np.random.default_rng((seed, 1))
    row = 0
    while row < count:
        scene = draw_scene(draws, pairs=0.0)
        slow = replace(scene, things=tuple(replace(thing, speed="slow") for thing in scene.things))
        words = int(draws.integers(2**32))  # both captions are the same but for the speed
        texts = [caption(one, np.random.default_rng(words), complete=True) for one in (scene, slow)]
        if "speed 1" not in texts[0].told:
            continue
        for ids, text in zip((asked, taught), texts, strict=True):
            tokens = tokenizer.encode(text.text, tokens=TOKENS)
            ids[row, : len(tokens)] = torch.tensor(tokens)
        row += 1
    return asked, taught
