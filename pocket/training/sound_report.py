"""Does a clip follow its sound: held-out scenes and voices, filmed in two clips that go on from each other, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...wan_core.adapters.s2v import MOTION_FRAMES
from ...wan_core.audio.clips import LEAD_IN
from ...wan_core.audio.conditioning import SoundInputs, sound_conditioning
from ...wan_core.prompts import NEGATIVE_S2V
from ...wan_core.tasks import S2V_14B
from ..judge import follows, judge, openings_of, psnr, regions
from ..speakers import draw_speaker, speaker_caption
from ..voice import FRAME, FRAME_RATE, draw_voice, loudness, opening, score, speak
from ..world import Scene, axes, render, sheet
from .hearing import Ears, features, layers_heard, led_in
from .sampling import Family, Settings
from .vae import decode, encode

CLIP = 48  # frames of each of the two clips
FRAMES = 2 * CLIP - LEAD_IN  # of the video
SIDE = 64  # pixels


@dataclass(frozen=True)
class Part:
    """Somebody who speaks: what is asked for, seen and heard."""

    text: str
    scene: Scene
    sound: np.ndarray  # [N] samples
    loudness: np.ndarray  # [frames]


def held_out_parts(seed: int = 0, count: int = 64, frames: int = FRAMES) -> list[Part]:
    """Scenes, voices and forms of sentence that were never trained on."""
    rng = np.random.default_rng((seed, 65))
    parts = []
    for _ in range(count):
        scene = draw_speaker(rng, held_out=True)
        text = speaker_caption(scene, rng, held_out=True).text
        voice = draw_voice(rng, frames / FRAME_RATE, held_out=True)
        sound = speak(score([voice]), rng.standard_normal((1, frames * FRAME)).astype(np.float32))
        parts.append(Part(text, scene, sound[0], loudness(sound, frames)[0]))
    return parts


def true_clip(part: Part, side: int = SIDE) -> np.ndarray:
    """The generator's own clip [F, H, W, 3] in 0..1."""
    wide = opening(part.loudness)[None]
    return render(sheet([part.scene]), *axes(len(part.loudness), side, side), openings=wide)[0]


def picture(part: Part, side: int = SIDE) -> np.ndarray:
    """The scene before anything is heard, [H, W, 3] in 0..1."""
    return render(sheet([part.scene]), *axes(1, side, side))[0, 0]


@torch.no_grad()
def film(family: Family, ears: Ears, parts: Sequence[Part], settings: Settings, seed: int) -> Tensor:
    """Two clips for each part, the second one from the end of the first -> [B, F, H, W, 3] in 0..1, on the CPU."""
    device = next(family.high.parameters()).device
    text, blank = (
        family.context(words, device) for words in ([part.text for part in parts], [NEGATIVE_S2V] * len(parts))
    )
    sound = led_in(torch.from_numpy(np.stack([part.sound for part in parts])).to(device))
    heard = features(ears, sound, FRAMES + LEAD_IN)[:, torch.tensor(layers_heard(), device=device)]
    still = torch.from_numpy(np.stack([picture(part) for part in parts])).to(device)
    reference = encode(family.vae, still.movedim(-1, 1)[:, :, None] * 2 - 1)
    before, frames = reference, torch.zeros(len(parts), 3, MOTION_FRAMES, SIDE, SIDE, device=device)
    for number in range(2):
        noises = [torch.Generator().manual_seed(1000 * seed + 2 * k + number) for k in range(len(parts))]
        shape = reference.shape[1], CLIP // 4, *reference.shape[3:]
        noise = torch.stack([torch.randn(shape, generator=each) for each in noises]).to(device)
        motion = before if number else None
        given = SoundInputs(heard[..., CLIP * number : CLIP * (number + 1)], reference, motion)
        latents = _sampled(family, noise, text, blank, given, settings)
        made = decode(family.vae, torch.cat([before, latents], dim=2))[:, :, before.shape[2] * 4 - 3 :]
        frames = torch.cat([frames, made[:, :, LEAD_IN if number == 0 else 0 :]], dim=2)
        before = encode(family.vae, frames[:, :, -MOTION_FRAMES:])
    return (frames[:, :, MOTION_FRAMES:].permute(0, 2, 3, 4, 1) / 2 + 0.5).float().cpu()


def _sampled(family: Family, x: Tensor, text: Tensor, blank: Tensor, given: SoundInputs, settings: Settings) -> Tensor:
    assert given.sound is not None
    dtype = torch.bfloat16 if x.device.type == "cuda" else torch.float32
    scale = S2V_14B.guidance_high if settings.guidance is None else settings.guidance
    silent = SoundInputs(torch.zeros_like(given.sound), given.reference, given.motion)
    for sigma, following in pairwise(settings.sigmas(S2V_14B).tolist()):
        timestep, noisy = torch.full((len(x),), sigma * 1000, device=x.device), x.to(dtype)
        told = family.high(noisy, timestep, sound_conditioning(family.high, noisy, text, given))
        if scale != 1:
            untold = family.high(noisy, timestep, sound_conditioning(family.high, noisy, blank, silent))
            told = untold + scale * (told - untold)
        x = x + (following - sigma) * told
    return x


def scored(parts: Sequence[Part], clips: Tensor) -> dict[str, float]:
    """How well the clips follow their sounds, those of others, and keep what their pictures show."""
    found = {"first clip": slice(0, CLIP - LEAD_IN), "second clip": slice(CLIP - LEAD_IN, FRAMES), "both": slice(None)}
    result = {}
    for name, span in found.items():
        each = [follows(clip[span].numpy(), part.loudness[span]) for part, clip in zip(parts, clips, strict=True)]
        result |= {f"{name}, mean": float(np.mean(each)), f"{name}, worst": float(np.min(each))}
        result[f"{name}, at 0.8"] = float(np.mean(np.asarray(each) >= 0.8))
    others = [*parts[1:], parts[0]]
    exchanged = [follows(clip.numpy(), part.loudness) for part, clip in zip(others, clips, strict=True)]
    result["sound of another, mean"] = float(np.mean(exchanged))
    seen = [judge(clip.numpy()) for clip in clips]
    things = [part.scene.things[0] for part in parts]
    result["color"] = float(np.mean([one.color == thing.color for one, thing in zip(seen, things, strict=True)]))
    quietest = [clip[int(np.argmin(part.loudness))].numpy() for part, clip in zip(parts, clips, strict=True)]
    quiet = [psnr(picture(part), frame) for part, frame in zip(parts, quietest, strict=True)]
    result |= {"most silent frame, mean dB": float(np.mean(quiet)), "most silent frame, worst dB": float(np.min(quiet))}
    return result


def contact_sheet(parts: Sequence[Part], clips: Tensor, path: Path, *, count: int = 8, frames: int = 12) -> None:
    """Writes a JPEG: of each part a row of frames over the curves of its loudness (grey) and its opening (red)."""
    cells = []
    for part, clip in list(zip(parts, clips.numpy(), strict=True))[:count]:
        chosen = clip[np.linspace(0, len(clip) - 1, frames).round().astype(int)]
        strip = Image.fromarray((np.concatenate(list(chosen), axis=1) * 255).round().astype(np.uint8))
        cell = Image.new("RGB", (strip.width + 8, strip.height + 64), "white")
        cell.paste(strip, (4, 16))
        draw = ImageDraw.Draw(cell)
        draw.text((4, 3), part.text if len(part.text) < 120 else part.text[:117] + "...", fill="black")
        for values, color in ((part.loudness, "#909090"), (openings_of(regions(clip)), "#d02020")):
            low, high = float(values.min()), float(values.max()) + 1e-6
            x = 4 + strip.width * (np.arange(len(values)) + 0.5) / len(values)
            y = strip.height + 60 - 40 * (values - low) / (high - low)
            draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=color, width=2)
        cells.append(cell)
    whole = Image.new("RGB", (cells[0].width, len(cells) * cells[0].height), "white")
    for index, cell in enumerate(cells):
        whole.paste(cell, (0, index * cell.height))
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, quality=82)
