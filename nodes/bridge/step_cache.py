"""The step cache on a MODEL: around its guidance, so that guidance, patches and windows are skipped as one."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...wan_core.sampling.step_cache import StepCache
from .show import show_on_node

KEY = "wan_core_step_cache"
ADDED = "sampler_post_cfg_function"  # in model options: what looks at the two predictions of every evaluation


class CacheReport:
    """What the caches of a node's models did in the last run, on the node."""

    def __init__(self, node_id: str | None) -> None:
        self.node_id = node_id
        self.caches: dict[str, list[StepCache]] = {}

    def start(self, name: str) -> None:
        self.caches.pop(name, None)

    def finish(self, name: str, cache: StepCache) -> None:
        self.caches.setdefault(name, []).append(cache)
        lines = (f"{key}: {', then '.join(map(in_words, caches))}" for key, caches in sorted(self.caches.items()))
        show_on_node(self.node_id, "\n".join(lines))


def in_words(cache: StepCache) -> str:
    """ "5 of 14 evaluations skipped, estimated error up to 4.2%, measured after 3.9%"."""
    if not cache.evaluations:
        return "no step"
    text = f"{cache.skipped} of {cache.evaluations} evaluations skipped"
    if not cache.skipped:
        return text
    return f"{text}, estimated error up to {cache.estimated:.1%}, measured after {cache.measured:.1%}"


def with_step_cache(model: Any, threshold: float, name: str, report: CacheReport) -> Any:
    """A clone of MODEL whose evaluations are skipped below this estimated error; the MODEL itself at 0."""
    if threshold == 0:
        return model
    clone = model.clone()
    cached = _Cached(threshold, name, report)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, cached.around)
    clone.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, cached.predict)
    return clone


class _Cached:
    """The caches of one MODEL: a new one in each run, and for each expert where both are clones of it."""

    def __init__(self, threshold: float, name: str, report: CacheReport) -> None:
        self.threshold, self.name, self.report = threshold, name, report
        # By guider, while its run is under way: the cache, and how many functions of its own look into the guidance.
        self.runs: dict[Any, tuple[StepCache, int]] = {}

    def around(
        self, executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *rest: Any, **more: Any
    ) -> Tensor:
        """Around the native outer_sample."""
        guider, cache = executor.class_obj, StepCache(self.threshold, sigmas.tolist())
        if not self.runs:
            self.report.start(self.name)
        self.runs[guider] = cache, len(guider.model_options.get(ADDED, ()))
        try:
            out = executor(noise, latent, sampler, sigmas, *rest, **more)
            self.report.finish(self.name, cache)
            return out
        finally:
            del self.runs[guider]

    def predict(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], seed: int | None = None
    ) -> Tensor:
        """Around the native predict_noise: x [B, C, F, H, W] at sigma `timestep` [B] -> denoised."""
        cache, added = self.runs.get(executor.class_obj, (None, 0))
        sigma = float(timestep.max())
        # A sampler that looks into the guidance (the cfg_pp ones) needs what is predicted there.
        if cache is None or sigma <= 0 or len(model_options.get(ADDED, ())) > added:
            return executor(x, timestep, model_options, seed)
        velocity = cache.reuse(x, sigma)
        if velocity is not None:
            return x - sigma * velocity
        denoised = executor(x, timestep, model_options, seed)
        cache.learn((x - denoised) / sigma)
        return denoised
