"""The tensors of a LoRA file in modules of their own, so that ComfyUI loads, offloads and streams them like weights.

A bank hangs on a MODEL as an additional native patcher. It holds no strength: that is data of the run (lora_table.py),
so a bank is made once for a file and a model, and every strength uses the same one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.model_patcher
import comfy.ops
from torch import Tensor, nn

from .control_lora import INPUT, Shape, widened_to
from .patches import Patch, add_up, branch_of, dora_of, is_sum, mapped, narrowed

DORA = 4  # place of the magnitudes in ComfyUI's tuple of a low-rank pair
KEPT = 4  # banks of a model that outlive the graph which used them, so that a run with another strength finds them


class Held(nn.Module, comfy.ops.CastWeightBiasOp):
    """One tensor that ComfyUI's memory management takes for the weight of a layer."""

    comfy_cast_weights = True
    bias = None

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor, requires_grad=False)

    @contextmanager
    def on(self, like: Tensor) -> Iterator[Tensor]:
        """Yields the tensor on `like`'s device and in its dtype; it may be gone after the context."""
        weight, bias, handle = comfy.ops.cast_bias_weight(self, like, offloadable=True)
        try:
            yield weight
        finally:
            comfy.ops.uncast_bias_weight(self, weight, bias, handle)


@dataclass(frozen=True)
class _Slot:
    """The place of a tensor in a patch's value."""

    index: int


class HeldPatch(nn.Module):
    """A patch of one weight: a low-rank pair, or whatever else ComfyUI can read (`diff`, LoHa, LoKr, DoRA...)."""

    def __init__(self, value: Any, part: tuple[int, int, int] | None = None) -> None:
        """`part` of the weight that it is for: axis, start and length."""
        super().__init__()
        self.part = part
        branch = branch_of((1.0, value, 1.0, None, None))
        self.scale = None if branch is None else branch.scale  # None: no low-rank pair
        self.is_sum = branch is not None or is_sum((1.0, value, 1.0, None, None))
        dora = dora_of((1.0, value, 1.0, None, None))
        self.is_dora, self.dora_scale = dora is not None, dora[0].scale if dora else 0.0
        self.parts = nn.ModuleList()
        self.value = mapped(value, Tensor, self._held)

    def _held(self, tensor: Tensor) -> _Slot:
        self.parts.append(Held(tensor))
        return _Slot(len(self.parts) - 1)

    def add_to(self, out: Tensor, x: Tensor, strength: float) -> Tensor:
        """Returns out + strength * up(down(x)), in the place of `out` where it can be written to."""
        assert self.scale is not None
        up, down = (getattr(self.parts, str(index)) for index in (0, 1))  # ComfyUI's order
        with down.on(x) as weight:
            hidden = narrowed(x, weight)
        with up.on(x) as weight:
            return add_up(out, hidden, weight, strength * self.scale)

    @property
    def branch(self) -> bool:
        """True for a low-rank pair."""
        return self.scale is not None

    @property
    def source(self) -> HeldPatch:
        """What tells this patch from others."""
        return self

    def difference(self, x: Tensor) -> Tensor:
        """scale * up(down(x)) of a DoRA, [..., out]."""
        up, down = (getattr(self.parts, str(index)) for index in (0, 1))
        with down.on(x) as weight:
            hidden = self.dora_scale * narrowed(x, weight)
        with up.on(x) as weight:
            return nn.functional.linear(hidden, weight.flatten(1))

    def magnitude(self, like: Tensor) -> Tensor:
        """[out, 1] of a DoRA."""
        part = getattr(self.parts, str(self.value.weights[DORA].index))
        with part.on(like) as tensor:
            return tensor.clone()

    def patch(self, like: Tensor, strength: float) -> Patch:
        """ComfyUI's form, with copies of the tensors on `like`'s device and in its dtype."""
        tensors: list[Tensor] = []
        for part in self.parts:
            assert isinstance(part, Held)
            with part.on(like) as tensor:
                tensors.append(tensor.clone())
        return strength, mapped(self.value, _Slot, lambda slot: tensors[slot.index]), 1.0, self.part, None


class LoraBank(nn.Module):
    """All patches of one file."""

    def __init__(self, patches: Mapping[str, Sequence[Any]], channels: int) -> None:
        """`patches`: {key of a weight in the model: values of ComfyUI's patches}; `channels` of the model's input.

        What another LoRA does to the input is for these channels, however many a control LoRA adds.
        """
        super().__init__()
        self.all = nn.ModuleList()
        self.by_key: dict[str, list[HeldPatch]] = {}
        widened = (widened_to(value) for value in patches.get(INPUT, ()))
        self.input_shape: Shape | None = next((shape for shape in widened if shape), None)  # of a control LoRA
        for key, values in patches.items():
            own = (1, 0, channels) if key == INPUT and self.input_shape is None else None
            self.by_key[key] = [HeldPatch(value, own) for value in values]
            self.all.extend(self.by_key[key])


_BANKS: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Any]] = WeakKeyDictionary()


def bank_for(patcher: Any, file: Hashable, patches: Callable[[], Mapping[str, Sequence[Any]]]) -> Any:
    """Returns the patcher of the bank of one file for this MODEL; `patches` is called where there is none yet.

    `file` tells it as it is now, so that one that was replaced gets a bank of its own.
    """
    banks = _BANKS.setdefault(patcher.model, OrderedDict())
    if file not in banks:
        offload_device = comfy.model_management.unet_offload_device()
        core = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        bank = LoraBank(patches(), patcher.model.diffusion_model.in_dim)
        banks[file] = core(bank, load_device=patcher.load_device, offload_device=offload_device)
    banks.move_to_end(file)
    while len(banks) > KEPT:
        banks.popitem(last=False)
    return banks[file]
