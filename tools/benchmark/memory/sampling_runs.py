"""Runs of the sampler with random weights of few layers: what a block needs does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ....nodes.bridge import sampling
from ....nodes.bridge.model import load_model
from ....nodes.bridge.pair import Pair
from ....nodes.bridge.sampling import Run
from ....wan_core.config import TransformerConfig
from ....wan_core.planner import memory
from ....wan_core.planner.memory import GIB, Clip
from ....wan_core.sampling.presets import Settings
from ....wan_core.weights import inspect
from . import files

LAYERS = {"vace_14B": 8, "animate_14B": 8}  # of 40; VACE's control blocks stand at equal distances
FEW = 3
EXPERTS = {"t2v_A14B_expert": 2, "i2v_A14B_expert": 2}
STEPS = 3  # with both prompts; one on the high expert, and as many on the low one as the solver looks back
SOUND = 80  # frames of sound features


def prepare(shapes: str, precision: str, clip: Clip, folder: Path) -> tuple[Callable[[], Any], float]:
    """What samples once, with the official settings, and the least VRAM that the planner says, in GiB."""
    layers, suffix = LAYERS.get(shapes, FEW), "gguf" if precision in files.GGUF else "safetensors"
    path = folder / f"least_{shapes}_{layers}_{precision}.{suffix}"
    if not path.is_file():
        files.transformer(path, shapes, precision, layers=layers)
    checkpoint = inspect(path)
    assert checkpoint.config is not None
    experts = [load_model(str(path)) for _ in range(EXPERTS.get(shapes, 1))]
    pair = Pair.of(experts[0], experts[1] if experts[1:] else None).at(clip.width, clip.height)
    size = clip.latent(memory.compression_of(checkpoint.config.out_dim))
    wishes = Settings(preset="official", steps=STEPS, boundary=1.0 if experts[1:] else 0.0)
    prompt = [[torch.randn(1, 512, 4096), _conditions(checkpoint.config, size)]]
    latent = {"samples": torch.zeros(1, checkpoint.config.out_dim, *size)}

    def call() -> Any:
        run = Run(seed=1)
        return sampling.sample(sampling.plan(pair, wishes, run), prompt, prompt, latent, run, None)

    return call, memory.sampling(memory.Part.of(checkpoint), clip).vram / GIB


def _conditions(config: TransformerConfig, size: tuple[int, int, int]) -> dict[str, Any]:
    """What the nodes of a task put into a CONDITIONING beside the text, by ComfyUI's names."""
    frames, rows, columns = size

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape)

    if config.vace_dim:
        mask = torch.ones(1, 64, *size)
        return {"vace_frames": [noise(32, *size)], "vace_mask": [mask], "vace_strength": [1.0]}
    if config.audio_dim:
        return {
            "audio_embed": noise(config.audio_layers, config.audio_dim, SOUND),
            "reference_latents": [noise(16, 1, rows, columns)],
            "reference_motion": noise(16, 19, rows, columns),
        }
    if config.in_dim == config.out_dim:
        return {}
    beside = {"concat_latent_image": noise(16, *size), "concat_mask": torch.zeros(1, 4, *size)}
    if not config.pose_dim:
        return beside
    poses = noise(config.pose_dim, frames - 1, rows, columns)
    return {**beside, "pose_video_latent": poses, "face_video_pixels": noise(3, 4 * frames - 7, 512, 512)}
