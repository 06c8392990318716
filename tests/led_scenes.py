"""Held-out scenes of the world that VACE and Animate are trained on, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from wancore.pocket import drawings, models, world
from wancore.pocket.captions import caption
from wancore.pocket.following import Led, Shown
from wancore.pocket.training import led, led_stages
from wancore.pocket.training.loop import Plan

CPU = Plan(models.WEIGHTS, Path(), torch.device("cpu"), 0, 0.0)


def asked(count: int, seed: int = 0) -> tuple[list[world.Scene], list[str], led.Batch]:
    """Scenes, prompts that say nothing of the motion, and the scenes on their paths."""
    scenes, rng = led_stages.held_out_scenes(count, seed), np.random.default_rng((seed, 67))
    texts = [caption(s, rng, held_out=True, complete=True, unsaid=drawings.UNSAID).text for s in scenes]
    return scenes, texts, led_stages.drawn(scenes, CPU, 8000 + seed)


def answers(scenes: list[world.Scene], paths: np.ndarray, clips: np.ndarray) -> dict[str, float]:
    leds = [Led.by(one, scene) for one, scene in zip(paths, scenes, strict=True)]
    return led.share_of([one.obeyed(Shown.by(clip)) for one, clip in zip(leds, clips, strict=True)])
