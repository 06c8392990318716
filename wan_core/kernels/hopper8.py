"""Attention in 8 bits for Hopper (sm_90) in Gluon, Triton's lower level: attention8.py says what is rounded.

Three warpgroups of a program compute 64 queries of a head each; a single warp copies keys and values, KEYS at a time,
into a ring of shared memory ahead of them. Products of a tile are summed by the tensor cores, whose sums keep some 14
bits; tiles are added up in float32. Scores and probabilities stay in registers: see attention8.KEYS.
Parity: `works` compares with the reference on the card before the first use; the benchmark prints the error in a model.
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

from . import attention8, hopper
from .agreement import HEAD, takes
from .attention8 import BLOCK
from .hopper import barriers
from .rounding import Rounded, rounded

NAME = "hopper, 8 bits"
QUERIES, WORKERS, STAGES = 64, 3, 4  # of a warpgroup; warpgroups that compute; tiles of keys and values on their way
NEAR = 0.02  # from the reference, relative: probabilities that round to a neighbour

HALF_INTEGER = gl.constexpr(0x4B400000)  # added to whole numbers below 2^22, gives the bits of the float 1.5 * 2^23 + n
HALF = gl.constexpr(12582912.0)  # 1.5 * 2^23
LOG_LARGEST = gl.constexpr(8.807354922057604)  # log2 of 448: probabilities fill float8 e4m3
LOG_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def _as_operand(p, QUERIES: gl.constexpr, KEYS: gl.constexpr, layout: gl.constexpr):
    """Results of a product as the left operand of the next: columns change their names, nothing moves."""
    p = p.reshape([QUERIES, KEYS // 32, 2, 2, 2, 2, 2]).permute((0, 1, 2, 4, 5, 3, 6)).reshape([QUERIES, KEYS])
    return gl.convert_layout(p, layout, assert_trivial=True)


@gluon.jit
def _probabilities(s, factor, top, total, left, columns, last):
    """Scores s in int32 -> probabilities times 448, what earlier sums shrink by, the highest score, the sum so far.

    `left` keys are there in the `last` tile; the sum of the probabilities keeps what their rounding loses.
    """
    x = (s + HALF_INTEGER).to(gl.float32, bitcast=True)
    if last:
        x = gl.where((columns < left)[None, :], x, HALF / 1.5)  # below every score
    highest = gl.maximum(top, (gl.max(x, axis=1) - HALF) * factor)
    shift = HALF * factor + highest - LOG_LARGEST
    shrink = gl.exp2(top - highest)
    p = gl.exp2(x * factor[:, None] - shift[:, None])
    if last:
        p = gl.where((columns < left)[None, :], p, 0.0)
    return p.to(gl.float8e4nv), shrink, highest, total * shrink + gl.sum(p, axis=1)


@gluon.jit
def _compute(
    worker: gl.constexpr, q_ring, k_ring, v_ring, q_full, full, empty,
    q_scale, k_scale, v_scale, v_mean, out, queries, keys, tiles, head, batch, first, heads,
    KEYS: gl.constexpr, HEAD: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warpgroup: its queries over all keys."""
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 32])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD, 32])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 4)
    of_scores: gl.constexpr = gl.SliceLayout(1, s_layout)
    of_sums: gl.constexpr = gl.SliceLayout(1, o_layout)
    plane = batch * heads + head
    rows = first + worker * QUERIES + gl.arange(0, QUERIES, layout=of_scores)
    columns = gl.arange(0, KEYS, layout=gl.SliceLayout(0, s_layout))
    scale = gl.load(q_scale + plane * queries + rows, mask=rows < queries, other=1.0) * (LOG_E / HEAD**0.5)
    no_scores = gl.full([QUERIES, KEYS], 0, gl.int32, s_layout)
    nothing = gl.full([QUERIES, HEAD], 0.0, gl.float32, o_layout)
    top = gl.full([QUERIES], float("-inf"), gl.float32, of_scores)
    total = gl.full([QUERIES], 0.0, gl.float32, of_scores)
    sums = nothing
    q = q_ring.index(worker)
    ahead = gl.load(k_scale + plane * tiles)
    mbarrier.wait(q_full.index(0), 0)
    for tile in range(0, tiles):
        stage, phase = tile % STAGES, (tile // STAGES) & 1
        factor = scale * ahead
        ahead = gl.load(k_scale + plane * tiles + tile + 1, mask=tile + 1 < tiles, other=1.0)
        mbarrier.wait(full.index(stage), phase)
        s = warpgroup_mma(q, k_ring.index(stage).permute((1, 0)), no_scores, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, deps=[s])
        p, shrink, top, total = _probabilities(
            s, factor, top, total, keys - tile * KEYS, columns, tile == tiles - 1
        )  # fmt: skip
        p = _as_operand(p, QUERIES, KEYS, p_layout)
        added = warpgroup_mma(p, v_ring.index(stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
        added = warpgroup_mma_wait(0, deps=[added])
        mbarrier.arrive(empty.index(stage))
        sums = sums * gl.convert_layout(shrink, of_sums)[:, None] + added
    sums = sums / gl.convert_layout(total, of_sums)[:, None]

    in_rows: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    channels = gl.arange(0, HEAD, layout=gl.SliceLayout(0, in_rows))
    tokens = first + worker * QUERIES + gl.arange(0, QUERIES, layout=gl.SliceLayout(1, in_rows))
    sums = gl.convert_layout(sums, in_rows) * gl.load(v_scale + plane * HEAD + channels)[None, :]
    sums += gl.load(v_mean + plane * HEAD + channels)[None, :]
    place = (batch * queries + tokens).to(gl.int64)[:, None] * (heads * HEAD) + (head * HEAD + channels)[None, :]
    gl.store(out + place, sums.to(out.dtype.element_ty), mask=(tokens < queries)[:, None])


@gluon.jit
def _copy(
    q, k, v, q_ring, k_ring, v_ring, q_full, full, empty, tiles, head, batch, first, heads,
    KEYS: gl.constexpr, HEAD: gl.constexpr, QUERIES: gl.constexpr, WORKERS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warp: brings queries, then tile after tile of keys and values; past the end come zeros."""
    mbarrier.expect(q_full.index(0), WORKERS * QUERIES * HEAD)
    for worker in gl.static_range(WORKERS):
        queries = q_ring.index(worker).reshape([1, QUERIES, HEAD])
        tma.async_copy_global_to_shared(q, [batch, first + QUERIES * worker, head * HEAD], q_full.index(0), queries)
    for tile in range(tiles):
        stage, phase = tile % STAGES, (tile // STAGES) & 1
        mbarrier.wait(empty.index(stage), phase ^ 1)
        mbarrier.expect(full.index(stage), 2 * KEYS * HEAD)
        keys = k_ring.index(stage).reshape([1, KEYS, HEAD])
        tma.async_copy_global_to_shared(k, [batch, tile * KEYS, head * HEAD], full.index(stage), keys)
        values = v_ring.index(stage).reshape([1, HEAD, KEYS])
        tma.async_copy_global_to_shared(v, [batch * heads + head, 0, tile * KEYS], full.index(stage), values)


@gluon.jit
def _attention_kernel(
    q, k, v, q_scale, k_scale, v_scale, v_mean, out, queries, keys, tiles, heads,
    KEYS: gl.constexpr, HEAD: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Three times QUERIES queries of a head over all keys."""
    first, head, batch = gl.program_id(0) * (3 * QUERIES), gl.program_id(1), gl.program_id(2)
    swizzled: gl.constexpr = gl.NVMMASharedLayout(128, 8, 2)
    q_ring = gl.allocate_shared_memory(q.dtype, [3, QUERIES, HEAD], swizzled)
    k_ring = gl.allocate_shared_memory(k.dtype, [STAGES, KEYS, HEAD], swizzled)
    v_ring = gl.allocate_shared_memory(v.dtype, [STAGES, HEAD, KEYS], swizzled)
    q_full, full, empty = barriers(1, 1), barriers(STAGES, 1), barriers(STAGES, 3)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_compute, (0, q_ring, k_ring, v_ring, q_full, full, empty, q_scale, k_scale, v_scale, v_mean, out,
                        queries, keys, tiles, head, batch, first, heads, KEYS, HEAD, QUERIES, STAGES)),
            (_compute, (1, q_ring, k_ring, v_ring, q_full, full, empty, q_scale, k_scale, v_scale, v_mean, out,
                        queries, keys, tiles, head, batch, first, heads, KEYS, HEAD, QUERIES, STAGES)),
            (_compute, (2, q_ring, k_ring, v_ring, q_full, full, empty, q_scale, k_scale, v_scale, v_mean, out,
                        queries, keys, tiles, head, batch, first, heads, KEYS, HEAD, QUERIES, STAGES)),
            (_copy, (q, k, v, q_ring, k_ring, v_ring, q_full, full, empty, tiles, head, batch, first, heads,
                     KEYS, HEAD, QUERIES, 3, STAGES)),
        ],
        [4, 4, 1],  # warps of all parts but the first, which has the program's own four
        [160, 160, 24],  # registers of a thread there
    )  # fmt: skip


def accepts(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """True on Hopper for q, k and v [B, L, heads * 128] of one length in half precision, without gradients."""
    return q.shape == k.shape == v.shape and takes(q, k, v, heads) and works(q.device)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, L, heads * 128], rounded as attention8.reference -> [B, L, heads * 128]."""
    with torch.cuda.device_of(q):
        return _launch(rounded(q, k, v, heads), heads, q.dtype)


def _launch(given: Rounded, heads: int, dtype: torch.dtype) -> Tensor:
    batch, queries, width = given.q.shape
    out = torch.empty(batch, queries, width, dtype=dtype, device=given.q.device)
    swizzled = gl.NVMMASharedLayout(128, 8, 3)
    q = TensorDescriptor.from_tensor(given.q, [1, QUERIES, HEAD], swizzled)
    k = TensorDescriptor.from_tensor(given.k, [1, BLOCK, HEAD], swizzled)
    v = TensorDescriptor.from_tensor(given.v.flatten(0, 1), [1, HEAD, BLOCK], swizzled)
    _attention_kernel[(triton.cdiv(queries, WORKERS * QUERIES), heads, batch)](
        q, k, v, given.q_scale, given.k_scale, given.about.v_scale, given.about.v_mean, out,
        queries, given.k.shape[1], given.k_scale.shape[2], heads,
        KEYS=BLOCK, HEAD=HEAD, QUERIES=QUERIES, STAGES=STAGES, num_warps=4,
    )  # fmt: skip
    return out


@cache
def works(device: torch.device) -> bool:
    """Compares once with the reference."""
    return hopper.agrees(NAME, device, attention, attention8.reference, NEAR)
