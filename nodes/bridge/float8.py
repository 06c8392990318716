"""Linear layers of float8 files over tokens in 8 bits, where ComfyUI would round one scale for the whole clip.

ComfyUI's layer rounds its input in several passes, with one scale per tensor. Where the card multiplies rows of float8
with a scale each (wan_core/paths.py), the kernel before the layer rounds them as it writes them, and the layer
multiplies at once. The stored weight stays ComfyUI's: cast, moved and patched by its own functions.

No card multiplies e5m2 by e5m2, as ComfyUI's layer would on those with float8 units: such weights are decoded.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...wan_core import paths
from ...wan_core.kernels import Form, Rows8, rows8
from ...wan_core.kernels.rows8 import FLOAT8, linear


class Float8Linear(nn.Module):
    """Goes before a native Linear in a class: multiplies Rows8 where its float8 weights are used as they are."""

    weight: Any
    weight_function: Any
    bias_function: Any

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if getattr(self, "quant_format", "") == "float8_e5m2":
            self._full_precision_mm = True

    @property
    def takes_rows8(self) -> bool:
        """True for float8 weights with one scale for all, and no function of them but patches that can go beside."""
        weight = self.weight
        return (
            isinstance(weight, QuantizedTensor)
            and getattr(self, "quant_format", "") == "float8_e4m3fn"
            and weight._qdata.dtype is FLOAT8
            and weight._params.scale.numel() == 1
            and not getattr(self, "_full_precision_mm_config", False)  # the file asks for more
            and getattr(self, "pre_quant_scale", None) is None
            and not self.bias_function
            and all(getattr(function, "is_lowvram_patch", False) for function in self.weight_function)
        )

    def forward(self, input: Tensor | Rows8, *args: Any, **kwargs: Any) -> Tensor:
        """input [..., in] -> [..., out]."""
        if not isinstance(input, Rows8):
            return super().forward(input, *args, **kwargs)
        if self.weight_function or getattr(self, "weight_lowvram_function", None) is not None:
            return super().forward(input.exact_tokens(), *args, **kwargs)
        comfy.ops.run_every_op()  # stops here where the user has interrupted
        weight, bias, handle = comfy.ops.cast_bias_weight(
            self,
            dtype=self.weight.dtype,
            device=input.values.device,
            bias_dtype=input.dtype,
            offloadable=True,
            compute_dtype=input.dtype,
            want_requant=True,
        )
        out = linear(input, weight._qdata, weight._params.scale, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, handle)
        return out


def form(device: torch.device, dtype: torch.dtype, *layers: Any) -> Form:
    """The form of the tokens that all of these layers take: rows in 8 bits if the card and every layer do."""
    if dtype is not torch.bfloat16 or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return Form(dtype)  # row-wise products return bfloat16; training goes through ComfyUI's own function
    if not _rows8_on(device) or not all(isinstance(layer, Float8Linear) and layer.takes_rows8 for layer in layers):
        return Form(dtype)
    return Form(dtype, FLOAT8, exact=any(layer.has_patches for layer in layers))


@cache
def _rows8_on(device: torch.device) -> bool:
    return paths.float8_linear(paths.card_of(device)).name == paths.ROWS8 and rows8.works(device)
