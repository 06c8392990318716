"""UniPC for rectified flow: order 2, variant bh2, predicting x0, with the corrector. The official default solver.

alpha = 1 - sigma; the half log signal-to-noise ratio is lambda = log(alpha) - log(sigma); h is its growth in a step.
Source: Zhao et al. 2023, arXiv:2302.04867; settings of Wan-Video/Wan2.2 wan/utils/fm_solvers_unipc.py at 42bf4cf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Denoiser = Callable[..., Tensor]
"""(x, sigma [B], **extra_args) -> denoised, the estimate of the clean latent."""
Callback = Callable[[dict[str, Any]], None]
"""Called once a step with x, i, sigma, sigma_hat and denoised, as k-diffusion's samplers do."""


@torch.no_grad()
def sample_unipc(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """x at sigmas[0] -> x at sigmas[-1]; sigmas [N + 1] fall strictly. One call of the model in a step.

    Each step corrects its own start with the estimate made there, then predicts the next one; the last step is of
    first order. `disable` is for samplers that draw a bar of their own; this one draws none.
    """
    extra = dict(extra_args or {})
    grid = sigmas.tolist()
    steps = len(grid) - 1
    start, before, older, order = x, None, None, 0  # last step's start, its estimate, the one before, its order
    for i in range(steps):
        denoised = model(x, sigmas[i].expand(x.shape[0]), **extra)
        if before is not None:
            x = _corrected(start, before, older if order == 2 else None, denoised, grid[max(0, i - 2) : i + 1])
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        order = 1 if before is None or i == steps - 1 else 2
        start, older, before = x, before, denoised
        x = _predicted(x, denoised, older if order == 2 else None, grid[max(0, i - 1) : i + 2])
    return x


def _predicted(x: Tensor, denoised: Tensor, older: Tensor | None, grid: list[float]) -> Tensor:
    """From sigma grid[-2] to grid[-1], by the estimate there and, at order 2, the one at grid[-3]."""
    source, target = grid[-2:]
    alpha, h = 1.0 - target, log_snr(target) - log_snr(source)
    phi = math.expm1(-h)
    x = (target / source) * x - alpha * phi * denoised
    if older is None:
        return x
    ratio = (log_snr(grid[-3]) - log_snr(source)) / h
    return x - (0.5 * alpha * phi / ratio) * (older - denoised)


def _corrected(start: Tensor, before: Tensor, older: Tensor | None, denoised: Tensor, grid: list[float]) -> Tensor:
    """The step from grid[-2] to grid[-1] again, now that the estimate at its end is known."""
    source, target = grid[-2:]
    alpha, h = 1.0 - target, log_snr(target) - log_snr(source)
    phi = math.expm1(-h)
    x = (target / source) * start - alpha * phi * before
    if older is None:
        return x - (0.5 * alpha * phi) * (denoised - before)
    ratio = (log_snr(grid[-3]) - log_snr(source)) / h
    # rho_1 + rho_2 = b_1 and ratio * rho_1 + rho_2 = b_2; b_k = k! phi_(k+1)(-h) / phi_1(-h)
    phi_2 = phi / -h - 1.0
    phi_3 = phi_2 / -h - 0.5
    b_1, b_2 = phi_2 / phi, 2.0 * phi_3 / phi
    rho_1 = (b_2 - b_1) / (ratio - 1.0)
    return x - (alpha * phi) * ((rho_1 / ratio) * (older - before) + (b_1 - rho_1) * (denoised - before))


def log_snr(sigma: float) -> float:
    """lambda of a sigma 0..1: infinite at both ends, which the formulas here take."""
    if sigma >= 1.0:
        return -math.inf
    return math.log((1.0 - sigma) / sigma) if sigma > 0.0 else math.inf
