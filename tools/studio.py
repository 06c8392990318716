"""Films prompts with the miniature family in this process: the pack's own loaders, conditioning, sampler and decoder.

What runs is what the nodes run; several prompts of one size are sampled as one batch. ComfyUI must be importable (the
tests see to it) before this module is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pack import import_pack

import_pack()
from wancore.nodes.bridge import clip_run, sampling  # noqa: E402
from wancore.nodes.bridge.audio_encoder import load_audio_encoder  # noqa: E402
from wancore.nodes.bridge.decode import decode_clips  # noqa: E402
from wancore.nodes.bridge.latents import empty_latent, grid_of  # noqa: E402
from wancore.nodes.bridge.lora import apply_lora  # noqa: E402
from wancore.nodes.bridge.model import load_model  # noqa: E402
from wancore.nodes.bridge.text_encoder import load_text_encoder  # noqa: E402
from wancore.nodes.bridge.vae import load_vae  # noqa: E402
from wancore.nodes.images import WanCoreImageToVideo  # noqa: E402
from wancore.nodes.sound import WanCoreSoundToVideo  # noqa: E402
from wancore.nodes.text import encode  # noqa: E402
from wancore.wan_core.audio.clips import CLIP_FRAMES  # noqa: E402
from wancore.wan_core.geometry import CUSTOM  # noqa: E402
from wancore.wan_core.prompts import NEGATIVE, NEGATIVE_S2V  # noqa: E402
from wancore.wan_core.sampling.presets import Settings  # noqa: E402

BATCH = 16  # prompts that are sampled at once
NODE = SimpleNamespace(hidden=SimpleNamespace(unique_id=None))  # stands in for a node's class, of no graph
Start = Callable[[int, Any, Any], tuple[Any, Any, Any]]
"""Number of a clip, its CONDITIONINGs -> CONDITIONINGs and LATENT, as a node for a task makes them."""


@dataclass(frozen=True)
class Studio:
    """The models of one task; `low` is None where there is one model."""

    high: Any
    low: Any | None
    clip: Any
    vae: Any

    @classmethod
    def open(cls, high: Path, low: Path | None, text_encoder: Path, vae: Path) -> Studio:
        """Loads the files."""
        with torch.inference_mode():  # as in ComfyUI's worker
            second = load_model(str(low)) if low else None
            return cls(load_model(str(high)), second, load_text_encoder(text_encoder), load_vae(vae))

    def with_loras(self, high: Path, low: Path | None = None, strength: float = 1.0) -> Studio:
        """The same with a LoRA on each expert."""
        pair = []
        for model, path in ((self.high, high), (self.low, low)):
            pair.append(apply_lora(model, str(path), path.name, strength)[0] if path else model)
        return replace(self, high=pair[0], low=pair[1])

    def film(
        self,
        texts: Sequence[str],
        settings: Settings,
        *,
        size: tuple[int, int] = (96, 96),
        frames: int = 17,
        seed: int = 0,
        negative: str = "",
        pictures: np.ndarray | None = None,
    ) -> np.ndarray:
        """Clips [N, F, H, W, 3] in 0..1 of the texts; `size` is width, height; an empty `negative` is the official one.

        `pictures` [N, H, W, 3] in 0..1 are what the clips start from.
        """

        def start(number: int, positive: Any, unwanted: Any) -> tuple[Any, Any, Any]:
            picture = None if pictures is None else as_images(pictures[number : number + 1])
            return self._start(positive, unwanted, picture, size, frames)

        return self.film_from(texts, settings, start, seed=seed, negative=negative)

    def sing(
        self,
        text: str,
        picture: np.ndarray,
        sound: np.ndarray,
        rate: int,
        audio_encoder: Path,
        settings: Settings,
        *,
        size: tuple[int, int] = (64, 64),
        clip_frames: int = CLIP_FRAMES,
        seed: int = 0,
    ) -> np.ndarray:
        """The clip [F, H, W, 3] in 0..1 of a picture [H, W, 3] that follows a sound [N], as long as that."""
        with torch.inference_mode():
            ears = load_audio_encoder(audio_encoder)
            audio = {"waveform": torch.from_numpy(sound)[None, None], "sample_rate": rate}
            given = torch.from_numpy(np.ascontiguousarray(picture)).float()[None]
            prompts = encode(self.clip, text), encode(self.clip, NEGATIVE_S2V)
            made = WanCoreSoundToVideo.execute.__func__(
                NODE, *prompts, self.vae, ears, audio, given, CUSTOM, 0.0, clip_frames, *size
            )
            positive, negative, latent, _ = made.result
            run = sampling.Run(seed)
            plan = sampling.plan(sampling.Pair.of(self.high, self.low), settings, run)
            sampled, _ = clip_run.sample(plan, positive, negative, latent, run, None)
            _, images = decode_clips(sampled, self.vae, None, with_images=True)
        assert images is not None
        return images.numpy()

    def film_from(
        self,
        texts: Sequence[str],
        settings: Settings,
        start: Start,
        *,
        seed: int = 0,
        negative: str = "",
        batch: int = BATCH,
    ) -> np.ndarray:
        """The same for any task, `batch` clips at once."""
        clips = []
        with torch.inference_mode():
            for first in range(0, len(texts), batch):
                starts = [
                    start(number, encode(self.clip, texts[number]), encode(self.clip, negative or NEGATIVE))
                    for number in range(first, min(first + batch, len(texts)))
                ]
                clips.append(self._film(starts, settings, seed + first))
        return np.concatenate(clips)

    def _film(self, starts: list[tuple[Any, Any, Any]], settings: Settings, seed: int) -> np.ndarray:
        positive, negative_prompt, latent = (_joined([start[part] for start in starts]) for part in range(3))
        pair, run = sampling.Pair.of(self.high, self.low), sampling.Run(seed)
        plan = sampling.plan(pair, settings, run)
        sampled, _ = clip_run.sample(plan, positive, negative_prompt, latent, run, None)
        _, images = decode_clips(sampled, self.vae, None, with_images=True)
        assert images is not None
        return images.unflatten(0, (len(starts), -1)).numpy()

    def _start(
        self, positive: Any, negative: Any, picture: torch.Tensor | None, size: tuple[int, int], frames: int
    ) -> tuple[Any, Any, Any]:
        """Conditioning and latent of one clip, as the nodes for text or for pictures make them."""
        if picture is None:
            return positive, negative, empty_latent(grid_of(self.vae), size, frames, 1)
        made = WanCoreImageToVideo.execute.__func__(
            NODE, positive, negative, self.vae, CUSTOM, 0.0, frames, 1, *size, start_image=picture
        )
        return made.result


def as_images(pictures: np.ndarray) -> torch.Tensor:
    """Pictures [n, H, W, 3] in 0..1 as an IMAGE."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).float()


def _joined(parts: list[Any]) -> Any:
    """CONDITIONINGs or LATENTs of one clip each as those of a batch."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(parts)
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if isinstance(first, (list, tuple)):
        return [_joined(list(entries)) for entries in zip(*parts, strict=True)]
    return first
