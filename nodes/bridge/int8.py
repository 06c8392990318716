"""Linear layers in int8 over files of every storage, where a MODEL has the option (eight_bits.py).

The stored weight is cast, decoded, moved and patched by ComfyUI's own functions, as for an exact product; what they
return is turned and rounded on the fly, which costs about a hundredth of a forward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from ...wan_core import paths
from ...wan_core.kernels import Form, Rows8, Turned8, has_int8, linear8
from ...wan_core.kernels.int8 import BLOCK

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
NATIVE = ("int8_tensorwise", "convrot_w4a4", "nvfp4", "mxfp8")  # formats of which cards multiply what is stored


class Int8Linear(nn.Module):
    """Goes before a native Linear in a class: multiplies Turned8 with its weight rounded to int8."""

    in_features: int
    weight: Any

    @property
    def takes_int8(self) -> bool:
        """True for rows of whole blocks that are not multiplied in fewer bits, or rounded already, by ComfyUI.

        The file may ask for more precision, or for scaled tokens.
        """
        stored = getattr(self, "quant_format", None)
        return (
            self.in_features % BLOCK == 0
            and (stored not in NATIVE or stored in getattr(self, "_disabled_formats", ()))
            and not getattr(self, "_full_precision_mm_config", False)
            and getattr(self, "pre_quant_scale", None) is None
        )

    def forward(self, input: Tensor | Rows8, *args: Any, **kwargs: Any) -> Tensor:
        """input [..., in] -> [..., out]."""
        if not isinstance(input, Turned8):
            return super().forward(input, *args, **kwargs)
        comfy.ops.run_every_op()  # stops here where the user has interrupted
        weight, bias, handle = comfy.ops.cast_bias_weight(
            self,
            dtype=input.dtype,
            device=input.values.device,
            bias_dtype=input.dtype,
            offloadable=True,
            compute_dtype=input.dtype,
        )
        exact = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        out = linear8(input, exact, bias)
        comfy.ops.uncast_bias_weight(self, weight, bias, handle)
        return out


def form(device: torch.device, dtype: torch.dtype, *layers: Any) -> Form | None:
    """Rows in int8 if the card and all of these layers take them; otherwise None."""
    if dtype not in FLOATS or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None  # training goes through ComfyUI's own function
    if not _int8_on(device) or not all(isinstance(layer, Int8Linear) and layer.takes_int8 for layer in layers):
        return None
    return Form(dtype, torch.int8, exact=any(layer.has_patches for layer in layers))


@cache
def float8_first(device: torch.device) -> bool:
    """Whether rows of float8 go first where a file has them."""
    return paths.float8_first(paths.card_of(device))


@cache
def _int8_on(device: torch.device) -> bool:
    return paths.layers_in_8_bits(paths.card_of(device)).name == paths.INT8 and has_int8(device)
