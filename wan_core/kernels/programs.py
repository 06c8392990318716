"""Triton programs, one for a few tokens: a token's row is worked on in float32. fused.py launches them.

Triton works on powers of two. A row is taken as two of them, FIRST and REST: 5120 values as 4096 and 1024, not 8192.
"""

# Triton compiles these functions: constants arrive as plain values, whatever their annotation says.
# pyright: reportArgumentType=false, reportReturnType=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

LARGEST = tl.constexpr(448.0)  # of float8 e4m3
SMALLEST = tl.constexpr(1e-12)  # scale of a row of zeros


@triton.jit
def _read(place, inside):
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _keep(value, place, inside):
    tl.store(place, value.to(place.dtype.element_ty), mask=inside)


@triton.jit
def _store(a, b, out, scales, exact, place_a, place_b, row, in_a, in_b, EIGHT: tl.constexpr, EXACT: tl.constexpr):
    """Writes a row: rounded to `out`, or in 8 bits with its scale, and then the exact one beside it if wanted."""
    if EIGHT:
        peak = tl.maximum(tl.max(tl.abs(a)), tl.max(tl.abs(b)))
        scale = tl.maximum(peak / LARGEST, SMALLEST)
        tl.store(scales + row, scale)
        if EXACT:
            _keep(a, exact + place_a, in_a)
            _keep(b, exact + place_b, in_b)
        a, b = a * (1.0 / scale), b * (1.0 / scale)
    _keep(a, out + place_a, in_a)
    _keep(b, out + place_b, in_b)


@triton.jit
def norm_kernel(
    x, y, gate, total, weight, bias, out, scales, exact,
    width, gate_share, share, eps,
    x_batch, x_token, y_batch, y_token, gate_batch, gate_step, row_batch, row_step, out_batch, out_token, tokens,
    ADD: tl.constexpr, GATE: tl.constexpr, ADD_ONE: tl.constexpr, EIGHT: tl.constexpr, EXACT: tl.constexpr,
    GROUP: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Adds y (under a gate) to GROUP tokens, then LayerNorm, times a row of weight (+ 1), plus a row of bias.

    `share` tokens have one row of weight and bias, `gate_share` one of the gate; GROUP divides both.
    """
    first, batch = tl.program_id(0).to(tl.int64) * GROUP, tl.program_id(1).to(tl.int64)
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, REST)
    in_a, in_b = a < width, b < width
    row = batch * row_batch + (first // share) * row_step
    factor_a, factor_b = _read(weight + row + a, in_a), _read(weight + row + b, in_b)
    if ADD_ONE:
        factor_a, factor_b = factor_a + 1.0, factor_b + 1.0
    offset_a, offset_b = _read(bias + row + a, in_a), _read(bias + row + b, in_b)
    opening_a, opening_b = 1.0, 1.0
    if GATE:
        turn = gate + batch * gate_batch + (first // gate_share) * gate_step
        opening_a, opening_b = _read(turn + a, in_a), _read(turn + b, in_b)
    for step in range(GROUP):
        token = first + step
        place, source = batch * out_batch + token * out_token, x + batch * x_batch + token * x_token
        value_a, value_b = _read(source + a, in_a), _read(source + b, in_b)
        if ADD:
            added = y + batch * y_batch + token * y_token
            sum_a = (value_a + _read(added + a, in_a) * opening_a).to(total.dtype.element_ty)
            sum_b = (value_b + _read(added + b, in_b) * opening_b).to(total.dtype.element_ty)
            tl.store(total + place + a, sum_a, mask=in_a)
            tl.store(total + place + b, sum_b, mask=in_b)
            value_a, value_b = sum_a.to(tl.float32), sum_b.to(tl.float32)
        mean = (tl.sum(value_a) + tl.sum(value_b)) / width
        value_a, value_b = tl.where(in_a, value_a - mean, 0.0), tl.where(in_b, value_b - mean, 0.0)
        scale = tl.rsqrt((tl.sum(value_a * value_a) + tl.sum(value_b * value_b)) / width + eps)
        value_a, value_b = value_a * scale * factor_a + offset_a, value_b * scale * factor_b + offset_b
        row_of_scale = batch * tokens + token
        _store(value_a, value_b, out, scales, exact, place + a, place + b, row_of_scale, in_a, in_b, EIGHT, EXACT)


@triton.jit
def _gelu(value):
    inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    return value * tl.sigmoid(2.0 * inner)  # (1 + tanh(z)) / 2 = sigmoid(2z)


@triton.jit
def form_kernel(
    x, out, scales, exact,
    width, x_batch, x_token, out_batch, out_token, tokens,
    GELU: tl.constexpr, EXACT: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """One token to 8 bits, after GELU (tanh approximation) if wanted."""
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, REST)
    in_a, in_b = a < width, b < width
    source, place = x + batch * x_batch + token * x_token, batch * out_batch + token * out_token
    value_a, value_b = _read(source + a, in_a), _read(source + b, in_b)
    if GELU:
        value_a, value_b = _gelu(value_a), _gelu(value_b)
    row = batch * tokens + token
    _store(value_a, value_b, out, scales, exact, place + a, place + b, row, in_a, in_b, True, EXACT)


@triton.jit
def gated_add_kernel(
    x, y, gate, out,
    width, share,
    x_batch, x_token, y_batch, y_token, row_batch, row_step, out_batch, out_token,
    GROUP: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """x + y * gate of GROUP tokens; `share` tokens have one row of the gate, GROUP divides it."""
    first, batch = tl.program_id(0).to(tl.int64) * GROUP, tl.program_id(1).to(tl.int64)
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, REST)
    in_a, in_b = a < width, b < width
    row = gate + batch * row_batch + (first // share) * row_step
    opening_a, opening_b = _read(row + a, in_a), _read(row + b, in_b)
    for step in range(GROUP):
        token = first + step
        source, added = x + batch * x_batch + token * x_token, y + batch * y_batch + token * y_token
        place = out + batch * out_batch + token * out_token
        _keep(_read(source + a, in_a) + _read(added + a, in_a) * opening_a, place + a, in_a)
        _keep(_read(source + b, in_b) + _read(added + b, in_b) * opening_b, place + b, in_b)


@triton.jit
def _turned(value, cosine, sine, SIZE: tl.constexpr, HALF: tl.constexpr):
    """Neighbouring values turned by their head's HALF complex numbers."""
    real, imaginary = tl.split(tl.reshape(value, (SIZE // 2 // HALF, HALF, 2)))
    pair = tl.join(real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    return tl.reshape(pair, (SIZE,))


@triton.jit
def rms_norm_kernel(
    x, weight, turns, out,
    width, eps,
    x_batch, x_token, out_batch, out_token,
    ROTATE: tl.constexpr, HALF: tl.constexpr, GROUP: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """RMS norm of GROUP tokens over the width; then neighbouring values turn by their token's HALF complex numbers."""
    first, batch = tl.program_id(0).to(tl.int64) * GROUP, tl.program_id(1).to(tl.int64)
    a, b = tl.arange(0, FIRST), FIRST + tl.arange(0, REST)
    in_a, in_b = a < width, b < width
    factor_a, factor_b = _read(weight + a, in_a), _read(weight + b, in_b)
    for step in range(GROUP):
        token = first + step
        source, place = x + batch * x_batch + token * x_token, out + batch * out_batch + token * out_token
        value_a, value_b = _read(source + a, in_a), _read(source + b, in_b)
        scale = tl.rsqrt((tl.sum(value_a * value_a) + tl.sum(value_b * value_b)) / width + eps)
        value_a, value_b = value_a * scale * factor_a, value_b * scale * factor_b
        if ROTATE:
            turn = tl.load(turns + token * 2 * HALF + tl.arange(0, 2 * HALF))
            cosine, sine = tl.split(tl.reshape(turn, (HALF, 2)))
            cosine, sine = cosine[None, :], sine[None, :]
            value_a = _turned(value_a, cosine, sine, FIRST, HALF)
            value_b = _turned(value_b, cosine, sine, REST, HALF)
        _keep(value_a, place + a, in_a)
        _keep(value_b, place + b, in_b)
