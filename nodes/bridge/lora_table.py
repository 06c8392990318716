"""Strengths of LoRAs as data of the run: a table (LoRA x step x expert) that is read at every call of the model.

Each expert of a pair is a MODEL with rows of its own, one for each LoRA. They lie in its `transformer_options`, so that
a clone with other strengths is another table over the same weights, and nothing is loaded for it. The tensors are in
banks beside the model (lora_bank.py). A row has one strength for each step of the run, where a step is an interval of
the run's sigmas; the last strength holds for all later steps, so a single one is a constant.

    rows_of(model)                  the LoRAs on a MODEL, for reading
    with_strengths(model, choose)   a clone with other strengths; choose(row) returns those of a row
    with_row(model, row, patches)   a clone with one more LoRA
    running(model, options, step)   inside this context the layers of the model add what the table says for a step

A row may be merged: its patches are in the native patcher, as float weights have them by default, at one strength.
`with_strengths` takes a merged row exactly out of there where its strength is to change from step to step.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...wan_core.errors import InputError
from ...wan_core.transformer import WanTransformer
from ...wan_core.weights.mapped import MappedFile, check_all
from ...wan_core.weights.names import is_distilled
from .control_lora import widen
from .lora_bank import HeldPatch, LoraBank, bank_for
from .patches import FloatPatches

KEY = "wan_core_loras"  # in transformer_options, and of the additional patchers
SAME_SIGMA = 1e-6  # relative; sigmas pass through float32

Strengths = tuple[float, ...]
Beside = list[tuple[float, HeldPatch]]  # strength of this call, and what it scales


@dataclass(frozen=True)
class LoraRow:
    """One LoRA on one expert."""

    name: str  # of the file, with its folder
    strengths: Strengths  # one for each step of the run; the last one holds for all later steps
    file: MappedFile  # that the tensors lie in, as it was when they were read
    patches: Mapping[str, Sequence[Any]] | None = field(default=None, repr=False)  # of a merged row: {key: values}
    bank: LoraBank | None = field(default=None, repr=False)  # of a row beside the weights

    @property
    def merged(self) -> bool:
        """True if the native patcher has it, at its only strength."""
        return self.bank is None

    @property
    def keys(self) -> Collection[str]:
        """The weights of the model that it changes."""
        return (self.patches or {}).keys() if self.bank is None else self.bank.by_key.keys()

    @property
    def is_distilled(self) -> bool:
        """True if the file's name says that it makes a few steps enough."""
        return is_distilled(self.name)

    def told(self) -> list[Any]:
        """What tells this row from others in another process too."""
        return [self.name, list(self.strengths), self.file.path, self.file.changed, self.file.size, self.merged]


def rows_of(patcher: Any) -> tuple[LoraRow, ...]:
    """The LoRAs that the pack's nodes have put on a MODEL."""
    return patcher.model_options.get("transformer_options", {}).get(KEY, ())


def with_row(patcher: Any, row: LoraRow, patches: Callable[[], Mapping[str, Sequence[Any]]], *, beside: bool) -> Any:
    """Returns a clone with one more LoRA, beside the weights or merged by the native patcher.

    `patches` reads the file: {key of a weight: values of ComfyUI's patches}.

    Raises:
        InputError: strengths that change from step to step on a model that cannot read them.
    """
    clone = patcher.clone()
    if beside:
        bank = bank_for(patcher, row.file, patches)
        return _with_rows(clone, (*rows_of(patcher), replace(row, bank=bank.model)), (bank,))
    if len(set(row.strengths)) > 1:
        _refuse(patcher, row)
    row = replace(row, patches=patches())
    assert row.patches is not None
    for key, values in row.patches.items():
        for value in values:
            clone.add_patches({key: value}, row.strengths[0])
    return _with_rows(clone, (*rows_of(patcher), row))


def with_strengths(patcher: Any, choose: Callable[[LoraRow], Sequence[float]]) -> Any:
    """Returns a clone in which every row has the strengths that `choose` returns for it.

    The same strengths on the same MODEL give a clone with the same weights, for which nothing is loaded again.

    Raises:
        InputError: a merged row of a model that reads no table is to change.
    """
    clone = patcher.clone()
    rows: list[LoraRow] = []
    banks: list[Any] = []
    moved: list[LoraRow] = []
    for row in rows_of(patcher):
        strengths = tuple(float(strength) for strength in choose(row))
        if strengths != row.strengths and row.merged:
            if not can_read_table(patcher):
                _refuse(patcher, row)
            patches = row.patches or {}
            bank = bank_for(patcher, row.file, lambda patches=patches: patches)
            moved.append(row)
            banks.append(bank)
            row = replace(row, patches=None, bank=bank.model)
        rows.append(replace(row, strengths=strengths))
    if moved:
        _take_out(clone, moved)
    return _with_rows(clone, tuple(rows), tuple(banks))


def can_read_table(patcher: Any) -> bool:
    """True for a model of this pack; ComfyUI's own Wan reads its patcher only."""
    return isinstance(patcher.model.diffusion_model, WanTransformer)


def _refuse(patcher: Any, row: LoraRow) -> NoReturn:
    raise InputError(
        "This MODEL cannot change a LoRA's strength from step to step",
        where=row.name,
        found=type(patcher.model.diffusion_model).__module__,
        expected="a MODEL of this pack",
        remedy="Load the model with Wan Load Models, or give one strength for all steps",
    )


def _with_rows(clone: Any, rows: tuple[LoraRow, ...], banks: Sequence[Any] = ()) -> Any:
    clone.model_options.setdefault("transformer_options", {})[KEY] = rows
    for row in rows:
        if row.bank is not None and row.bank.input_shape is not None:
            widen(clone, row.bank.input_shape)
    known = clone.get_additional_models_with_key(KEY)
    new = [bank.clone() for bank in banks if not any(bank.model is other.model for other in known)]
    if known or new:
        clone.set_additional_models(KEY, [*known, *new])
    clone.remove_wrappers_with_key(WrappersMP.PREPARE_SAMPLING, KEY)
    clone.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _checked_first)
    return clone


def _checked_first(load: Callable[..., Any], patcher: Any, *args: Any, **kwargs: Any) -> Any:
    """ComfyUI's loading of a MODEL for a run, in which merged LoRAs are read from their files.

    Raises:
        WeightsFileError: a file of a LoRA was cut off or written over.
    """
    check_all(row.file for row in rows_of(patcher))
    return load(patcher, *args, **kwargs)


def files_beside(options: Mapping[str, Any]) -> tuple[MappedFile, ...]:
    """The files that LoRAs beside the weights are read from while the model runs, by its transformer options."""
    return tuple(row.file for row in options.get(KEY, ()) if row.bank is not None)


def _take_out(clone: Any, rows: Sequence[LoraRow]) -> None:
    """Takes merged rows out of the native patches, and names what is left so that it can be recognised."""
    gone = {id(value) for row in rows for values in (row.patches or {}).values() for value in values}
    for key in list(clone.patches):
        clone.patches[key] = [patch for patch in clone.patches[key] if id(patch[1]) not in gone]
        if not clone.patches[key]:
            del clone.patches[key]
    clone.patches_uuid = uuid.uuid5(clone.patches_uuid, repr([row.told() for row in rows]))


def step_of(options: Mapping[str, Any]) -> int:
    """The step of the run at the present sigma: i where sigmas[i] >= sigma > sigmas[i + 1]; 0 outside a run.

    Waits for the GPU, where the sigmas lie: ask before the model has been given anything to do, and once.
    """
    schedule, sigmas = options.get("sample_sigmas"), options.get("sigmas")
    if schedule is None or sigmas is None:
        return 0
    now = torch.as_tensor(sigmas).detach().max() * (1 - SAME_SIGMA)
    return int((torch.as_tensor(schedule, device=now.device)[1:-1] >= now).sum())


def at_step(options: Mapping[str, Any], step: int) -> tuple[tuple[LoraBank, float], ...]:
    """The banks beside the weights and their strengths at a step."""
    rows = [(row.bank, row.strengths) for row in options.get(KEY, ()) if row.bank is not None]
    return tuple((bank, strengths[min(step, len(strengths) - 1)]) for bank, strengths in rows)


_RUNS: dict[int, dict[str, Beside]] = {}  # id of a model that is being called -> what its layers add, by key


@contextmanager
def running(model: nn.Module, options: Mapping[str, Any], step: int) -> Iterator[None]:
    """Inside the context the layers of `model` add what the rows in its transformer options say for a step."""
    banks = at_step(options, step)
    if not banks:
        yield
        return
    check_all(files_beside(options))
    run: dict[str, Beside] = {}
    for bank, strength in banks:
        for key, patches in bank.by_key.items() if strength else ():
            run.setdefault(key, []).extend((strength, patch) for patch in patches)
    before = _RUNS.get(id(model))
    _RUNS[id(model)] = run
    try:
        yield
    finally:
        if before is None:
            del _RUNS[id(model)]
        else:
            _RUNS[id(model)] = before


def give_places(model: nn.Module) -> None:
    """Tells each layer under which name the table has it."""
    for name, module in model.named_modules():
        module.lora_place = (id(model), name)  # pyright: ignore[reportArgumentType]


def key_of(module: nn.Module, parameter: str) -> str:
    """The parameter's name in the model."""
    return f"{getattr(module, 'lora_place', (0, ''))[1]}.{parameter}"


def beside(module: nn.Module, parameter: str) -> Beside:
    """What the run adds to a parameter of this layer."""
    run = _RUNS.get(getattr(module, "lora_place", (0, ""))[0]) if _RUNS else None
    return run.get(key_of(module, parameter), []) if run else []


def adding(module: nn.Module, parameter: str, like: Tensor) -> FloatPatches | None:
    """What the run adds to a parameter, as a function of it in floating point; None: nothing."""
    entries = beside(module, parameter)
    if not entries:
        return None
    return FloatPatches(key_of(module, parameter), [patch.patch(like, strength) for strength, patch in entries])


def added(module: nn.Module, parameter: str, value: Tensor) -> Tensor:
    """The value of a parameter with what the run adds to it."""
    function = adding(module, parameter, value)
    return value if function is None else function(value)


@contextmanager
def on_weights(module: Any, like: Tensor) -> Iterator[None]:
    """Inside the context, casting weight and bias of a native layer adds what the run says."""
    with ExitStack() as stack:
        for parameter in ("weight", "bias"):
            function = adding(module, parameter, like)
            if function is not None:
                stack.enter_context(_function_on(module, f"{parameter}_function", function))
        yield


@contextmanager
def _function_on(module: Any, name: str, function: FloatPatches) -> Iterator[None]:
    functions = getattr(module, name)
    setattr(module, name, [*functions, function])
    try:
        yield
    finally:
        setattr(module, name, functions)


class TableReader(nn.Module):
    """Goes before a native layer in a class: the same layer, with what the run adds to its weights."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with on_weights(self, input):
            return super().forward(input, *args, **kwargs)
