"""DPM-Solver++ for rectified flow: order 2, midpoint, multistep. The other official solver.

Source: Lu et al. 2022, arXiv:2211.01095; settings of Wan-Video/Wan2.2 wan/utils/fm_solvers.py at 42bf4cf.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .unipc import Callback, Denoiser, log_snr


@torch.no_grad()
def sample_dpmpp(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """x at sigmas[0] -> x at sigmas[-1]; sigmas [N + 1] fall strictly. One call of the model in a step.

    The first step is of first order, and the last one where it ends at sigma 0. `disable` is for samplers that draw
    a bar of their own; this one draws none.
    """
    extra = dict(extra_args or {})
    grid = sigmas.tolist()
    before: Tensor | None = None  # the estimate of the step before
    for i, (source, target) in enumerate(pairwise(grid)):
        denoised = model(x, sigmas[i].expand(x.shape[0]), **extra)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        h = log_snr(target) - log_snr(source)
        gain = (1.0 - target) * math.expm1(-h)
        x = (target / source) * x - gain * denoised
        if before is not None and target > 0.0:
            ratio = (log_snr(source) - log_snr(grid[i - 1])) / h
            x = x - (0.5 * gain / ratio) * (denoised - before)
        before = denoised
    return x
