"""Step cache: an evaluation whose result would hardly change takes the last one's velocity instead of the model.

A velocity changes about in proportion to the latent that it is predicted from. The proportion is measured at every
evaluation of the model; from it and from how far the latent has moved since comes the estimated error, a share of the
velocity, that decides. Source of the estimate: Zhou et al. 2025, arXiv:2507.02860 (EasyCache). What is reused there is
velocity - latent; here it is the velocity, which is what stays the same on a straight path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

KEPT = 2  # steps at each end of a run that are never skipped


@dataclass
class StepCache:
    """The cache of one expert in one run; starts empty, so that an expert's own first evaluations are never skipped."""

    threshold: float  # largest estimated error, as a share of the velocity
    sigmas: Sequence[float]  # of the run, falling
    evaluations: int = 0
    skipped: int = 0
    estimated: float = 0.0  # the largest estimate at which one was skipped
    measured: float = 0.0  # the largest error that a reused velocity had at the evaluation after
    _error: float = field(default=0.0, repr=False)  # estimated since the model was last asked
    _rate: float | None = field(default=None, repr=False)  # change of the velocity per change of the latent
    _known: tuple[Tensor, Tensor, float] | None = field(default=None, repr=False)  # latent, velocity, its mean size
    _seen: Tensor | None = field(default=None, repr=False)  # latent of the evaluation before
    _reused: bool = field(default=False, repr=False)  # whether that one was skipped

    def reuse(self, latent: Tensor, sigma: float) -> Tensor | None:
        """The velocity for an evaluation [B, C, F, H, W] at `sigma` 0..1, or None where the model is to be asked."""
        before, self._seen = self._seen, latent.clone()  # a sampler may go on in the place of its latent
        self.evaluations += 1
        if before is not None and before.shape != latent.shape:  # a sampler may go on with a larger one
            self._known = self._rate = None
        if self._known is None or self._rate is None or before is None:
            return None
        _, velocity, size = self._known
        self._error += self._rate * _mean_size(latent - before) / size
        if self._error >= self.threshold or self.is_kept(sigma):
            return None
        self._reused = True
        self.skipped += 1
        self.estimated = max(self.estimated, self._error)
        return velocity

    def learn(self, velocity: Tensor) -> None:
        """Takes in what the model made of the evaluation that `reuse` has just declined."""
        latent = self._seen
        assert latent is not None
        if self._known is not None:
            old_latent, old_velocity, size = self._known
            moved, changed = _mean_size(latent - old_latent), _mean_size(velocity - old_velocity)
            if moved:
                self._rate = changed / moved
            if self._reused:
                self.measured = max(self.measured, changed / size)
        self._reused = False
        self._known, self._error = (latent, velocity, _mean_size(velocity)), 0.0

    def is_kept(self, sigma: float) -> bool:
        """True within the first and the last steps of the run."""
        if len(self.sigmas) <= 2 * KEPT:
            return True
        return sigma > self.sigmas[KEPT] or sigma <= self.sigmas[-1 - KEPT]


def _mean_size(tensor: Tensor) -> float:
    return float(tensor.abs().mean())
