"""Tokens in 8 bits, one scale to a row, and the linear layer over them.

Each row is divided by the scale that brings its largest value to the end of float8 e4m3; a single outlier so costs the
precision of its own token only, not of the clip. `Form` says which form a layer wants its input in; the kernels before
it write that form at once, so that no pass over memory is spent on rounding alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of float8 e4m3
LEAST_ROWS = 1024  # cuBLAS refuses products of few rows; those of a tiny clip cost nothing decoded
SMALLEST = 1e-12  # scale of a row of zeros


@dataclass(frozen=True)
class Form:
    """The form of the tokens that a linear layer takes."""

    dtype: torch.dtype  # what the layer computes in, or returns
    values: torch.dtype | None = None  # Rows8 of these instead of a tensor: float8 e4m3, or int8 for Turned8 of int8.py
    exact: bool = False  # the unrounded tokens beside them: for low-rank branches

    @property
    def written(self) -> Form:
        """The form in which the kernel before the layer leaves them: int8 is rounded in a pass of its own."""
        return Form(self.dtype) if self.values is torch.int8 else self


@dataclass(frozen=True)
class Rows8:
    """values * scale are the tokens."""

    values: Tensor  # [B, L, D] float8 e4m3, or int8
    scale: Tensor  # [B, L, 1] float32
    dtype: torch.dtype  # of the tokens, and of what the layer returns
    exact: Tensor | None = None  # [B, L, D] the tokens before the rounding

    def exact_tokens(self) -> Tensor:
        """[B, L, D] the tokens before the rounding where they were kept, otherwise what the rounding left."""
        return self.dequantised() if self.exact is None else self.exact

    def dequantised(self) -> Tensor:
        """[B, L, D] in `dtype`."""
        return (self.values.float() * self.scale).to(self.dtype)

    def split(self, size: int) -> tuple[Rows8, ...]:
        """Successive parts of `size` tokens, the last one with what is left."""
        parts = zip(self.values.split(size, 1), self.scale.split(size, 1), strict=True)
        found = [replace(self, values=values, scale=scale, exact=None) for values, scale in parts]
        if self.exact is None:
            return tuple(found)
        exacts = self.exact.split(size, 1)
        return tuple(replace(part, exact=exact) for part, exact in zip(found, exacts, strict=True))


def formed(x: Tensor, form: Form) -> Tensor | Rows8:
    """x [B, L, D] in the form that is asked for: the reference of every fused one."""
    exact = x.to(form.dtype)
    if form.values is None:
        return exact
    assert form.values is FLOAT8
    x = x.float()
    scale = (x.abs().amax(-1, keepdim=True) / LARGEST).clamp(min=SMALLEST)
    values = (x * (1.0 / scale)).clamp(-LARGEST, LARGEST).to(FLOAT8)  # one division to a row
    return Rows8(values, scale, form.dtype, exact if form.exact else None)


def linear(x: Rows8, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, L, K], weight [N, K] float8 with one scale, bias [N] in x.dtype -> [B, L, N] in x.dtype."""
    if not x.values.is_cuda or x.scale.numel() < LEAST_ROWS:
        weight = weight.to(x.dtype) * weight_scale.to(x.dtype)
        return torch.nn.functional.linear(x.dequantised(), weight, bias)
    scales = weight_scale.reshape(1, 1).float().expand(1, len(weight)).contiguous()
    rows, row_scales = x.values.flatten(0, 1), x.scale.reshape(-1, 1)
    out = torch._scaled_mm(rows, weight.t(), row_scales, scales, bias, out_dtype=x.dtype, use_fast_accum=True)  # pyright: ignore[reportPrivateImportUsage]
    return out.unflatten(0, x.values.shape[:2])


def works(device: torch.device) -> bool:
    """Tries `linear` once: a card or a PyTorch that has no such product refuses it or gets it wrong."""
    generator = torch.Generator(device).manual_seed(0)  # its own: the run's noise stays as it is
    x = torch.randn(1, 2 * LEAST_ROWS, 512, device=device, dtype=torch.bfloat16, generator=generator)
    weight = torch.randn(256, 512, device=device, generator=generator).to(FLOAT8)
    scale, bias = torch.full((), 0.5, device=device), torch.ones(256, device=device, dtype=x.dtype)
    tokens = formed(x, Form(x.dtype, FLOAT8))
    assert isinstance(tokens, Rows8)
    expected = torch.nn.functional.linear(tokens.dequantised().float(), weight.float() * scale, bias.float())
    try:
        error = linear(tokens, weight, scale, bias).float() - expected
    except (RuntimeError, TypeError) as problem:
        logging.info("no products of float8 rows here: %s", str(problem).splitlines()[0])
        return False
    return bool(error.norm() < 0.01 * expected.norm())
