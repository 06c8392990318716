"""Linear layers in int8: the reference against exact products, and every program against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from wancore.wan_core import kernels
from wancore.wan_core.kernels import Form, int8
from wancore.wan_core.stream import Span

from .interpreted import ON_DEVICE, run_interpreted

if not ON_DEVICE:

    def test_parity_in_the_interpreter() -> None:
        assert "skipped" not in run_interpreted(__file__)


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {
    "one row": (1, 1, 256, 16),
    "no full tile": (2, 65, 512, 200),
    "several tiles": (1, 300, 768, 144),
}  # B, L, K, N
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}  # one rounding of the result
# Share of values that a sum in another order rounds to the neighbouring step; a card turns in tf32, whose 11 bits move
# one in 200 of tokens in bfloat16, and more of those in float32.
MOVED = 0.02 if DEVICE == "cuda" else 2e-3


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def with_outliers(x: Tensor) -> Tensor:
    """A few channels 60 times as large as the rest."""
    x = x.clone()
    x[..., 7::170] *= 60.0
    return x


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def plain(x: Tensor, weight: Tensor) -> Tensor:
    """The product of rows that are rounded to int8 as they are."""
    rows = [(part.abs().amax(-1, keepdim=True) / int8.STEPS, part) for part in (x, weight)]
    left, right = ((part / scale).round() * scale for scale, part in rows)
    return left @ right.mT


def test_turning_is_undone_and_keeps_products() -> None:
    x, weight = random(2, 5, 768), random(40, 768, seed=1)
    assert error(int8.turned_back(int8.turned(x)), x) < 1e-6
    assert error(int8.turned(x) @ int8.turned(weight).mT, x @ weight.mT) < 1e-5
    unit = torch.zeros(1, 512, device=DEVICE)
    unit[0, 3] = 16.0
    assert int8.turned(unit).abs().eq(1.0).sum() == 256 and not int8.turned(unit)[0, 256:].any()  # its own block alone


def test_outliers_cost_little() -> None:
    x, weight = with_outliers(random(1, 200, 1024)), random(96, 1024, seed=1)
    exact = x @ weight.mT
    turned = error(int8.linear(int8.formed(x, Form(x.dtype, torch.int8)), weight, None), exact)
    assert turned < 0.012 < 0.04 < error(plain(x, weight), exact)


def test_what_tokens_were_is_told() -> None:
    x = with_outliers(random(2, 7, 512))
    x[0, 3] = 0.0  # a row of zeros has a scale all the same
    rounded = kernels.formed(x, Form(torch.float32, torch.int8))
    assert isinstance(rounded, int8.Turned8) and rounded.exact is None and not rounded.dequantised()[0, 3].any()
    assert error(rounded.exact_tokens(), x) < 0.012
    kept = kernels.formed(x, Form(torch.bfloat16, torch.int8, exact=True))
    assert isinstance(kept, int8.Turned8) and torch.equal(kept.exact_tokens(), x.bfloat16())
    for whole in (rounded, kept):
        parts = kernels.split(whole, 3)
        assert all(isinstance(part, int8.Turned8) for part in parts)
        assert torch.equal(torch.cat([part.exact_tokens() for part in parts], 1), whole.exact_tokens())
    room = kernels.room_of(kept)
    assert room.dtype == torch.bfloat16 and room.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_steps_leave_tokens_in_int8(dtype: torch.dtype) -> None:
    """What comes is what the step alone leaves in `dtype`, rounded afterwards."""
    x, y, form = random(2, 6, 512).to(dtype), random(2, 6, 512, seed=1).to(dtype), Form(dtype, torch.int8)
    shift, scale, gate = random(2, 1, 3, 512, seed=2).unbind(2)
    weight, bias, spans = random(512, seed=3), random(512, seed=4), (Span(6, 1),)
    steps = [
        lambda form: kernels.modulated_norm(x, shift, scale, spans, eps=1e-6, form=form),
        lambda form: kernels.layer_norm(x, weight, bias, eps=1e-6, form=form),
        lambda form: kernels.gated_add_norm(x, y, gate, spans, weight, bias, eps=1e-6, form=form)[1],
        lambda form: kernels.add_modulated_norm(x, y, shift, scale, spans, eps=1e-6, form=form)[1],
        lambda form: kernels.gelu(x.clone(), form),
    ]
    for step in steps:
        found, expected = step(form), kernels.formed(step(Form(dtype)), form)
        assert isinstance(found, int8.Turned8) and torch.equal(found.values, expected.values)
        assert torch.equal(found.scale, expected.scale) and found.dtype == dtype


if ON_DEVICE:
    from wancore.wan_core.kernels import int8_fused

    # The interpreter has no products of bfloat16: they are compared on a card.
    TOKENS = tuple(CLOSE) if DEVICE == "cuda" else (torch.float32, torch.float16)

    def same_rows(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(found[1], expected[1], rtol=2e-3 if DEVICE == "cuda" else 1e-5, atol=1e-12)
        steps = (found[0].int() - expected[0].int()).abs()
        assert found[0].dtype == torch.int8 and steps.max() <= 1 and (steps > 0).float().mean() < MOVED

    @pytest.mark.parametrize("dtype", TOKENS, ids=str)
    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_rounding(size: tuple[int, ...], dtype: torch.dtype) -> None:
        x = with_outliers(random(*size[:3])).to(dtype)
        x[-1, -1] = 0.0
        assert int8_fused.accepts(x)
        same_rows(int8_fused.rounded_rows(x), int8.rounded_rows(x))

    @pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
    @pytest.mark.parametrize("dtype", CLOSE, ids=str)
    @pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
    def test_product(size: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
        """Of the same rounded rows, so that nothing but the sums and the last rounding can differ."""
        batch, length, width, columns = size
        x, weight = with_outliers(random(batch, length, width)), random(columns, width, seed=1)
        added = random(columns, seed=2).to(dtype) if bias else None
        rows, weights = int8.rounded_rows(x), int8.rounded_rows(weight)
        found = int8_fused.product(*rows, *weights, added, dtype)
        exact = (rows[0].double() @ weights[0].double().mT) * rows[1] * weights[1].squeeze(-1)
        expected = exact if added is None else exact + added.double()
        assert found.dtype == dtype and found.shape == (batch, length, columns)
        torch.testing.assert_close(found.double(), expected, rtol=2 * CLOSE[dtype], atol=1e-4)

    @pytest.mark.parametrize("dtype", TOKENS, ids=str)
    def test_layer(dtype: torch.dtype) -> None:
        """Through the choice of kernels, with parts that lie apart in memory."""
        x, weight, bias = random(2, 40, 512).to(dtype), random(48, 512, seed=1).to(dtype), random(48, seed=2).to(dtype)
        tokens = kernels.formed(x.transpose(0, 1).contiguous().transpose(0, 1), Form(dtype, torch.int8))
        expected = torch.nn.functional.linear(x.float(), weight.float(), bias.float())
        for part, exact in zip(kernels.split(tokens, 24), expected.split(24, 1), strict=True):
            out = kernels.linear8(part, weight, bias)
            assert out.dtype == dtype and error(out.float(), exact) < 0.02

    def test_refuses_what_it_cannot_do() -> None:
        x = random(4, 512)
        assert int8_fused.accepts(x) and kernels.has_int8(x.device)
        assert not int8_fused.accepts(random(4, 384)) and not int8_fused.accepts(x.double())
        assert not int8_fused.accepts(random(512, 512).mT) and not int8_fused.accepts(x[:, :256])
        assert not int8_fused.accepts(x.clone().requires_grad_())

    @pytest.mark.parametrize("broken", ["refuses", "wrong"])
    def test_a_triton_that_errs_is_not_used(broken: str, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
        caplog.set_level("INFO")
        product = int8_fused.product

        def changed(*given) -> Tensor:
            if broken == "refuses":
                raise RuntimeError("PassManager::run failed")
            return 1.01 * product(*given)

        int8_fused.works.cache_clear()
        before = torch.get_rng_state()
        monkeypatch.setattr(int8_fused, "product", changed)
        assert not kernels.has_int8(torch.device(DEVICE)) and ("PassManager" in caplog.text) == (broken == "refuses")
        assert torch.equal(torch.get_rng_state(), before)
        int8_fused.works.cache_clear()
