"""Attention in 8 bits: the reference against exact sums, and every program against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from wancore.wan_core.attention import torch_attention
from wancore.wan_core.kernels import attention8

from .interpreted import INTERPRETED, ON_DEVICE, run_interpreted

if not ON_DEVICE:

    def test_parity_in_the_interpreter() -> None:
        run_interpreted(__file__)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, SIZE = 2, 128


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def given(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [B, L, H * d] with outlier channels that all tokens share, as real models have them."""
    q, k, v = (random(batch, length, HEADS * SIZE, seed=seed) for seed in range(3))
    k[..., ::50] += 8.0
    v[..., ::60] -= 5.0
    return q, k, v


def error(out: Tensor, reference: Tensor, shared: Tensor) -> float:
    """Of what differs between tokens: the mean of the values is no achievement."""
    return float((out - reference).norm() / (reference - shared).norm())


def last_digit(exact: Tensor, dtype: torch.dtype, shared: Tensor) -> float:
    """The error of the exact result as `dtype` writes it: much of channels near -5, beside what differs in them."""
    cut = 2 if INTERPRETED and dtype == torch.bfloat16 else 1  # the interpreter does not round these, it cuts them off
    return cut * error(exact.to(dtype).float(), exact, shared)


@pytest.mark.parametrize(("values", "limit"), [(torch.float8_e4m3fn, 0.05), (torch.float16, 0.02)], ids=str)
@pytest.mark.parametrize("length", [90, 300])
def test_reference_is_near_exact_sums(length: int, values: torch.dtype, limit: float) -> None:
    q, k, v = given(2, length)
    exact, shared = torch_attention(q, k, v, HEADS), v.mean(1, keepdim=True)
    assert error(attention8.reference(q, k, v, HEADS, values), exact, shared) < limit
    assert attention8.reference(q.bfloat16(), k.bfloat16(), v.bfloat16(), HEADS).dtype == torch.bfloat16


def test_what_all_keys_share_costs_nothing() -> None:
    q, k, v = given(1, 300)
    k = k.bfloat16().float()  # so that float32 takes the shift without rounding
    plain = attention8.reference(q, k, v, HEADS)
    moved = attention8.reference(q, k + random(1, 1, HEADS * SIZE, seed=9).mul(32).round(), v, HEADS)
    assert error(moved, plain, v.mean(1, keepdim=True)) < 5e-3  # a mean rounded otherwise moves a few values by a step


def test_order_of_keys() -> None:
    """Places of a left operand of 8 bits (four by four) show the keys that a thread's results (two by two) hold."""
    for quarter in range(4):
        mine = [8 * group + 2 * quarter + side for group in range(4) for side in range(2)]
        places = [16 * half + 4 * quarter + byte for half in range(2) for byte in range(4)]
        assert [attention8.KEYS[place] for place in places] == mine


if ON_DEVICE:
    from wancore.wan_core.kernels import ampere8, rounding

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("length", [128, 200])
    def test_rounding(length: int, dtype: torch.dtype) -> None:
        q, k, v = (x.to(dtype) for x in given(2, length))
        found, about = rounding.rounded(q, k, v, HEADS), attention8.channels(k, v, HEADS)
        expected_q = q.float().unflatten(2, (HEADS, SIZE))
        back = found.q.unflatten(2, (HEADS, SIZE)) * found.q_scale.transpose(1, 2).unsqueeze(3)
        assert (back - expected_q).abs().le(found.q_scale.transpose(1, 2).unsqueeze(3) * 0.501).all()
        scale = found.k_scale.repeat_interleave(attention8.BLOCK, 2)[:, :, :length].transpose(1, 2).unsqueeze(3)
        expected_k = k.float().unflatten(2, (HEADS, SIZE)) - about.k_mean.unsqueeze(1)
        assert (found.k.unflatten(2, (HEADS, SIZE)) * scale - expected_k).abs().le(scale * 0.501).all()
        assert found.q.abs().amax() == found.k.abs().amax() == attention8.STEPS  # no bit is left unused
        assert (found.v.float() != attention8.values_in_order(v, about).float()).float().mean() < 1e-3

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize(("batch", "length"), [(2, 40), (1, 128), (1, 200)])
    def test_program_for_ampere(batch: int, length: int, dtype: torch.dtype) -> None:
        q, k, v = (x.to(dtype) for x in given(batch, length))
        expected = attention8.reference(q.float(), k.float(), v.float(), HEADS, torch.float16)
        shared, kept = v.float().mean(1, keepdim=True), v.clone()
        out = ampere8.attention(q, k, v, HEADS)
        assert out.dtype == dtype and torch.equal(v, kept)
        assert error(out.float(), expected, shared) < ampere8.NEAR + last_digit(expected, dtype, shared)
        assert torch.equal(ampere8.attention_using_up(q, k, v, HEADS), out)


if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
    from wancore.wan_core.kernels import hopper8

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    @pytest.mark.parametrize(("batch", "length"), [(1, 64), (2, 1000), (1, 4097)])
    def test_program_on_hopper(batch: int, length: int, dtype: torch.dtype) -> None:
        q, k, v = (x.to(dtype) for x in given(batch, length))
        assert hopper8.accepts(q, k, v, HEADS)
        assert not hopper8.accepts(q, k[:, :-1], v[:, :-1], HEADS)
        expected, shared = attention8.reference(q.float(), k.float(), v.float(), HEADS), v.float().mean(1, keepdim=True)
        out = hopper8.attention(q, k, v, HEADS)
        assert error(out.float(), expected, shared) < hopper8.NEAR + last_digit(expected, dtype, shared)
