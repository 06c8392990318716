"""LoRA beside quantised weights: base(x) + strength * up(down(x)), never merged into the blocks.

Merging a LoRA into 8 bits or fewer costs more than the LoRA itself. ComfyUI's patchers hand patches to a layer as
functions of its weight; a Linear of ours takes those functions off while the base is cast and computes low-rank ones
beside it. Every other patch (whole differences, replacements, LoHa, LoKr, DoRA) is added to the decoded weight in
floating point, for one call, so that the stored weight stays as it came from the file.

What the run's table of LoRAs says (lora_table.py) is added the same way, beside weights of every type.

The legacy patcher would merge into the weights that it loads completely. It passes by layers that say they are
patched already, and afterwards `hand_over` gives them what it would have given to an offloaded layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.float
import comfy.ops
import torch
from comfy.model_patcher import LowVramPatch
from comfy.patcher_extension import CallbacksMP
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...wan_core.errors import InputError
from ...wan_core.kernels import Rows8
from .control_lora import put_in_place
from .dora import lengths_of, with_lengths
from .lora_bank import HeldPatch
from .lora_table import TableReader, adding, beside, give_places, key_of
from .patches import FloatPatches, GivenPatch, mapped

KEY = "wan_core_branches"  # of the callback
Parts = list[tuple[float, GivenPatch | HeldPatch]]  # strength, and what it scales


class BranchedLinear(nn.Module):
    """Goes before a native Linear in a class: the same layer, whose quantised weight no patch changes."""

    branches_on = False  # set by keep_quantised: a patcher whose callback hands patches over is around this layer
    resident: LowVramPatch | None = None  # the patch of a weight that the legacy patcher has loaded completely
    weight: Any
    weight_function: list[Any]
    bias_function: list[Any]

    @property
    def is_quantised(self) -> bool:
        """True if a sum with this weight cannot be stored without losing some of it."""
        weight = self.weight
        return isinstance(weight, QuantizedTensor) or (weight is not None and weight.dtype.itemsize < 2)

    def _read_patched(self) -> bool:
        if self.branches_on and self.is_quantised:
            return not hasattr(self, "prev_comfy_cast_weights")  # which offloaded layers have
        if "is_patched" in self.__dict__:
            return self.__dict__["is_patched"]
        raise AttributeError("comfy_patched_weights")

    def _write_patched(self, value: bool) -> None:
        self.__dict__["is_patched"] = value
        if not value:
            self.resident = None

    def _clear_patched(self) -> None:
        self.__dict__.pop("is_patched", None)
        self.resident = None

    # The legacy patcher's mark of a layer that is loaded and patched: it passes by quantised layers of ours.
    comfy_patched_weights = property(_read_patched, _write_patched, _clear_patched)

    def _convert(self, weight: Tensor, inplace: bool = False, **_unused: Any) -> Tensor:
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def _store(
        self,
        weight: Tensor,
        inplace_update: bool = False,
        seed: int | None = None,
        return_weight: bool = False,
        **_unused: Any,
    ) -> Tensor | None:
        """Keeps the patched weight in floating point; rounded where it is to be saved or put in the old one's place.

        Raises:
            InputError: a conditioning hook is to change blocks, which nothing here can write.
        """
        self.__dict__.pop("dora_lengths", None)
        stored = self.weight
        if not (return_weight or inplace_update):
            dtype = stored.dtype if stored.dtype.itemsize > 1 else torch.bfloat16
            self.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
            return None
        if isinstance(stored, QuantizedTensor):
            weight = _rounded(stored, weight, seed)
        else:
            weight = comfy.float.stochastic_rounding(weight, stored.dtype, seed=seed or 0)
        if return_weight:
            return weight
        stored.data.copy_(weight)  # which hooks restore the same way
        return None

    # The two functions by which patchers change a weight in place: the native ones would round the sum. Layers of
    # floating point have them only where the native layer has.
    @property
    def convert_weight(self) -> Any:
        return self._convert if self._is_ours else super().convert_weight  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def set_weight(self) -> Any:
        return self._store if self._is_ours else super().set_weight  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _is_ours(self) -> bool:
        return self.is_quantised or getattr(self, "layout_type", None) is not None

    @property
    def has_patches(self) -> bool:
        """True if something goes beside this layer or onto it, for which its exact input is needed."""
        return bool(self._given() or beside(self, "weight") or beside(self, "bias"))

    def forward(self, input: Tensor | Rows8, *args: Any, **kwargs: Any) -> Tensor:
        """input [..., in] -> [..., out]."""
        if not self.has_patches:
            return super().forward(input, *args, **kwargs)
        rounded, input = input, input.exact_tokens() if isinstance(input, Rows8) else input
        given = self._given()
        parts = [part for function in given for part in _parts_of(function)] + list(beside(self, "weight"))
        low_rank, rest = _divided(parts)
        whole = FloatPatches(key_of(self, "weight"), [part.patch(input, strength) for strength, part in rest])
        biases: list[Tensor] = []  # where the answer is stretched, which the bias is not
        added = adding(self, "bias", input)
        on_bias: list[Callable[[Tensor], Tensor]] = [] if added is None else [added]
        if any(part.is_dora for _, part in low_rank):
            on_bias.append(lambda bias: biases.append(bias) or torch.zeros_like(bias))
        with self._without(given, whole if rest else None, on_bias):
            out = super().forward(rounded, *args, **kwargs)
        for index, (strength, part) in enumerate(low_rank):
            if part.is_dora:
                lengths = self._lengths([*rest, *low_rank[:index]], given, input)
                out = with_lengths(out, part.difference(input), part.magnitude(input), lengths, strength)
            else:
                out = part.add_to(out, input, strength)
        return out + biases[0].to(out) if biases else out

    def _lengths(self, before: Parts, given: list[LowVramPatch], like: Tensor) -> Tensor:
        """|weight| of each row, with the parts that are added before these lengths count."""
        others = [function for function in self.weight_function if not any(function is patch for patch in given)]
        others += [getattr(self, "weight_lowvram_function", None)] if not given else []
        told = [*others, *((strength, part.source) for strength, part in before)]

        def decoded() -> Tensor:
            patches = [part.patch(like.float(), strength) for strength, part in before]
            whole = FloatPatches(key_of(self, "weight"), patches) if patches else None
            with self._without(given, whole, []):
                weight, bias, handle = comfy.ops.cast_bias_weight(
                    self, dtype=torch.float32, device=like.device, bias_dtype=like.dtype, offloadable=True
                )
            exact = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.clone()
            comfy.ops.uncast_bias_weight(self, weight, bias, handle)
            return exact

        return lengths_of(self, told, like, decoded)

    def _given(self) -> list[LowVramPatch]:
        """The patches that a patcher has put on the weight, in the way of each patcher."""
        dynamic = getattr(self, "weight_lowvram_function", None)
        offloaded = [function for function in self.weight_function if _is_patch(function)]
        if self.is_quantised and (dynamic is not None or offloaded):
            return [dynamic] if dynamic is not None else offloaded
        return [self.resident] if self.resident is not None and not offloaded else []

    @contextmanager
    def _without(
        self, given: list[LowVramPatch], instead: FloatPatches | None, on_bias: Sequence[Callable[[Tensor], Tensor]]
    ) -> Iterator[None]:
        """Takes the patches off the weight, with another function in their place, and puts some onto the bias."""
        functions, dynamic = self.weight_function, getattr(self, "weight_lowvram_function", None)
        bias_functions = self.bias_function
        self.bias_function = [*bias_functions, *on_bias]
        kept = [function for function in functions if not any(function is patch for patch in given)]
        self.weight_function = kept if instead is None else [instead, *kept]
        takes_dynamic = dynamic is not None and any(function is dynamic for function in given)
        if takes_dynamic:
            self.weight_lowvram_function = None
        try:
            yield
        finally:
            self.weight_function = functions
            self.bias_function = bias_functions
            if takes_dynamic:
                self.weight_lowvram_function = dynamic


def _rounded(stored: QuantizedTensor, weight: Tensor, seed: int | None) -> QuantizedTensor:
    try:
        return stored.requantize_from_float(weight, scale="recalculate", stochastic_rounding=seed)
    except NotImplementedError:
        raise InputError(
            "GGUF weights cannot be rewritten",
            where="a LoRA hook on the conditioning, or a node that saves the model",
            remedy="Put the LoRA on with Wan LoRA Pair, or take the fp8_scaled file of this model",
        ) from None


def _is_patch(function: Any) -> bool:
    return getattr(function, "is_lowvram_patch", False)


def _parts_of(function: LowVramPatch) -> Parts:
    """The patches, with their tensors where ComfyUI has brought them."""
    kept = function.patches[function.key]
    there = kept if function.prepared_patches is None else function.prepared_patches
    return [(patch[0], GivenPatch(patch, source[1])) for patch, source in zip(there, kept, strict=True)]


def _divided(parts: Parts) -> tuple[Parts, Parts]:
    """What goes beside the layer, in its order, and what is added to the decoded weight.

    Sums may be taken apart. What depends on all that was added before it keeps its place: DoRA beside the layer, if no
    whole difference comes after it; with anything else all are added to the weight, one after another.
    """
    doras = [index for index, (_, part) in enumerate(parts) if part.is_dora]
    whole = [index for index, (_, part) in enumerate(parts) if not part.is_dora and not part.branch]
    if not all(part.is_sum or part.is_dora for _, part in parts) or (doras and whole and whole[-1] > doras[0]):
        return [], parts
    return [entry for entry in parts if entry[1].is_dora or entry[1].branch], [parts[index] for index in whole]


def keep_quantised(patcher: Any) -> None:
    """Makes patches go beside the quantised weights of this patcher's model, on all its clones, and the table's too."""
    give_places(patcher.model)
    for module in patcher.model.modules():
        if isinstance(module, BranchedLinear):
            module.branches_on = True
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, KEY, hand_over)


def has_quantised(model: nn.Module) -> bool:
    """True if sums with some of the weights cannot be stored without losing some of them."""
    return any(isinstance(module, BranchedLinear) and module.is_quantised for module in model.modules())


def reads_table(model: nn.Module, key: str) -> bool:
    """True if the run's table can change this weight: all but a few embeddings that no published LoRA touches."""
    name, _, parameter = key.rpartition(".")
    return parameter == "modulation" or isinstance(model.get_submodule(name), (BranchedLinear, TableReader))


def hand_over(patcher: Any, device_to: Any, *_unused: Any) -> None:
    """Gives what the patchers have passed by its patches.

    Both pass by the parameters of modules that hold other modules, such as a block's modulation; the legacy one also
    passes by the layers that say they are patched.
    """
    for key in patcher.patches:
        if key.rpartition(".")[2] not in ("weight", "bias") and key not in patcher.backup:
            patcher.patch_weight_to_device(key, device_to=device_to)
    if patcher.is_dynamic():
        return
    put_in_place(patcher, device_to)
    for name, module in patcher.model.named_modules():
        if not isinstance(module, BranchedLinear):
            continue
        module.resident = None
        if not (module.branches_on and module.is_quantised and module.comfy_patched_weights):
            continue
        weight, bias = f"{name}.weight", f"{name}.bias"
        if weight in patcher.patches:
            module.resident = _on_device(LowVramPatch(weight, patcher.patches), device_to)
        if bias in patcher.patches and bias not in patcher.backup:
            patcher.patch_weight_to_device(bias, device_to=device_to)


def _on_device(function: LowVramPatch, device: torch.device) -> LowVramPatch:
    """Brings the tensors of the patch to the device of its weight, once for all steps."""
    function.prepared_patches = [
        (patch[0], mapped(patch[1], Tensor, lambda part: part.to(device)), *patch[2:])
        for patch in function.patches[function.key]
    ]
    return function
