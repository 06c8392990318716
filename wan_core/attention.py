"""One decision in one place: which kernel computes attention for a device, dtype and head size.

A kernel is an entry of `KERNELS` with the limits that it declares; the first that fits is taken, once per place, and
PyTorch's own, the last, takes everything. A host's choice (`Hooks.attention`) goes before this table.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Place:
    """What limits are checked against."""

    device: torch.device
    dtype: torch.dtype
    head_dim: int


@dataclass(frozen=True)
class Kernel:
    """One way to compute attention over q, k, v [B, L, heads * d]; None means: no limit."""

    name: str
    run: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    installed: Callable[[], bool] = lambda: True
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    head_dims: tuple[int, ...] | None = None
    capability: tuple[int, int] | None = None  # least CUDA compute capability

    def accepts(self, place: Place) -> bool:
        """True where the declared limits hold."""
        if self.capability is not None and (
            place.device.type != "cuda" or torch.cuda.get_device_capability(place.device) < self.capability
        ):
            return False
        return (
            (self.devices is None or place.device.type in self.devices)
            and (self.dtypes is None or place.dtype in self.dtypes)
            and (self.head_dims is None or place.head_dim in self.head_dims)
        )


def torch_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """PyTorch's scaled dot product, which picks among its own kernels."""
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [B, L, H * d] -> [B, H, L, d]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


KERNELS = (Kernel("torch", torch_attention),)


def choose(place: Place, kernels: tuple[Kernel, ...] = KERNELS) -> Kernel:
    """Returns the first kernel that is installed and accepts the place.

    Raises:
        LookupError: none does; cannot happen while PyTorch's is in the table.
    """
    for kernel in kernels:
        if kernel.accepts(place) and kernel.installed():
            return kernel
    raise LookupError(f"no attention kernel of {[kernel.name for kernel in kernels]} takes {place}")


@cache
def _chosen(place: Place) -> Kernel:
    kernel = choose(place)
    logging.debug("attention on %s in %s, head size %d: %s", place.device, place.dtype, place.head_dim, kernel.name)
    return kernel


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over q [B, Lq, heads * d], k and v [B, Lk, heads * d] -> [B, Lq, heads * d]."""
    return _chosen(Place(q.device, q.dtype, q.shape[2] // heads)).run(q, k, v, heads)
