"""Whether Triton's programs run on a device: tried once, with one number.

Triton comes with PyTorch, but what it starts them with is compiled by the machine's own C compiler, for which Python's
headers and a folder to write to have to be there, and old cards lack some types.
"""

# Triton compiles the program: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false

from __future__ import annotations

import logging
from functools import cache

import torch
import triton
import triton.language as tl


@triton.jit
def _double(x):
    tl.store(x + 1, (2 * tl.load(x).to(tl.float32)).to(x.dtype.element_ty))


@cache
def works(device: torch.device, dtype: torch.dtype) -> bool:
    """True where a program reads and writes numbers of this type; otherwise the log says why not."""
    x = torch.ones(2, device=device, dtype=dtype)
    try:
        with torch.cuda.device_of(x):
            _double[(1,)](x)
        return x[1].item() == 2
    except Exception as problem:  # noqa: BLE001  (a compiler's own errors, of any kind)
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        logging.warning("Wan: Triton does not work with %s here, PyTorch computes in its place: %s", dtype, reason)
        return False
