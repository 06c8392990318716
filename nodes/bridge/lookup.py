"""Token tables that stay where they lie: a prompt needs 512 rows of UMT5's 256,384, not two gigabytes on the GPU."""

from __future__ import annotations

from typing import Any

import comfy.ops
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn


class LookedUp(nn.Module):
    """Goes before a native Embedding in a class: takes the rows from RAM, or from the mapped file, where the table is.

    A table that a patch changes, that is quantised, or that is on the device already goes the native way.
    """

    weight: Any
    weight_function: Any

    @property
    def lies_in_ram(self) -> bool:
        """True for a plain table on the CPU that nothing changes."""
        weight = self.weight
        return (
            not isinstance(weight, QuantizedTensor)
            and weight.device.type == "cpu"
            and weight.is_floating_point()
            and weight.element_size() > 1
            and not self.weight_function
            and getattr(self, "weight_lowvram_function", None) is None
        )

    def forward(self, input: Tensor, *args: Any, out_dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        """Token numbers [...] -> rows [..., D] on their device, in `out_dtype` where it is given."""
        is_more = input.numel() >= len(self.weight)  # than the table itself
        if input.device.type == "cpu" or is_more or not self.lies_in_ram:
            return super().forward(input, *args, out_dtype=out_dtype, **kwargs)
        comfy.ops.run_every_op()  # stops here where the user has interrupted
        return rows_of(self.weight, input, out_dtype)


def rows_of(table: Tensor, numbers: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The rows [..., D] of a table in RAM for numbers on any device, there, in `dtype` (None: the table's)."""
    rows = torch.nn.functional.embedding(numbers.cpu(), table)
    return rows.to(device=numbers.device, dtype=dtype or rows.dtype)
