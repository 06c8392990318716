"""Causal convolutions over clips with channels last, as one product of matrices each (Triton, NVIDIA's bulk copies).

Each frame of a clip has a border of zeros: position q of [H + 2, W + 2]. Then what a tap of the kernel sees for BLOCK
positions in a row is BLOCK rows of the same matrix [positions, channels], shifted, of this frame or of one before it,
and a convolution is a sum of matrix products without any index arithmetic. Bias and addend join in the registers.
Results at the border are computed and not stored.
Parity with PyTorch's convolutions: tests/core/test_kernels.py, on CPU through Triton's interpreter.
"""

# Triton compiles these functions: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.tools.tensor_descriptor import TensorDescriptor

from . import taps
from .fused import INTERPRETED
from .trial import works

HALVES = (torch.bfloat16, torch.float16)
ARCHITECTURES = (9,)  # major compute capabilities on which this was measured to be faster than cuDNN
BORDER = 1  # zeros on each side of a frame
CHANNELS = 32  # input channels come in multiples of this
HEAD = 16  # output channels of a narrow tile
WIDTHS = (96, 192, 256, 384, 512, 1024)  # wider outputs for which it was measured to be faster than cuDNN
FARTHEST = 2**40  # bytes; from there on two tensors are too far apart to be read as one


class Tile(NamedTuple):
    """What one program computes, and how."""

    positions: int
    outputs: int
    channels: int  # to a step of the sum
    warps: int
    stages: int


TILES = {  # the fastest of the published VAEs' widths on one H200, where it is not the rule of `tile`
    (192, 192): Tile(256, 64, 64, 8, 4),
    (384, 192): Tile(256, 64, 64, 8, 4),
    (1024, 1024): Tile(128, 256, 64, 8, 4),
}


def tile(inputs: int, outputs: int) -> Tile:
    """The tile for a convolution of so many channels."""
    channels = 64 if inputs % 64 == 0 else 32
    if outputs <= HEAD:
        return Tile(256, HEAD, 32, 4, 5)
    return TILES.get((inputs, outputs), Tile(256, 128, channels, 8, 4 if channels == 64 else 7))


class Spread(NamedTuple):
    """A shortcut of VAE 2.2: channels of x become the frames, rows and columns that an enlarged clip gains.

    Frame f and pixel p (0 to 3) of an enlarged square show, in channel n, channel
    (n * times * 4 + (f + skip) % times * 4 + p) // repeats of frame (f + skip) // times of x [B, C, F, H, W].
    """

    x: Tensor
    times: int
    repeats: int
    skip: int


def accepts(x: Tensor, weight: Tensor) -> bool:
    """True for x [B, C, ...] and weight [C', C, ...] that the kernel takes, on a GPU where it is fast."""
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return False
    fits = x.shape[1] % CHANNELS == 0 and (INTERPRETED or _is_fast(x, len(weight)))
    return fits and works(x.device, x.dtype)


def _is_fast(x: Tensor, outputs: int) -> bool:
    return (
        x.is_cuda
        and x.dtype in HALVES
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x.device)[0] in ARCHITECTURES
        and (outputs <= HEAD or outputs in WIDTHS)
    )


@triton.jit(do_not_specialize=["new", "history", "height", "width", "spread_skip"])
def _convolve_kernel(
    x, weight, bias, addend, spread, out, new, history, height, width, outputs,
    spread_skip, spread_channels, SPREAD_TIMES: tl.constexpr, SPREAD_REPEATS: tl.constexpr,
    CHANNELS: tl.constexpr, TIMES: tl.constexpr, SIDE: tl.constexpr, SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ADDEND: tl.constexpr, HAS_SPREAD: tl.constexpr,
    POSITIONS: tl.constexpr, OUTPUTS: tl.constexpr, STEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """POSITIONS x OUTPUTS of one frame and phase: the sum of x[q + shift(tap)] @ weight[tap], STEP channels at a time.

    x is what `_Clip` describes; frames before both of its parts, and positions outside of a frame, read as zero.
    """
    blocks = tl.cdiv(outputs, OUTPUTS)
    tile, phase = tl.program_id(0), tl.program_id(1)
    pitch = width + 2
    tiles = tl.cdiv((height + 2) * pitch, POSITIONS)  # of a frame
    frame, start, column = tile // blocks // tiles, tile // blocks % tiles * POSITIONS, tile % blocks * OUTPUTS
    down, right = phase // 2 - 1, phase % 2 - 1  # of the first tap from the position itself
    total = tl.zeros((POSITIONS, OUTPUTS), dtype=tl.float32)
    steps: tl.constexpr = CHANNELS // STEP
    for step in tl.range(TIMES * SIDE * SIDE * steps, num_stages=STAGES):
        tap = step // steps
        across = tap % SIDE
        rest = tap // SIDE
        shift = (rest % SIDE + down) * pitch + across + right
        at = frame + rest // SIDE - (TIMES - 1)
        is_past = (at < 0).to(tl.int32)
        seen = x.load([new ^ is_past, at + is_past * history, start + shift, step % steps * STEP])
        part = weight.load([phase * outputs + column, step * STEP])
        total = tl.dot(seen.reshape(POSITIONS, STEP), part.T, total)
    position = start + tl.arange(0, POSITIONS)
    row, pixel = position // pitch - 1, position % pitch - 1
    inside = (row >= 0) & (row < height) & (pixel >= 0) & (pixel < width)
    columns = column + tl.arange(0, OUTPUTS)
    mask = inside[:, None] & (columns < outputs)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=columns < outputs, other=0.0).to(tl.float32)[None, :]
    if HAS_SPREAD:
        later = frame + spread_skip
        source = (later // SPREAD_TIMES * height + row).to(tl.int64) * width + pixel
        kind = later % SPREAD_TIMES * (SCALE * SCALE) + phase
        channel = (columns[None, :] * (SPREAD_TIMES * SCALE * SCALE) + kind) // SPREAD_REPEATS
        total += tl.load(spread + source[:, None] * spread_channels + channel, mask=mask, other=0.0).to(tl.float32)
    row, pixel = row * SCALE + phase // 2, pixel * SCALE + phase % 2
    target = (frame.to(tl.int64) * (height * SCALE) + row) * (width * SCALE) + pixel
    target = target[:, None] * outputs + columns[None, :]
    if HAS_ADDEND:
        total += tl.load(addend + target, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + target, total.to(out.dtype.element_ty), mask=mask)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    addend: Tensor | None = None,
    *,
    past: Tensor | None = None,
    out: Tensor | None = None,
    chosen: Tile | None = None,
) -> Tensor:
    """A kernel [C', C, T, 3, 3] over x [B, F, H + 2, W + 2, C], whose border is zero.

    A frame sees itself and the T - 1 before it: of x, then of `past` [B, P, H + 2, W + 2, C], then zeros.
    Returns [B, C', F, H, W], channels last, with `addend` of the same shape and layout added before it is rounded;
    in `out` where it is given. Both may be frames of longer clips.
    """
    shape = Shape(len(weight), weight.shape[2], side=3, scale=1)
    return _run(x, taps.turned(weight), bias, shape, past=past, addend=addend, out=out, chosen=chosen)


def enlarge(
    x: Tensor, weight: Tensor, bias: Tensor | None, spread: Spread | None = None, *, chosen: Tile | None = None
) -> Tensor:
    """Doubles rows and columns, each pixel to a square, then convolves with a kernel [C', C, 3, 3]; adds `spread`.

    x [B, F, H + 2, W + 2, C] with a border of zeros -> [B, C', F, 2 H, 2 W], channels last. The enlarged clip is never
    made: each of the four kinds of output pixel has a kernel of 2 x 2 over the input.
    """
    shape = Shape(len(weight), 1, side=2, scale=2)
    return _run(x, taps.enlarging(weight), bias, shape, spread=spread, chosen=chosen)


class Shape(NamedTuple):
    """Output channels, frames and pixels to a side that the kernel meets, and how many times as large the result is."""

    outputs: int
    times: int
    side: int
    scale: int


class _Clip(NamedTuple):
    """The frames of a clip that lie in two places, as one tensor [2 places, frames, positions, C], and how to read it.

    The one place is as far from the other as their addresses are, so nothing has to be copied to join them.
    """

    tensor: TensorDescriptor
    new: int  # the place of the new frames
    history: int  # how many there are in the other


def _clip(new: Tensor, past: Tensor | None, best: Tile) -> _Clip:
    """New frames [F, H + 2, W + 2, C] after past ones [P, H + 2, W + 2, C]."""
    frames, positions, channels = len(new), new[0, :, :, 0].numel(), new.shape[-1]
    steps, block = [positions * channels, channels, 1], [1, 1, best.positions, best.channels]
    if past is None:
        return _Clip(TensorDescriptor(new, [1, frames, positions, channels], [new.numel(), *steps], block), 0, 0)
    history, distance = len(past), new.data_ptr() - past.data_ptr()
    if abs(distance) >= FARTHEST:
        joined = torch.cat((past, new))
        past, new = joined[:history], joined[history:]
        distance = new.data_ptr() - past.data_ptr()
    first, is_later = (past, 1) if distance > 0 else (new, 0)
    shape = [2, max(frames, history), positions, channels]
    strides = [abs(distance) // new.element_size(), *steps]
    return _Clip(TensorDescriptor(first, shape, strides, block), is_later, history)


def _run(
    x: Tensor, matrix: Tensor, bias: Tensor | None, shape: Shape,
    *, past: Tensor | None = None, addend: Tensor | None = None, spread: Spread | None = None,
    out: Tensor | None = None, chosen: Tile | None,
) -> Tensor:  # fmt: skip
    """matrix [scale^2 * C', times * side^2 * C]: the kernel as it meets the positions."""
    batch, frames, height, width, channels = x.shape
    outputs, times, side, scale = shape
    best = chosen or tile(channels, outputs)
    tiles = frames * triton.cdiv(height * width, best.positions)
    height, width = height - 2 * BORDER, width - 2 * BORDER
    size = (batch, outputs, frames, height * scale, width * scale)
    if out is None:
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    grid = (tiles * triton.cdiv(outputs, best.outputs), scale * scale)
    weights = TensorDescriptor.from_tensor(matrix, [best.outputs, best.channels])
    shortcut = None if spread is None else spread.x
    for sample in range(batch):
        clip = _clip(x[sample], None if past is None else past[sample], best)
        _convolve_kernel[grid](
            clip.tensor, weights, bias, None if addend is None else addend[sample],
            None if shortcut is None else shortcut[sample], out[sample],
            clip.new, clip.history, height, width, outputs,
            spread.skip if spread else 0, 0 if shortcut is None else shortcut.shape[1],
            SPREAD_TIMES=spread.times if spread else 1, SPREAD_REPEATS=spread.repeats if spread else 1,
            CHANNELS=channels, TIMES=times, SIDE=side, SCALE=scale,
            HAS_BIAS=bias is not None, HAS_ADDEND=addend is not None,
            HAS_SPREAD=shortcut is not None,
            POSITIONS=best.positions, OUTPUTS=best.outputs, STEP=best.channels, STAGES=best.stages,
            num_warps=best.warps,
        )  # fmt: skip
    return out


def fits(conv: nn.Module) -> bool:
    """True for a convolution of 3 x 3 in space, padded by one, unstrided, over any frames."""
    size, padding = getattr(conv, "kernel_size", ()), getattr(conv, "padding", ())
    return size[-2:] == (3, 3) and padding[-2:] == (1, 1) and set(getattr(conv, "stride", (0,))) == {1}
