"""The expert that joins a run under way: prepared as for a run of its own, its weights loaded when a step needs them.

While the other expert samples, its conditionings are ready and its file is read into the page cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from .control_lora import is_in_place
from .read_ahead import ReadAhead, read_ahead_of

Options = dict[str, Any]


class JoiningExpert(comfy.samplers.CFGGuider):
    """The expert that joins a run under way; on its own it is a plain native guider."""

    def __init__(self, model_patcher: Any) -> None:
        super().__init__(model_patcher)
        self.around: Callable[..., Tensor] | None = None  # the run that it joins
        self.joined = False
        self.brief: tuple[Any, ...] = ()  # what its conditionings are prepared from
        self.run_options: Options = {}
        self.ready: dict[str, list[Options]] | None = None  # the conditionings, where they could be prepared before
        self.reads_ahead = False  # whether its file was considered in this run
        self.read_ahead: ReadAhead | None = None

    def sample_around(self, run: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Prepares this expert's run natively and calls `run` in the place where it would load and sample."""
        self.around = run
        try:
            return self.sample(*args, **kwargs)
        finally:
            self.stop_reading()
            self.around, self.brief, self.run_options, self.ready, self.reads_ahead = None, (), {}, None, False

    def outer_sample(
        self,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        denoise_mask: Tensor | None = None,
        callback: Callable[..., None] | None = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        run_args = (noise, latent_image, sampler, sigmas, denoise_mask, callback, disable_pbar, seed)
        if self.around is None:
            return super().outer_sample(*run_args, *args, **kwargs)
        try:
            return self.around(*run_args)
        finally:
            if self.joined:
                self.joined = False
                self.model_patcher.cleanup()
                release_models(self)

    def options_for(self, sigmas: Tensor) -> Options:
        """This expert's model options for a run over `sigmas`, as its native run would make them."""
        options = comfy.model_patcher.create_model_options_clone(self.model_options)
        options.setdefault("transformer_options", {})["sample_sigmas"] = sigmas
        return options

    def prepare(self, running: Any) -> None:
        """Prepares the conditionings while expert `running` has the device; those that need this one's wait for it."""
        conds = [cond for group in self.conds.values() for cond in group]
        if self.model_patcher.model is running.model or any("control" in cond for cond in conds):
            return
        if not is_in_place(self.model_patcher):  # how many channels go in beside the noise is read off the weight
            return
        sampling = self.model_patcher.get_model_object("model_sampling")  # a patch that loading would put in place
        self.ready = self._processed(AsLoaded(self.model_patcher.model, sampling))

    def read(self, running: Any) -> None:
        """Starts to read the file while expert `running` samples; once in a run."""
        if self.reads_ahead:
            return
        self.reads_ahead = True
        self.read_ahead = read_ahead_of(self.model_patcher, running)
        if self.read_ahead is not None:
            self.read_ahead.start()

    def stop_reading(self) -> None:
        if self.read_ahead is not None:
            self.read_ahead.stop()
            self.read_ahead = None

    def join(self) -> None:
        """Loads the weights, once in a run."""
        self.stop_reading()
        device = self.model_patcher.load_device
        self.joined = True  # from here on there is something to clean up
        load(self, self.brief[0].to(device))
        comfy.samplers.cast_to_load_options(self.run_options, device=device, dtype=self.model_patcher.model_dtype())
        self.conds = self.ready or self._processed(self.inner_model)

    def _processed(self, model: Any) -> dict[str, list[Options]]:
        """The conditionings as the sampler takes them."""
        noise, latent, denoise_mask, seed, args, kwargs = self.brief
        device = self.model_patcher.load_device
        noise, latent = noise.to(device), latent.to(device)
        if torch.count_nonzero(latent) > 0:
            latent = model.process_latent_in(latent)
        prompts = (model, noise, dict(self.conds), device, latent, denoise_mask, seed)
        with keyframes_kept(self.conds):
            return comfy.samplers.process_conds(*prompts, *args, **kwargs)

    def serve(self, x: Tensor, timestep: Tensor, added: Callable[[Options], Options], seed: int | None) -> Tensor:
        """The denoised estimate, with the options that the sampler added to the run's."""
        device = self.model_patcher.load_device
        with comfy.model_management.cuda_device_context(device):  # the run is on the other expert's
            out = self.outer_predict_noise(x.to(device), timestep.to(device), added(self.run_options), seed)
        return out.to(x.device)


class AsLoaded:
    """A model with the sampling that it will have once its patcher is loaded; nothing is put into the model for it."""

    def __init__(self, model: Any, model_sampling: Any) -> None:
        self._model, self.model_sampling = model, model_sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def load(expert: Any, noise: Tensor) -> None:
    """Has the native loader bring an expert's weights in, and makes it the active patcher of its module."""
    prepared = comfy.sampler_helpers.prepare_sampling(
        expert.model_patcher, noise.shape, expert.conds, expert.model_options
    )
    expert.inner_model, expert.conds, expert.loaded_models = prepared
    expert.model_patcher.pre_run()


@contextmanager
def keyframes_kept(conds: Mapping[str, list[Options]]) -> Iterator[None]:
    """Preparing conditionings sets the keyframes of their hooks back to the run's beginning; here the run goes on."""
    hooks = [hook for group in conds.values() for cond in group for hook in getattr(cond.get("hooks"), "hooks", ())]
    before = [(hook.hook_keyframe, vars(hook.hook_keyframe).copy()) for hook in hooks]
    yield
    for keyframes, state in before:
        vars(keyframes).update(state)


def release_models(guider: Any) -> None:
    """Lets the additional models of a run go (ControlNets and the like), as the native run does at its end.

    A run whose loading failed has none.
    """
    if hasattr(guider, "loaded_models"):
        comfy.sampler_helpers.cleanup_models(guider.conds, guider.loaded_models)
        del guider.inner_model, guider.loaded_models


def forget_run(guider: Any) -> None:
    """Drops what an interrupted native run leaves on its guider."""
    release_models(guider)
    if hasattr(guider, "conds"):
        del guider.conds
