"""How much the trained text encoder is found to have read."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from wancore.pocket import family, models
from wancore.pocket.captions import caption
from wancore.pocket.training import text
from wancore.pocket.training.loop import Plan
from wancore.pocket.world import draw_scene
from wancore.wan_core.text.tokenizer import Tokenizer


def test_prompts_read_together_are_read_as_one_by_one(tmp_path: Path):
    torch.manual_seed(1)
    reader = text.Reader(models.new_text_encoder()).requires_grad_(False)
    torch.nn.init.normal_(reader.heads.weight)
    tokenizer = Tokenizer.from_tensor(text.make_tokenizer(3, family.VOCABULARY))
    plan = Plan(tmp_path, tmp_path, torch.device("cpu"), 3, time.monotonic() + 60)
    rng, right = np.random.default_rng(plan.seed + 1), []
    for _ in range(48):
        said = caption(draw_scene(rng, held_out=True, pairs=0.0), rng, held_out=True, complete=True)
        scores = dict(zip(text.ATTRIBUTES, reader(torch.tensor([tokenizer.encode(said.text)])), strict=True))
        right += [int(scores[name].mean(1).argmax()) == said.told[name] for name in text.CORE]
    assert 0 < sum(right) < len(right)
    assert text.accuracy(reader, tokenizer, plan, count=48) == np.mean(right)
