"""What a run tells the model about sigma: the shift of both experts, and the official integer timesteps.

Everything goes through the native object patch of `model_sampling` on clones; the models stay as they were.
"""

from __future__ import annotations

import functools
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...wan_core.errors import InputError
from ...wan_core.sampling.dpmpp import sample_dpmpp
from ...wan_core.sampling.schedules import LARGEST_SIGMA, TIMESTEPS, Schedule, shifted
from ...wan_core.sampling.unipc import sample_unipc

NEAR = 1e-6  # sigmas closer than this are the same step of a schedule
OFFICIAL_SOLVERS = {"official_unipc": sample_unipc, "official_dpmpp": sample_dpmpp}
ROUNDING = 1e-4  # of 1000 * sigma in float32


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """The native rectified-flow sampling with a given shift."""

    def __init__(self, model_config: Any, shift: float) -> None:
        super().__init__(model_config)
        self.set_parameters(shift=shift, multiplier=TIMESTEPS)


class OfficialSampling(FlowSampling):
    """As the official code samples: integer timesteps, and a first latent that is the noise itself, unscaled.

    The official timestep is cut from the sigma in float64, the solver holds the sigma in float32: so the timesteps of
    the schedule's own sigmas are looked up, and only those between are cut here.
    """

    def __init__(self, model_config: Any, shift: float, schedule: Schedule | None = None) -> None:
        super().__init__(model_config, shift)
        sigmas = schedule.sigmas[:-1] if schedule is not None else torch.ones(1)
        timesteps = schedule.timesteps if schedule is not None else torch.full((1,), TIMESTEPS)
        self.register_buffer("start", torch.tensor(shifted(LARGEST_SIGMA, shift)), persistent=False)
        self.register_buffer("official_sigmas", sigmas.float(), persistent=False)
        self.register_buffer("official_timesteps", timesteps.float(), persistent=False)

    @property
    def sigma_max(self) -> Tensor:
        """Where the official schedule starts: a run from here on is a whole one, and takes the noise as it is."""
        return self.start

    def timestep(self, sigma: Tensor) -> Tensor:
        cut = torch.floor(sigma * self.multiplier + ROUNDING)
        distance, nearest = (sigma.reshape(-1, 1) - self.official_sigmas.to(sigma)).abs().min(dim=1)
        official = self.official_timesteps.to(sigma)[nearest]
        return torch.where(distance < NEAR, official, cut.reshape(-1)).reshape(sigma.shape)

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False, **kwargs: Any
    ) -> Tensor:
        if max_denoise and torch.count_nonzero(noise) > 0:
            return noise
        return super().noise_scaling(sigma, noise, latent_image, max_denoise, **kwargs)


def patched_shift(model: Any) -> float | None:
    """The shift that a node before ours put on the MODEL, or None where the model still has its own."""
    return getattr(model.object_patches.get("model_sampling"), "shift", None)


def with_shift(model: Any, shift: float) -> Any:
    """A clone that samples with this shift."""
    return _with_sampling(model, FlowSampling(model.model.model_config, shift))


def with_official_timesteps(model: Any, shift: float, schedule: Schedule | None = None) -> Any:
    """A clone that samples as the official code does; `schedule` is the run's, where it is an official one."""
    return _with_sampling(model, OfficialSampling(model.model.model_config, shift, schedule))


def native_samplers() -> list[str]:
    """Names of ComfyUI's samplers."""
    return list(comfy.samplers.KSampler.SAMPLERS)


def native_schedulers() -> list[str]:
    """Names of ComfyUI's schedulers."""
    return list(comfy.samplers.KSampler.SCHEDULERS)


def sampler_object(name: str) -> Any:
    """The SAMPLER of a name: an official solver, or one of ComfyUI's."""
    if name not in OFFICIAL_SOLVERS:
        return comfy.samplers.sampler_object(name)
    solve = OFFICIAL_SOLVERS[name]

    @functools.wraps(solve)
    def with_bar(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: bool | None) -> Tensor:
        with tqdm(total=len(sigmas) - 1, disable=disable) as bar:

            def report(step: dict[str, Any]) -> None:
                bar.update()
                if callback is not None:
                    callback(step)

            return solve(model, x, sigmas, extra_args=extra_args, callback=report)

    return comfy.samplers.KSAMPLER(with_bar)


def native_sigmas(model: Any, scheduler: str, sampler_name: str, steps: int, denoise: float) -> Tensor:
    """The sigmas [steps + 1] that the native KSampler takes with this model, scheduler and sampler.

    Raises:
        InputError: the scheduler makes none of so few steps.
    """
    known = sampler_name if sampler_name in comfy.samplers.KSampler.SAMPLERS else "euler"
    sigmas = comfy.samplers.KSampler(model, steps, torch.device("cpu"), known, scheduler, denoise).sigmas
    if not sigmas.isfinite().all():
        raise InputError(
            "This scheduler makes no sigmas of so few steps",
            where="scheduler",
            found=f"{scheduler} with steps {steps}",
            remedy="Set steps to 2 or more, or choose simple",
        )
    return sigmas


def _with_sampling(model: Any, sampling: FlowSampling) -> Any:
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone
