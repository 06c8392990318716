"""The segments of Wan Long Video: each begins with what the one before ended with, as latents.

Every segment has as many latent frames as the first one. From the second on, its first `overlap` frames are known: a
mask keeps them as they were made, TI2V is told so by their timestep, and I2V by its mask and picture channels. What
follows is appended to the one latent of the whole video, which a causal VAE decodes without a seam.

A model was trained with the latent of a single frame in the first place, and has that of four frames there when latents
are handed over as they are. `PICTURE` puts there what the VAE makes of the picture before the others; like all of the
overlap it is not part of the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ...wan_core.errors import WrongModelError
from ...wan_core.geometry import FRAME_STRIDE
from ...wan_core.image_conditioning import Keyframe
from ...wan_core.long_video import Statistics, drift, pulled_back, statistics
from ...wan_core.tasks import I2V_21, I2V_A14B, T2V_1_3B, T2V_21, T2V_A14B, TI2V_5B
from .clips import ClipPlan, Job, Latent
from .decoding import decode_chunks
from .facts import ModelFacts
from .images import CONCAT_LATENT, CONCAT_MASK, blank_latent, encode_keyframes
from .latents import grid_for, grid_of

TASKS = (T2V_A14B, I2V_A14B, TI2V_5B, T2V_21, T2V_1_3B, I2V_21)
LATENTS, PICTURE = "latents", "picture and latents"
LEAD = 8  # latent frames from which the decoder has settled, for the picture before a segment


@dataclass(frozen=True)
class LongClips(ClipPlan):
    """The segments, and from the run: what the next one goes on from, and what was measured. Latents are raw."""

    part = "segment"
    maker = "Wan Long Video"
    is_masked = True

    count: int
    latents: int  # latent frames of a segment, with the overlap
    overlap: int  # latent frames
    prompts: tuple[Any, ...]  # CONDITIONING for the segments after the first; the last one counts for the rest
    seeds: Mapping[int, int]  # by number of the segment, where it is not the run's
    vae: Any
    handover: str
    limit: float  # of drift; 0: no correction
    tail: Tensor | None = None  # [B, C, n, H, W], the end of what was made
    anchor: Statistics | None = None  # of the first segment
    lines: tuple[str, ...] = ()

    @property
    def lengths(self) -> tuple[int, ...]:
        return (self.latents, *[self.latents - self.overlap] * (self.count - 1))

    def check(self, facts: ModelFacts) -> None:
        if facts.task not in TASKS:
            raise WrongModelError(
                "This model does not go on from latents",
                where=facts.path or "high",
                found=facts.task.title,
                expected=" or ".join(task.title for task in TASKS[:3]),
                remedy="Load one of these; sound to video and Animate have clips of their own",
            )
        grid_for(self.vae, facts.task, facts.task.title)

    def begun(self) -> LongClips:
        return replace(self, tail=None, anchor=None, lines=())

    def ended(self) -> LongClips:
        return replace(self, tail=None)

    def report(self) -> tuple[str, ...]:
        return self.lines

    def seed(self, number: int, seed: int) -> int:
        return self.seeds.get(number, super().seed(number, seed))

    def job(self, number: int, latent: Latent, positive: Any, negative: Any) -> Job:
        positive = self._prompted(number, positive)
        if number == 0:
            return Job(latent, self._without_end(positive), self._without_end(negative))
        known, pictures = self._known()
        samples = blank_latent(known[:, :, :1].repeat(1, 1, self.latents, 1, 1))
        samples[:, :, : self.overlap] = known
        mask = torch.ones_like(samples[:, :1])
        mask[:, :, : self.overlap] = 0
        if any(_is_pictured(options) for _, options in positive):
            behind = self._behind(pictures, samples)
            behind[:, :, : self.overlap] = known
            positive, negative = (self._pictured(number, prompt, behind) for prompt in (positive, negative))
        return Job({**latent, "samples": samples, "noise_mask": mask}, positive, negative)

    def going_on(self, number: int, samples: Tensor, denoised: Tensor) -> tuple[LongClips, Tensor, Tensor]:
        if number == 0:
            plan = replace(
                self,
                anchor=statistics(denoised),
                tail=self._end(denoised),
                lines=("drift from segment 1, by segment:",),
            )
            return plan, samples, denoised
        assert self.anchor is not None and self.tail is not None
        samples, denoised = samples[:, :, self.overlap :], denoised[:, :, self.overlap :]
        now = statistics(denoised)
        far = float(drift(now, self.anchor).max())
        line = f"{number + 1}: {far:.2f}"
        if self.limit and far > self.limit:
            samples, denoised = (pulled_back(part, now, self.anchor, self.limit) for part in (samples, denoised))
            line += f", corrected to {float(drift(statistics(denoised), self.anchor).max()):.2f}"
        tail = self._end(torch.cat([self.tail, denoised], dim=2))
        return replace(self, tail=tail, lines=(*self.lines, line)), samples, denoised

    def length(self, samples: Tensor) -> int:
        return _frames(samples.shape[2])

    def seams(self, samples: Tensor) -> list[int]:
        ends = accumulate(part.shape[2] for part in self.parts(samples))
        return [_frames(end) for end in ends][:-1]

    def decode(self, vae: Any, samples: Tensor, item: int) -> Iterator[Tensor]:
        yield from decode_chunks(vae, samples[item : item + 1])

    def _end(self, latents: Tensor) -> Tensor:
        """What is needed of what was made: the overlap, and frames before it from which the decoder settles."""
        return latents[:, :, -(self.overlap + LEAD) :].clone()

    def _prompted(self, number: int, positive: Any) -> Any:
        """The CONDITIONING with a segment's own text."""
        if not number or not self.prompts:
            return positive
        (tensor, options), *_ = self.prompts[min(number, len(self.prompts)) - 1]
        return [[tensor, {**given, **options}] for _, given in positive]

    def _known(self) -> tuple[Tensor, list[Tensor]]:
        """The latents in the first places of the next segment [B, C, overlap, H, W], and the pictures in front of them.

        The pictures, [1, H, W, 3] in 0..1 for each item, are empty where latents are handed over as they are.
        """
        assert self.tail is not None
        known = self.tail[:, :, -self.overlap :].clone()
        if self.handover == LATENTS:
            return known, []
        lead = self.tail[:, :, : self.tail.shape[2] - self.overlap + 1]
        pictures = []
        for number, item in enumerate(lead.split(1)):
            *_, last = decode_chunks(self.vae, item)
            pictures.append(last[-1:, ..., :3].clone())
            first = self.vae.encode(pictures[-1])
            known[number : number + 1, :, :1] = first.to(known).reshape(known[:1, :, :1].shape)
        return known, pictures

    def _without_end(self, conditioning: Any) -> Any:
        """The CONDITIONING without an end picture, which is that of the last segment."""
        out = []
        for tensor, options in conditioning:
            ending = _ending(options[CONCAT_MASK]) if _is_pictured(options) and self.count > 1 else 0
            if ending:
                picture, mask = options[CONCAT_LATENT].clone(), options[CONCAT_MASK].clone()
                picture[:, :, -ending:] = self._behind([], picture).to(picture)[:1, :, -ending:]
                mask[:, :, -ending:] = 1
                options = {**options, CONCAT_LATENT: picture, CONCAT_MASK: mask}
            out.append([tensor, options])
        return out

    def _pictured(self, number: int, conditioning: Any, behind: Tensor) -> Any:
        """The CONDITIONING of an image to video model: what is known in the first places, an end picture at the end."""
        out = []
        for tensor, options in conditioning:
            if _is_pictured(options):
                picture, mask = behind.clone(), torch.ones_like(options[CONCAT_MASK])
                mask[:, :, : self.overlap] = 0
                ending = _ending(options[CONCAT_MASK]) if number + 1 == self.count else 0
                if ending:
                    picture[:, :, -ending:] = options[CONCAT_LATENT][:, :, -ending:].to(picture)
                    mask[:, :, -ending:] = options[CONCAT_MASK][:, :, -ending:]
                options = {**options, CONCAT_LATENT: picture, CONCAT_MASK: mask}
            out.append([tensor, options])
        return out

    def _behind(self, pictures: list[Tensor], like: Tensor) -> Tensor:
        """Latents [B, C, T, H, W] of a grey clip, behind its picture where there is one, as the model was trained."""
        frames, (rows, columns) = _frames(like.shape[2]), like.shape[3:]
        scale = grid_of(self.vae).compression
        size = columns * scale, rows * scale
        starts = [[Keyframe(0, picture.movedim(-1, 1).float() * 2 - 1)] for picture in pictures] or [[]]
        clips = [encode_keyframes(self.vae, start, frames, size).to(like) for start in starts]
        return torch.cat(clips).expand(len(like), -1, -1, -1, -1).clone()


def _frames(latents: int) -> int:
    return 1 + FRAME_STRIDE * (latents - 1)


def _is_pictured(options: Mapping[str, Any]) -> bool:
    return CONCAT_LATENT in options and CONCAT_MASK in options


def _ending(mask: Tensor) -> int:
    """Latent frames at the end of a clip that are known, by a mask that is 0 there; 0 where all of them are."""
    known = (mask == 0).transpose(1, 2).flatten(2).any(dim=2)[0].tolist()
    if all(known):
        return 0
    return known[::-1].index(False)
