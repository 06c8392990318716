"""The dual-expert guider: one continuous run of any sampler over the high and the low expert of an A14B pair.

Both experts are native guiders. The one that the run starts on is the guider itself; the other one's native run is
wrapped around it, so that its hooks, options and OUTER_SAMPLE wrappers are prepared as in a run of its own, while its
weights and conditionings wait until a step needs them. Solver history, noise and mask are the run's, not an expert's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...wan_core.sampling.experts import ExpertSwitch
from .facts import model_facts
from .fitting import check_latent
from .joining import JoiningExpert, Options, forget_run, load
from .pins import make_room


class DualExpertGuider(comfy.samplers.CFGGuider):
    """Samples on `high` while sigma >= boundary and on `low` below it; without `low`, a plain native guider.

    An expert on which no step starts is never loaded. The change happens once in a run (`ExpertSwitch`), also where
    the two are clones of one module, where only one of them can be active at a time.
    """

    def __init__(self, high: Any, low: Any | None = None, boundary: float = 0.875) -> None:
        super().__init__(high)
        self.boundary = torch.tensor(boundary).item()  # float32, as the sigmas that it is compared with
        self.other: Any = JoiningExpert(low) if low is not None else None
        self.first_is_high = True
        self.switch: ExpertSwitch | None = None  # set while a run over both is under way
        self.other_is_active = False
        self.solver_options: Options = {}
        self.first_cfg: tuple[float, float] | None = None  # guidance scale of the first steps, and where they end

    def set_conds(self, positive: Any, negative: Any) -> None:
        super().set_conds(positive, negative)
        if self.other is not None:
            self.other.set_conds(positive, negative)

    def set_cfg(self, cfg: float, cfg_low: float | None = None) -> None:
        """The guidance scale of the high expert, and of the low one where it differs."""
        super().set_cfg(cfg)
        if self.other is not None:
            self.other.set_cfg(cfg if cfg_low is None else cfg_low)

    def set_first_cfg(self, cfg: float, sigma: float) -> None:
        """Another guidance scale for the high expert, as long as it is asked above `sigma`."""
        self.first_cfg = (cfg, sigma)

    def predict_noise(self, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.first_cfg is None or float(timestep.max()) <= self.first_cfg[1]:
            return super().predict_noise(x, timestep, *args, **kwargs)
        later, self.cfg = self.cfg, self.first_cfg[0]
        try:
            return super().predict_noise(x, timestep, *args, **kwargs)
        finally:
            self.cfg = later

    def sample(
        self, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        check_latent({"samples": latent_image}, model_facts(self.model_patcher, "high"))
        run_args = (noise, latent_image, sampler, sigmas, *args)
        starts = (sigmas[:-1] >= self.boundary).tolist()
        needed = [self] if self.other is None or any(starts) else []
        needed += [self.other] if self.other is not None and not all(starts) else []
        make_room([guider.model_patcher for guider in needed])
        try:
            if self.other is None or not starts or all(starts):
                return super().sample(*run_args, **kwargs)
            if not any(starts):
                return self.other.sample(*run_args, **kwargs)
            return self._sample_both(starts[0], *run_args, **kwargs)
        finally:
            for guider in (self, self.other):
                forget_run(guider)

    def _sample_both(self, high_first: bool, *args: Any, **kwargs: Any) -> Tensor:
        if not high_first:
            self._swap()
        try:
            return self.other.sample_around(super().sample, *args, **kwargs)
        finally:
            self.switch, self.other_is_active, self.solver_options = None, False, {}
            if not high_first:
                self._swap()

    def _swap(self) -> None:
        """Lets a run start on the other expert (schedules that put noise back may start below the boundary)."""
        for name in ("model_patcher", "model_options", "original_conds", "cfg"):
            mine, theirs = getattr(self, name), getattr(self.other, name)
            setattr(self, name, theirs)
            setattr(self.other, name, mine)
        self.first_is_high = not self.first_is_high

    def inner_sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        device: torch.device,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None,
        callback: Callable[..., None] | None,
        disable_pbar: bool,
        seed: int | None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if self.other is not None and self.other.around is not None:
            self.other.brief = (noise, latent_image, denoise_mask, seed, args, kwargs)
            sampler = SamplerOfBoth(sampler, self)
        run_args = (noise, latent_image, device, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        return super().inner_sample(*run_args, *args, **kwargs)

    def solve(
        self, sampler: Any, guider: Any, sigmas: Tensor, extra_args: Options, callback: Any, *rest: Any
    ) -> Tensor:
        """Runs the sampler inside the other expert's SAMPLER_SAMPLE wrappers; those of this one are around already."""

        def run(_: Any, sigmas: Tensor, other_args: Options, callback: Any, *rest: Any) -> Tensor:
            self.other.run_options = other_args["model_options"]
            self.solver_options = {name: _copy(value) for name, value in extra_args["model_options"].items()}
            self.switch = ExpertSwitch(sigmas.tolist(), self.boundary)
            self.other.prepare(self.model_patcher)
            return sampler.sample(guider, sigmas, extra_args, self._counted(callback), *rest)

        other_args = {**extra_args, "model_options": self.other.options_for(sigmas)}
        own = get_all_wrappers(WrappersMP.SAMPLER_SAMPLE, extra_args["model_options"], is_model_options=True)
        others = get_all_wrappers(WrappersMP.SAMPLER_SAMPLE, other_args["model_options"], is_model_options=True)
        # One and the same wrapper on both experts changes the noise of the one run once (FreeNoise).
        nested = WrapperExecutor.new_class_executor(run, sampler, [fn for fn in others if fn not in own])
        return nested.execute(self.other, sigmas, other_args, callback, *rest)

    def _counted(self, callback: Callable[..., None] | None) -> Callable[..., None]:
        def report(step: int, *args: Any) -> None:
            if self.switch is not None:
                self.switch.step = step
            if callback is not None:
                callback(step, *args)

        return report

    def __call__(
        self, x: Tensor, timestep: Tensor, model_options: Options | None = None, seed: int | None = None
    ) -> Tensor:
        options = model_options or {}
        if self.switch is None:
            return super().__call__(x, timestep, model_options=options, seed=seed)
        wants_other = self.switch.choose(float(timestep.max())) != self.first_is_high
        if wants_other != self.other_is_active:
            self._hand_over(*((self, self.other) if wants_other else (self.other, self)))
            self.other_is_active = wants_other
        if not wants_other:
            out = super().__call__(x, timestep, model_options=options, seed=seed)
            if not self.other.joined:
                self.other.read(self.model_patcher)  # not sooner: the file of this expert comes first
            return out
        return self.other.serve(x, timestep, lambda mine: with_added(mine, self.solver_options, options), seed)

    def _hand_over(self, leaving: Any, entering: Any) -> None:
        """Makes the other expert the active one. No weight is moved here: the native loader decides what stays."""
        if entering.model_patcher.model is leaving.model_patcher.model:
            leaving.model_patcher.clean_hooks()  # clones: the hook weights of one sit in the module of both
        if entering is self.other and not entering.joined:
            entering.join()
        else:
            load(entering, self.other.brief[0])


class SamplerOfBoth:
    """The run's sampler as the native guider sees it; everything but `sample` is the sampler's own."""

    def __init__(self, sampler: Any, guider: DualExpertGuider) -> None:
        self.sampler, self.guider = sampler, guider

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)

    def sample(self, guider: Any, sigmas: Tensor, extra_args: Options, callback: Any, *rest: Any) -> Tensor:
        return self.guider.solve(self.sampler, guider, sigmas, extra_args, callback, *rest)


def with_added(options: Options, before: Mapping[str, Any], now: Mapping[str, Any]) -> Options:
    """`options` plus what a sampler added between `before` and `now` (cfg_pp samplers add a post-CFG function)."""
    out = dict(options)
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, list):
            known = old if isinstance(old, list) else []
            out[name] = [*options.get(name, []), *value[len(known) :]]
        elif isinstance(value, dict):
            known = old if isinstance(old, dict) else {}
            changed = {key: item for key, item in value.items() if known.get(key) is not item}
            out[name] = {**options.get(name, {}), **changed}
        elif value is not old:
            out[name] = value
    return out


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, dict | list) else value
