"""Resume by replay: what the model answered in a run is kept on disk, and answers again where the same is asked.

A solver keeps its history in local variables, so a run that was cut short is sampled from its beginning again; calls
that the log knows cost a read instead of a run of the model, and every bit comes out as if nothing had happened. An
answer is found by everything that it depends on: what the expert is, the prompts, the number of the call, sigma and
latent. So a change of the low expert's side finds the high expert's answers still valid: the high-stage cache is this.

The log sits inside the guidance: functions that guidance or a solver hangs around the model see every call, and so
do step caches that work there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import comfy.clip_vision
import torch
from comfy.patcher_extension import WrappersMP
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...wan_core import attention
from .kept_files import WRITE_ERRORS, make_room, mark_used

KEY = "wan_core_replay"
STRIDES, ATTENTION = "strides", "attention"  # in the metadata of an answer's file
BUDGET = 4 * 2**30  # bytes of all logs together; the oldest answers go first
OTHERS = (WrappersMP.DIFFUSION_MODEL, WrappersMP.APPLY_MODEL)  # their state would miss the calls that are not made
# Keys of wrappers there that keep nothing between calls.
STATELESS = {"wan_core_nag", "wan_core_meter", "torch.compile"}


class ReplayLog:
    """The answers of one run's experts, one file for each call."""

    def __init__(self, folder: Path, tell: Callable[[str], None] | None = None) -> None:
        """`tell` is given the report of every run that comes to its end."""
        self.folder, self.tell = folder, tell
        self.calls = self.replayed = 0  # since the last report
        self.used: list[Path] = []  # the answers of this run
        self.passing: list[Path] = []  # those that go at its end
        self.run = ""  # a number for what is sampled
        self.number = 0  # of the next call
        self.depth = 0  # of the experts' runs around each other
        self.failure = ""  # why an answer could not be kept, since the last report

    def on(self, model: Any, identity: str, *, lasting: bool = True) -> Any:
        """A clone of MODEL whose answers are logged; `identity` is everything that they depend on beside the run.

        Without `lasting`, its answers go when the run has come to its end.
        """
        clone = model.clone()
        seen = _Expert(self, identity, lasting)
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self.around)
        clone.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, seen.answer)
        return clone

    def around(
        self,
        executor: Any,
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        mask: Tensor | None = None,
        callback: Any = None,
        disable_pbar: bool = False,
        seed: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Around the native outer_sample, of the run or of one within it."""
        if not self.depth:
            self.run, self.number = digest(noise, latent, sigmas, mask, seed), 0
            self.used, self.passing = [], []
        self.depth += 1
        try:
            out = executor(noise, latent, sampler, sigmas, mask, callback, disable_pbar, seed, *args, **kwargs)
        finally:
            self.depth -= 1
        if not self.depth:
            self.finish()
        return out

    def path_of(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def find(self, name: str, like: Tensor) -> dict[str, Tensor] | None:
        """The answer of a call; None where it was not made, or its file is damaged."""
        path = self.path_of(name)
        try:
            found = read_answer(path, like.device)
        except FileNotFoundError:
            return None
        except Exception as error:  # noqa: BLE001  (whatever is wrong with it: the model can be asked again)
            logging.warning("Wan: %s cannot be read (%s); the step is run again", path, error)
            return None
        mark_used(path)
        self.used.append(path)
        return found

    def keep(self, name: str, answer: dict[str, Tensor]) -> None:
        """Writes an answer whole or not at all: a process that is killed leaves no half file behind.

        A disk that does not take it only costs the resume.
        """
        size = sum(tensor.nbytes for tensor in answer.values())
        path = self.path_of(name)
        draft = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            make_room(self.folder, size, BUDGET, keep=self.used)
            write_answer(draft, answer)
            draft.replace(path)
        except WRITE_ERRORS as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            if not self.failure:
                logging.warning("Wan: a step could not be kept for a resume: %s", error)
            self.failure = str(error)
            return
        self.used.append(path)

    def finish(self) -> None:
        """After a whole run: removes what no other run could use."""
        for path in self.passing:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if self.tell is not None:
            self.tell(self.report())

    def report(self) -> str:
        """ ", 6 of 8 calls from the log" since the last report, and why others were not kept; empty where none was."""
        replayed, calls, failure = self.replayed, self.calls, self.failure
        self.replayed, self.calls, self.failure = 0, 0, ""
        found = f", {replayed} of {calls} calls from the log" if replayed else ""
        return found + (f"\nnot kept for a resume: {failure}" if failure else "")


def write_answer(path: Path, answer: dict[str, Tensor]) -> None:
    """Writes tensors with what the bits of the calls to come depend on beside them.

    That is their order in memory, in which solvers draw noise and add up, and the attention kernels.
    """
    about = {STRIDES: {key: tensor.stride() for key, tensor in answer.items()}, ATTENTION: attention.choices()}
    plain = {key: tensor.detach().cpu().contiguous() for key, tensor in answer.items()}
    save_file(plain, path, metadata={name: json.dumps(value) for name, value in about.items()})


def read_answer(path: Path, device: torch.device) -> dict[str, Tensor]:
    """What `write_answer` wrote, on a device, laid out as it was; attention is computed as it was from here on."""
    out = {}
    with safe_open(path, framework="pt") as file:
        strides, kernels = (json.loads(file.metadata()[name]) for name in (STRIDES, ATTENTION))
        for key, stride in strides.items():
            plain = file.get_tensor(key)
            out[key] = torch.empty_strided(plain.shape, stride, dtype=plain.dtype, device=device).copy_(plain)
    attention.agree(kernels)
    return out


class _Expert:
    """Answers one expert's calls, from the log where it can."""

    def __init__(self, log: ReplayLog, identity: str, lasting: bool) -> None:
        self.log, self.identity, self.lasting = log, identity, lasting

    def answer(
        self, executor: Any, model: Any, conds: Sequence[Any], x: Tensor, timestep: Tensor, options: dict[str, Any]
    ) -> list[Tensor]:
        """Around the native calc_cond_batch: one prediction for each of `conds`, zeros for those that are None."""
        if not can_replay(options):
            return executor(model, conds, x, timestep, options)
        log = self.log
        number, log.number, log.calls = log.number, log.number + 1, log.calls + 1
        asked = [str(index) for index, cond in enumerate(conds) if cond is not None]
        name = digest(self.identity, log.run, number, asked, timestep, x)
        if not self.lasting:
            log.passing.append(log.path_of(name))
        found = log.find(name, x)
        if found is not None:
            log.replayed += 1
            return [found[str(index)] if str(index) in found else torch.zeros_like(x) for index in range(len(conds))]
        out = list(executor(model, conds, x, timestep, options))
        log.keep(name, {index: out[int(index)] for index in asked})
        return out


def can_replay(options: dict[str, Any]) -> bool:
    """False where something below the log may keep a state from call to call (step caches do)."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    foreign = [key for kind in OTHERS for key in wrappers.get(kind, {}) if key not in STATELESS]
    return not foreign and "model_function_wrapper" not in options


def digest(*parts: Any) -> str:
    """A number for the content of numbers, texts, tensors and containers of them.

    Raises:
        TypeError: something else is among them, whose content cannot be told.
    """
    state = hashlib.blake2b(digest_size=20)
    _feed(state, parts)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if value is None or isinstance(value, str | int | float | bool | torch.dtype | torch.Size):
        state.update(f"{type(value).__name__}:{value!r};".encode())
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        state.update(f"tensor:{flat.dtype}:{tuple(value.shape)};".encode())
        state.update(flat.view(torch.uint8).numpy())
    elif isinstance(value, dict):
        state.update(f"dict:{len(value)};".encode())
        for key in sorted(value):
            _feed(state, key)
            _feed(state, value[key])
    elif isinstance(value, list | tuple):
        state.update(f"list:{len(value)};".encode())
        for item in value:
            _feed(state, item)
    elif isinstance(value, comfy.clip_vision.Output):
        _feed(state, vars(value))
    else:
        raise TypeError(f"the content of a {type(value).__name__} cannot be told")
