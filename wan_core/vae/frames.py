"""How the frames of a clip lie in memory, and which of them the layers remember between two chunks.

B batch, C channels, F frames, H/W rows and columns; every clip is [B, C, F, H, W].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FrameCache:
    """The frames that the layers remember between two chunks of one clip."""

    def __init__(self) -> None:
        self._frames: dict[nn.Module, Tensor] = {}
        self._started: set[nn.Module] = set()

    def get(self, layer: nn.Module) -> Tensor | None:
        """The frames that `layer` kept from the chunks before; None on the first chunk."""
        return self._frames.get(layer)

    def keep(self, layer: nn.Module, frames: Tensor) -> None:
        """Keeps `frames`, compact in the layout that they have, so that their chunk can be freed.

        Without gradients they go where the ones before are, which `get` gave, if these are as many.
        """
        before = self._frames.get(layer)
        if before is not None and before.shape == frames.shape and not torch.is_grad_enabled():
            before.copy_(frames)
        else:
            self._frames[layer] = frames.clone(memory_format=torch.preserve_format)

    def first_chunk(self, layer: nn.Module) -> bool:
        """True when `layer` asks for the first time in this call."""
        new = layer not in self._started
        self._started.add(layer)
        return new


def laid_out(x: Tensor) -> Tensor:
    """x as it should lie in memory for the layers: channels last, which NVIDIA's and the CPU's are faster with."""
    is_faster = x.device.type == "cpu" or (x.is_cuda and torch.version.hip is None)
    return x.contiguous(memory_format=torch.channels_last_3d) if is_faster else x


def has_channels_last(x: Tensor) -> bool:
    """True if the channels of a position of x [B, C, F, H, W] lie together, positions in order."""
    return x.is_contiguous(memory_format=torch.channels_last_3d)


def frames_like(x: Tensor, frames: int, channels: int | None = None) -> Tensor:
    """Room for so many frames of the size and in the layout of x [B, C, F, H, W], of C channels or so many."""
    layout = torch.channels_last_3d if has_channels_last(x) else torch.contiguous_format
    shape = (x.shape[0], channels or x.shape[1], frames, *x.shape[3:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def joined(*parts: Tensor | None) -> Tensor:
    """The frames of all parts; channels last where all parts have them last, which torch.cat forgets of one frame."""
    found = [part for part in parts if part is not None and part.shape[2]]
    if len(found) == 1 or not all(has_channels_last(part) for part in found):
        return found[0] if len(found) == 1 else torch.cat(found, dim=2)
    out, start = frames_like(found[0], sum(part.shape[2] for part in found)), 0
    for part in found:
        out.narrow(2, start, part.shape[2]).copy_(part)  # a view of its own: gradients do not pass those of a split
        start += part.shape[2]
    return out


def images_of(x: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B * F, C, H, W]."""
    return x.movedim(1, -1).flatten(0, 1).movedim(-1, 1)  # one frame, too, keeps strides that say channels last


def clip_of(images: Tensor, batch: int) -> Tensor:
    """[B * F, C, H, W] -> [B, C, F, H, W]."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)
