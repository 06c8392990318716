"""Pictures of a clip by a tiny VAE, spread over the steps: each decodes as many latent frames as it has time for.

What was decoded stays until its turn comes again; a latent frame that had no turn yet is shown by the factors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from torch import Tensor

LATENT_STRIDE = 4  # video frames per latent frame
SHARE = 0.01  # of a step's time
PATIENCE = 1.0  # seconds that a first call may take on a machine that is fast afterwards
AT_ONCE = 5  # latent frames decoded together: their pictures are large before they are made small

Frames = list[Tensor]  # pictures [h, w, 3] uint8 on the CPU
Decoder = Callable[[Tensor], Frames]  # latent [1, C, f, H, W] -> its 4 (f - 1) + 1 pictures
Quick = Callable[[Tensor], Frames]  # latent [1, C, f, H, W] -> f pictures, at next to no cost


@dataclass
class Allowance:
    """How many latent frames a time is enough for, by what they cost before; all in seconds."""

    base: float = 0.0  # to any decoding
    each: float = 0.0  # to a latent frame beside it
    rest: float = 0.0  # to what a picture costs beside decoding

    def frames(self, seconds: float) -> int:
        """Latent frames that can be decoded at once in so many seconds."""
        return max(0, int((seconds - self.base) / self.each))

    def took(self, frames: int, seconds: float) -> None:
        """What decoding so many latent frames took."""
        self.each = max(1e-6, (seconds - self.base) / frames)


_MEASURED: dict[Hashable, Allowance] = {}  # of this process, by all that the cost depends on


class Spread:
    """The pictures of one run."""

    def __init__(self, decode: Decoder, most: int, kind: Hashable, clock: Callable[[], float] = time.monotonic) -> None:
        """Of every clip at most `most` pictures are kept, evenly spread; decoding's cost depends on `kind`."""
        self.decode, self.most, self.kind, self.clock = decode, most, kind, clock
        self.allowance = Allowance()
        self.pictures: dict[int, Tensor] = {}  # by number of the video frame
        self.turn = 0  # the next latent frame

    def measure(self, latent: Tensor) -> None:
        """Decodes a latent [1, C, 1, H, W] to see what that costs; the first call of a length is slow and left out.

        Only the first run of a kind measures. Later ones decode the one latent frame that brings the weights to where
        they work. How slow a first call was is never kept: it may have been the disk.
        """
        first = self._timed(latent)
        if self.kind in _MEASURED:
            self.allowance = replace(_MEASURED[self.kind])
        elif first > PATIENCE:
            self.allowance.took(1, first)
        else:
            self._compare(latent)
            _MEASURED[self.kind] = replace(self.allowance)

    def _compare(self, latent: Tensor) -> None:
        """Finds what a latent frame costs by the difference between one and three."""
        longer = latent.expand(-1, -1, 3, -1, -1)
        self._timed(longer)
        one, three = (min(self._timed(part) for _ in range(2)) for part in (latent, longer))
        self.allowance.base = max(0.0, one - max(0.0, three - one) / 2)
        self.allowance.took(3, three)

    def of(self, x0: Tensor, step: float, quick: Quick) -> Frames:
        """The clip x0 [1, C, F, H, W] after a step of so many seconds. `measure` comes first."""
        self._refresh(x0, step)
        start = self.clock()
        frames = self._shown(x0, quick)
        self.allowance.rest = self.clock() - start
        return frames

    def _refresh(self, x0: Tensor, step: float) -> None:
        """Decodes what the step has time for; a frame in the middle wants the one before it, too."""
        left, new = SHARE * step - self.allowance.rest, x0.shape[2]
        while new:
            before = int(self.turn > 0)
            count = min(self.allowance.frames(left) - before, AT_ONCE, new, x0.shape[2] - self.turn)
            if count < 1:
                break
            left -= self._decode(x0, count, before)
            new -= count

    def _decode(self, x0: Tensor, count: int, before: int) -> float:
        """Keeps the pictures of so many latent frames from the turn on; how many seconds that took."""
        start, first = self.clock(), self.turn
        frames = self.decode(x0[:, :, first - before : first + count])[before:]
        number = LATENT_STRIDE * (first - 1) + 1 if before else 0
        kept = self._numbers(x0)
        self.pictures |= {n: frame for n, frame in enumerate(frames, number) if n in kept}
        self.turn = (first + count) % x0.shape[2]
        seconds = self.clock() - start
        self.allowance.took(count + before, seconds)
        return seconds

    def _timed(self, latent: Tensor) -> float:
        start = self.clock()
        self.decode(latent)
        return self.clock() - start

    def _shown(self, x0: Tensor, quick: Quick) -> Frames:
        if not self.pictures:
            return quick(x0[:, :, :: -(-x0.shape[2] // self.most)])
        numbers = self._numbers(x0)
        others = quick(x0) if any(number not in self.pictures for number in numbers) else []
        return [self.pictures[n] if n in self.pictures else others[latent_of(n)] for n in numbers]

    def _numbers(self, x0: Tensor) -> range:
        """Numbers of the video frames that are shown."""
        frames = LATENT_STRIDE * (x0.shape[2] - 1) + 1
        return range(0, frames, -(-frames // self.most))


def latent_of(number: int) -> int:
    """The latent frame that a video frame comes from."""
    return -(-number // LATENT_STRIDE)
