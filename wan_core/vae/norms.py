"""The VAEs' norm over channels, alone and with the SiLU that follows it before a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .frames import joined

try:
    from ..kernels import channels
except ImportError:  # no Triton
    channels = None

LEAST_LENGTH = 1e-12  # shorter vectors of channels are scaled as if they were this long


class ChannelNorm(nn.Module):
    """Scales the channels at each position to length sqrt(C), times a learned gain."""

    def __init__(self, channels: int, axes: int, device: torch.device | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, *(1,) * axes, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, ...] with `axes` axes after the channels -> the same shape."""
        if (
            x.device.type == "cpu" and x.dtype is torch.float32
        ):  # PyTorch's norm over channels takes a third of a decode
            length = x.square().sum(1, keepdim=True).sqrt().clamp(min=LEAST_LENGTH)
            return (x * (self.gamma.shape[0] ** 0.5 / length)).mul_(self.gamma.to(x))
        return functional.normalize(x, dim=1, eps=LEAST_LENGTH) * self.gamma.shape[0] ** 0.5 * self.gamma.to(x)

    def silu(self, x: Tensor, past: Tensor | None) -> Tensor:
        """SiLU of the normalised x [B, C, F, H, W], behind `past` frames of the same.

        What stands before every convolution of a residual block and of a head.
        """
        if self.is_fused(x):
            return channels.norm_silu(x, self.gamma.to(x), past, least=LEAST_LENGTH)  # pyright: ignore[reportOptionalMemberAccess]
        return joined(past, functional.silu(self(x), inplace=True))

    def is_fused(self, x: Tensor) -> bool:
        """True where x is normalised and put through SiLU by one kernel."""
        return channels is not None and channels.accepts(x, self.gamma)

    def bordered_silu(self, x: Tensor) -> Tensor:
        """As `silu`, for kernels/convolution.py: [B, F, H + 2, W + 2, C] within a border of zeros.

        Only where `is_fused` says so.
        """
        return channels.bordered_norm_silu(x, self.gamma.to(x), least=LEAST_LENGTH)  # pyright: ignore[reportOptionalMemberAccess]
