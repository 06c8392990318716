"""Exact attention in half precision for Hopper (sm_90) in Gluon, Triton's lower level.

Three warpgroups of a program compute 64 queries of a head each; a single warp copies keys and values, KEYS at a time,
into rings of shared memory ahead of them. Each warpgroup waits for its products while the others' fill the tensor
cores. Scores, probabilities and sums stay in registers, sums in float32 for all tiles. The tile that may hold fewer
than KEYS keys comes first, when there are no sums yet: beside them its mask would not fit into the registers.
One program serves every length.
Parity: `works` compares with PyTorch on the card before the first use.
"""

# Triton compiles the programs: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false, reportAssignmentType=false

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from . import eager, hopper
from .agreement import HEAD, takes
from .hopper import barriers

NAME = "hopper"
NEAR = 0.01  # from the reference, relative: what rounding to bfloat16 makes of it, four times
KEYS = 128  # of a tile
QUERIES, WORKERS, STAGES = 64, 3, 2  # of a warpgroup; warpgroups that compute; tiles of keys and of values on their way

LOG_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _probabilities(s, top, total, factor: gl.constexpr):
    """Scores -> probabilities, what earlier sums shrink by, the highest score so far, the sum so far."""
    highest = gl.maximum(top, gl.max(s, axis=1) * factor)
    shrink = gl.exp2(top - highest)
    p = gl.exp2(s * factor - highest[:, None])
    return p, shrink, highest, total * shrink + gl.sum(p, axis=1)


@gluon.jit
def _scores(q, k_ring, k_full, k_empty, stage, phase, none):
    """Scores of a tile, once its keys are there."""
    mbarrier.wait(k_full.index(stage), phase)
    s = warpgroup_mma(q, k_ring.index(stage).permute((1, 0)), none, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(0, deps=[s])
    mbarrier.arrive(k_empty.index(stage))
    return s


@gluon.jit
def _add_values(sums, p, v_ring, v_full, v_empty, stage, phase, layout: gl.constexpr):
    """Sums and the values of a tile under their probabilities."""
    p = gl.convert_layout(p.to(v_ring.dtype), layout)
    mbarrier.wait(v_full.index(stage), phase)
    sums = warpgroup_mma(p, v_ring.index(stage), sums, is_async=True)
    sums = warpgroup_mma_wait(0, deps=[sums])
    mbarrier.arrive(v_empty.index(stage))
    return sums


@gluon.jit
def _compute(
    worker: gl.constexpr, q_ring, k_ring, v_ring, q_full, k_full, v_full, k_empty, v_empty,
    out, keys, tiles, head, batch, first,
    KEYS: gl.constexpr, HEAD: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warpgroup: its queries over all keys."""
    factor: gl.constexpr = LOG_E / HEAD**0.5
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    of_sums: gl.constexpr = gl.SliceLayout(1, o_layout)
    none = gl.full([QUERIES, KEYS], 0.0, gl.float32, s_layout)
    sums = gl.full([QUERIES, HEAD], 0.0, gl.float32, o_layout)
    columns = gl.arange(0, KEYS, layout=gl.SliceLayout(0, s_layout))
    q = q_ring.index(worker)
    mbarrier.wait(q_full.index(0), 0)
    s = _scores(q, k_ring, k_full, k_empty, 0, 0, none)
    s = gl.where((columns < keys - (tiles - 1) * KEYS)[None, :], s, float("-inf"))
    top = gl.max(s, axis=1) * factor
    p = gl.exp2(s * factor - top[:, None])
    total = gl.sum(p, axis=1)
    sums = _add_values(sums, p, v_ring, v_full, v_empty, 0, 0, p_layout)
    for tile in range(1, tiles):
        stage, phase = tile % STAGES, (tile // STAGES) & 1
        s = _scores(q, k_ring, k_full, k_empty, stage, phase, none)
        p, shrink, top, total = _probabilities(s, top, total, factor)
        sums = sums * gl.convert_layout(shrink, of_sums)[:, None]
        sums = _add_values(sums, p, v_ring, v_full, v_empty, stage, phase, p_layout)
    sums = sums * (1.0 / gl.convert_layout(total, of_sums))[:, None]
    q.store(sums.to(q_ring.dtype))  # which nobody reads any more
    fence_async_shared()
    place = [batch, first + worker * QUERIES, head * HEAD]
    tma.async_copy_shared_to_global(out, place, q.reshape([1, QUERIES, HEAD]))
    tma.store_wait(0)


@gluon.jit
def _copy(
    q, k, v, q_ring, k_ring, v_ring, q_full, k_full, v_full, k_empty, v_empty, tiles, head, batch, first,
    KEYS: gl.constexpr, HEAD: gl.constexpr, QUERIES: gl.constexpr, WORKERS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warp: brings queries, then tile after tile of keys and values, the last one first; zeros past the end."""
    mbarrier.expect(q_full.index(0), WORKERS * QUERIES * HEAD * 2)
    for worker in gl.static_range(WORKERS):
        queries = q_ring.index(worker).reshape([1, QUERIES, HEAD])
        tma.async_copy_global_to_shared(q, [batch, first + QUERIES * worker, head * HEAD], q_full.index(0), queries)
    row = (tiles - 1) * KEYS
    for tile in range(tiles):
        stage, phase = tile % STAGES, (tile // STAGES) & 1
        mbarrier.wait(k_empty.index(stage), phase ^ 1)
        mbarrier.expect(k_full.index(stage), KEYS * HEAD * 2)
        keys = k_ring.index(stage).reshape([1, KEYS, HEAD])
        tma.async_copy_global_to_shared(k, [batch, row, head * HEAD], k_full.index(stage), keys)
        mbarrier.wait(v_empty.index(stage), phase ^ 1)
        mbarrier.expect(v_full.index(stage), KEYS * HEAD * 2)
        values = v_ring.index(stage).reshape([1, KEYS, HEAD])
        tma.async_copy_global_to_shared(v, [batch, row, head * HEAD], v_full.index(stage), values)
        row = tile * KEYS


@gluon.jit(do_not_specialize=["keys", "tiles"])  # one tile would be another program, and any round number
def _attention_kernel(
    q, k, v, out, keys, tiles,
    KEYS: gl.constexpr, HEAD: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Three times QUERIES queries of a head over all keys."""
    first, head, batch = gl.program_id(0) * (3 * QUERIES), gl.program_id(1), gl.program_id(2)
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    q_ring = gl.allocate_shared_memory(q.dtype, [3, QUERIES, HEAD], swizzled)
    k_ring = gl.allocate_shared_memory(k.dtype, [STAGES, KEYS, HEAD], swizzled)
    v_ring = gl.allocate_shared_memory(v.dtype, [STAGES, KEYS, HEAD], swizzled)
    q_full = barriers(1, 1)
    k_full, v_full = barriers(STAGES, 1), barriers(STAGES, 1)
    k_empty, v_empty = barriers(STAGES, 3), barriers(STAGES, 3)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_compute, (0, q_ring, k_ring, v_ring, q_full, k_full, v_full, k_empty, v_empty,
                        out, keys, tiles, head, batch, first, KEYS, HEAD, QUERIES, STAGES)),
            (_compute, (1, q_ring, k_ring, v_ring, q_full, k_full, v_full, k_empty, v_empty,
                        out, keys, tiles, head, batch, first, KEYS, HEAD, QUERIES, STAGES)),
            (_compute, (2, q_ring, k_ring, v_ring, q_full, k_full, v_full, k_empty, v_empty,
                        out, keys, tiles, head, batch, first, KEYS, HEAD, QUERIES, STAGES)),
            (_copy, (q, k, v, q_ring, k_ring, v_ring, q_full, k_full, v_full, k_empty, v_empty,
                     tiles, head, batch, first, KEYS, HEAD, QUERIES, 3, STAGES)),
        ],
        [4, 4, 1],  # warps of all parts but the first, which has the program's own four
        [160, 160, 24],  # registers of a thread there
    )  # fmt: skip


def accepts(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """True on Hopper for contiguous q, k and v [B, L, heads * 128] in half precision, without gradients."""
    return all(x.is_contiguous() for x in (q, k, v)) and takes(q, k, v, heads) and works(q.device)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over q [B, Lq, heads * 128], k and v [B, Lk, heads * 128] -> [B, Lq, heads * 128]."""
    out, swizzled = torch.empty_like(q), gl.NVMMASharedLayout(128, 16, 3)
    queries, written = (TensorDescriptor.from_tensor(x, [1, QUERIES, HEAD], swizzled) for x in (q, out))
    keys, values = (TensorDescriptor.from_tensor(x, [1, KEYS, HEAD], swizzled) for x in (k, v))
    with torch.cuda.device_of(q):
        _attention_kernel[(triton.cdiv(q.shape[1], WORKERS * QUERIES), heads, len(q))](
            queries, keys, values, written, k.shape[1], triton.cdiv(k.shape[1], KEYS),
            KEYS=KEYS, HEAD=HEAD, QUERIES=QUERIES, STAGES=STAGES, num_warps=4,
        )  # fmt: skip
    return out


@cache
def works(device: torch.device) -> bool:
    """Compares once with the reference."""
    return hopper.agrees(NAME, device, attention, eager.attention, NEAR)
