"""Lookups: RoPE and the time embedding's sinusoid."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from wancore.wan_core.rope import frequencies, grid_axes, grid_rotation, rotate
from wancore.wan_core.transformer import sinusoid

from . import Golden, Result, compare

TOLERANCE = 1e-6


def tables(golden: Golden) -> Iterator[Result]:
    """`rope.d<head size>` for `rope.positions`, `rope_apply.*` on one grid, `time.sin_<width>` for `time.t`."""
    tensors = golden.tensors
    for name in tensors:
        kind, _, what = name.partition(".")
        if kind == "rope" and what.startswith("d"):
            angles = torch.outer(tensors["rope.positions"].double(), frequencies(int(what[1:])))
            ours = torch.stack([angles.cos(), angles.sin()], dim=-1)
        elif name == "rope_apply.out":
            x = tensors["rope_apply.x"]
            (grid,) = tensors["rope_apply.grid"].tolist()
            ours = rotate(x, grid_rotation(grid_axes(grid), x.shape[-1], like=x))
        elif kind == "time" and what.startswith("sin_"):
            ours = sinusoid(tensors["time.t"], int(what[4:]))
        else:
            continue
        yield compare(f"{golden.name}.{name}", tensors[name], ours, name, TOLERANCE)


FAMILIES = {"tables": tables}
