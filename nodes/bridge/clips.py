"""A plan of clips: a long task that is sampled in parts, each going on from the one before.

The LATENT carries the plan under `wan_clips`. Wan KSampler runs every clip (`clip_run`) and leaves their latents one
after the other; a native sampler runs the first one. What a clip is made from, and what it leaves to the next, is said
by the subclass of its task.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from typing_extensions import Self

from ...wan_core.errors import InputError
from .facts import ModelFacts

CLIPS = "wan_clips"  # in a LATENT
SEEDS = 2**64
Latent = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What a sampler gets for one clip."""

    latent: Latent
    positive: Any
    negative: Any


class ClipPlan(ABC):
    """The clips of one video. Frozen: what a run finds out is in the plan that `going_on` returns."""

    part = "clip"  # what one of them is called on the node
    maker = ""  # display name of the node that plans it
    is_masked = False  # whether clips after the first begin with what a mask keeps

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, ...]:
        """Latent frames that each clip leaves in the LATENT."""

    @abstractmethod
    def check(self, facts: ModelFacts) -> None:
        """Raises:
        WrongModelError: the clips are not made for this model.
        """

    def begun(self) -> Self:
        """The plan as it is before the first clip, without what an earlier run found out."""
        return self

    def seed(self, number: int, seed: int) -> int:
        """The seed of a clip in a run of `seed`."""
        return (seed + number) % SEEDS

    @abstractmethod
    def job(self, number: int, latent: Latent, positive: Any, negative: Any) -> Job:
        """What clip `number` is sampled from: `latent` is the run's, the prompts are the sampler's inputs."""

    @abstractmethod
    def going_on(self, number: int, samples: Tensor, denoised: Tensor) -> tuple[Self, Tensor, Tensor]:
        """After clip `number`: the plan with what the next one goes on from, and what stays of both results.

        Clips that are read from the disk pass here, too.
        """

    def ended(self) -> Self:
        """The plan as the LATENT carries it on, without what only the run needed."""
        return self

    def report(self) -> tuple[str, ...]:
        """Lines about the clips for the node."""
        return ()

    @abstractmethod
    def length(self, samples: Tensor) -> int:
        """Frames of the video that these latents make."""

    @abstractmethod
    def seams(self, samples: Tensor) -> list[int]:
        """Number of the first frame of every part but the first."""

    @abstractmethod
    def decode(self, vae: Any, samples: Tensor, item: int) -> Iterator[Tensor]:
        """Frames [f, H, W, 3] in 0..1 of one item of the batch, chunk by chunk."""

    def parts(self, samples: Tensor) -> list[Tensor]:
        """The clips' latents out of those one after the other; only the first where that is all there is.

        Raises:
            InputError: the latent is as long as neither.
        """
        lengths = list(self.lengths)
        if samples.shape[2] == sum(lengths):
            return list(samples.split(lengths, dim=2))
        if samples.shape[2] == lengths[0]:
            return [samples]
        raise InputError(
            "This latent is not as long as the clips that it was planned for",
            where="latent",
            found=f"{samples.shape[2]} latent frames",
            expected=f"{sum(lengths)}",
            remedy=f"Connect {self.maker}, Wan KSampler and Wan VAE Decode without nodes that change the length",
        )

    def warn_of_missing(self, samples: Tensor) -> None:
        """Says in the log that these latents are only the beginning of what was planned, where it is so."""
        made, planned = len(self.parts(samples)), len(self.lengths)
        if made < planned:
            logging.warning(
                "Wan: only the first of %d %ss was sampled; use Wan KSampler for all of them.", planned, self.part
            )


def with_values(conditioning: Any, values: dict[str, Any]) -> Any:
    """A CONDITIONING with these values in every entry."""
    return [[tensor, {**options, **values}] for tensor, options in conditioning]


def item_of(latents: Tensor, item: int) -> Tensor:
    """One item of a batch; the only one where all items share it."""
    return latents[item : item + 1] if len(latents) > 1 else latents
