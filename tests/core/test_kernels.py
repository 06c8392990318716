"""Every fused kernel against its eager reference, on CPU through Triton's interpreter or on the GPU."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch

from .interpreted import ON_DEVICE, run_interpreted

if not ON_DEVICE:

    def test_parity_in_the_interpreter() -> None:
        assert "skipped" not in run_interpreted(__file__)

else:
    from wancore.wan_core import kernels
    from wancore.wan_core.kernels import channels, convolution, eager, fused, ggml, rows8, taps, trial
    from wancore.wan_core.kernels.rows8 import Form, Rows8
    from wancore.wan_core.ops import TorchOps
    from wancore.wan_core.rope import grid_axes, grid_rotation
    from wancore.wan_core.stream import Span
    from wancore.wan_core.vae import causal, convolutions
    from wancore.wan_core.vae.frames import FrameCache
    from wancore.wan_core.weights import ggml as blocks
    from wancore.wan_core.weights.ggml_types import BLOCK_TYPES, BY_NAME

    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    WIDTHS = (5120, 3072, 1536, 640, 96) if DEVICE == "cuda" else (640, 96)
    SPANS = {
        "one row": (Span(12, 1),),
        "row per frame": (Span(12, 3),),
        "row per token": (Span(12, 12),),
        "groups with their own rows": (Span(12, 3), Span(5, 1), Span(2, 1)),
    }
    TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # one rounding of the result

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return (2 * torch.randn(shape, generator=generator) + 0.3).to(dtype).to(DEVICE)

    FLOAT8 = rows8.FLOAT8
    FORMS = {
        "rounded": Form,
        "float8": lambda dtype: Form(dtype, FLOAT8),
        "both": lambda dtype: Form(dtype, FLOAT8, exact=True),
    }

    def close(ours: torch.Tensor | Rows8, reference: torch.Tensor | Rows8) -> None:
        if isinstance(reference, Rows8):
            same_rows(ours, reference)
            return
        assert ours.dtype == reference.dtype and ours.shape == reference.shape
        torch.testing.assert_close(ours, reference, rtol=TOLERANCE[ours.dtype], atol=10 * TOLERANCE[ours.dtype])

    def same_rows(ours: torch.Tensor | Rows8, reference: Rows8) -> None:
        """Scales to float32 rounding; values to the neighbour, which a sum in another order can round to."""
        assert isinstance(ours, Rows8) and ours.dtype == reference.dtype
        torch.testing.assert_close(ours.scale, reference.scale, rtol=1e-5, atol=1e-12)
        values, expected = ours.values.float(), reference.values.float()
        assert (values - expected).abs().le(expected.abs() / 8 + 2**-9).all()
        assert (values != expected).float().mean() < 2e-3
        assert (ours.exact is None) == (reference.exact is None)
        if ours.exact is not None and reference.exact is not None:
            close(ours.exact, reference.exact)

    @pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("width", WIDTHS)
    def test_modulated_norm_and_gated_add(width: int, dtype: torch.dtype, spans: tuple[Span, ...]) -> None:
        tokens, rows = sum(s.tokens for s in spans), sum(s.rows for s in spans)
        x, y = random(2, tokens, width, dtype=dtype), random(2, tokens, width, dtype=dtype)
        shift, scale, gate = random(2, rows, 3, width).unbind(2)
        assert fused.accepts(x, shift, scale)
        close(
            fused.modulated_norm(x, shift, scale, spans, eps=1e-6, form=Form(dtype)),
            eager.modulated_norm(x, shift, scale, spans, eps=1e-6, form=Form(dtype)),
        )
        expected = eager.gated_add(x, y, gate, spans)
        close(fused.gated_add(x, y, gate, spans), expected)
        assert fused.gated_add(x, y, gate, spans, in_place=True) is x
        close(x, expected)

    @pytest.mark.parametrize("spans", [SPANS["one row"], SPANS["groups with their own rows"]], ids=["one", "groups"])
    @pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
    @pytest.mark.parametrize("width", WIDTHS[-1:])
    def test_sum_and_norm(width: int, form: Callable[..., Form], spans: tuple[Span, ...]) -> None:
        tokens, rows = sum(s.tokens for s in spans), sum(s.rows for s in spans)
        x, y = random(2, tokens, width, dtype=torch.bfloat16), random(2, tokens, width, dtype=torch.bfloat16).flip(1)
        shift, scale, gate = random(2, rows, 3, width).unbind(2)
        weight, bias = random(width), random(width + 1)[1:]
        asked = {"eps": 1e-6, "form": form(torch.bfloat16)}
        sums, normed = fused.add_modulated_norm(x, y, shift, scale, spans, **asked)
        close(sums, x + y)
        close(normed, eager.modulated_norm(sums, shift, scale, spans, **asked))
        sums, normed = fused.gated_add_norm(x, y, gate, spans, weight, bias, **asked)
        close(sums, eager.gated_add(x, y, gate, spans))
        close(normed, eager.layer_norm(sums, weight, bias, **asked))
        reference = eager.gated_add_norm(x, y, gate, spans, weight, bias, **asked)[0]
        assert torch.equal(reference, eager.gated_add(x, y, gate, spans))
        assert torch.equal(eager.add_modulated_norm(x, y, shift, scale, spans, **asked)[0], x + y)

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("exact", [False, True])
    def test_eight_bits(exact: bool, dtype: torch.dtype) -> None:
        x = random(2, 7, 640, dtype=dtype)
        x[0, 3] = 0  # a row of zeros has a scale all the same
        x[1, 2, 5] = 300  # an outlier costs its own row only
        form = Form(dtype, FLOAT8, exact)
        close(fused.formed(x, form), rows8.formed(x, form))
        close(fused.gelu(x, form), eager.gelu(x, form))
        rounded = fused.formed(x, form)
        assert isinstance(rounded, Rows8)
        error = (rounded.dequantised().float() - x.float()).norm(dim=-1) / x.float().norm(dim=-1).clamp(min=1e-9)
        assert error.max() < 0.04  # 3 bits of mantissa
        parts = kernels.split(rounded, 3)
        assert [part.values.shape[1] for part in parts] == [3, 3, 1]
        assert torch.equal(torch.cat([part.dequantised() for part in parts], 1), rounded.dequantised())
        assert torch.equal(torch.cat([part.exact_tokens() for part in parts], 1), rounded.exact_tokens())

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("width", WIDTHS)
    def test_norms_with_weights(width: int, dtype: torch.dtype) -> None:
        x, weight, bias = random(2, 7, width, dtype=dtype), random(width), random(width + 1)[1:]
        close(
            fused.layer_norm(x, weight, bias, eps=1e-6, form=Form(dtype)),
            eager.layer_norm(x, weight, bias, eps=1e-6, form=Form(dtype)),
        )
        close(fused.rms_norm(x, weight, eps=1e-6), eager.rms_norm(x, weight, eps=1e-6))

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("heads", [1, 5])
    def test_norm_and_rotation(heads: int, dtype: torch.dtype) -> None:
        x, weight = random(2, 24, heads * 128, dtype=dtype), random(heads * 128)
        turns = grid_rotation(grid_axes((2, 3, 4)), 128, like=weight)
        ours = fused.rms_norm_rotate(x, weight, turns, heads, eps=1e-6)
        close(ours, eager.rms_norm_rotate(x, weight, turns, heads, eps=1e-6))

    def test_norms_may_write_where_they_read() -> None:
        x, weight = random(2, 24, 640), random(640)
        turns = grid_rotation(grid_axes((2, 3, 4)), 128, like=weight)
        for norm in (
            lambda x, **place: fused.rms_norm(x, weight, eps=1e-6, **place),
            lambda x, **place: fused.rms_norm_rotate(x, weight, turns, 5, eps=1e-6, **place),
        ):
            expected, own = norm(x), x.clone()
            assert torch.equal(norm(own, in_place=True), expected) and torch.equal(own, expected.flatten(2))
        own = x.clone()
        with torch.inference_mode():
            kernels.rms_norm(own, weight, eps=1e-6)
        assert not torch.equal(own, x)  # a projection's result is nobody else's
        kernels.rms_norm(x, weight, eps=1e-6)
        torch.testing.assert_close(x, random(2, 24, 640))  # under autograd it is kept

    def test_strided_rows_are_read_where_they_are() -> None:
        x = random(2, 6, 4, 96)[:, :, 1]  # tokens apart from each other, values together
        weight = random(96)
        assert not x.is_contiguous() and fused.accepts(x, weight)
        close(fused.rms_norm(x, weight, eps=1e-6), eager.rms_norm(x, weight, eps=1e-6))

    # The interpreter cuts bfloat16 off where a GPU rounds it.
    @pytest.mark.parametrize("dtype", TOLERANCE if DEVICE == "cuda" else (torch.float32, torch.float16), ids=str)
    @pytest.mark.parametrize("name", sorted(BLOCK_TYPES))
    def test_blocks_are_decoded_to_the_bit(name: str, dtype: torch.dtype) -> None:
        kind = BY_NAME[name]
        count = ggml.SPAN // kind.elements + 3  # more than one program, the last one not full
        generator = torch.Generator().manual_seed(7)
        packed = torch.randint(0, 256, (count, kind.nbytes), generator=generator, dtype=torch.uint8).to(DEVICE)
        packed[0] = 0xFF
        assert ggml.accepts(packed, kind)
        shape = (count, kind.elements)
        ours, reference = (f(packed, kind, shape, dtype) for f in (kernels.dequantize, blocks.dequantize))
        assert ours.shape == shape and torch.equal(torch.isnan(ours), torch.isnan(reference))
        finite = ~torch.isnan(reference)
        assert torch.equal(ours[finite], reference[finite])

    def test_blocks_that_are_refused() -> None:
        packed = torch.zeros(145, dtype=torch.uint8, device=DEVICE)
        assert not ggml.accepts(packed, BY_NAME["Q4_K"]) and not ggml.accepts(packed[1:], BY_NAME["Q4_K"])
        assert not ggml.accepts(packed[:144], BY_NAME["F16"]) and ggml.accepts(packed[:144], BY_NAME["Q4_K"])

    def test_a_triton_that_does_not_work_here_leaves_it_to_pytorch(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
        """As without a C compiler, or with a type that the card lacks: no forward may end with it."""
        x, weight = random(2, 6, 96), random(96)
        assert trial.works(x.device, torch.bfloat16) and trial.works(x.device, torch.float16)

        class Broken:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

        trial.works.cache_clear()
        monkeypatch.setattr(trial, "_double", Broken())
        assert not fused.accepts(x, weight) and "C compiler" in caplog.text
        close(kernels.rms_norm(x, weight, eps=1e-6), eager.rms_norm(x, weight, eps=1e-6))
        packed = torch.zeros(144, dtype=torch.uint8, device=DEVICE)
        called: list[int] = []
        monkeypatch.setattr(ggml, "dequantize", lambda *_: called.append(1))
        assert kernels.dequantize(packed, BY_NAME["Q4_K"], (1, 256), torch.float16).shape == (1, 256) and not called
        clip = random(1, 32, 3, 5, 7).contiguous(memory_format=torch.channels_last_3d)
        assert not channels.accepts(clip, random(32, 1, 1, 1))
        assert not convolution.accepts(clip, random(8, 32, 3, 3, 3))
        trial.works.cache_clear()

    def test_refuses_what_it_cannot_do() -> None:
        weight = random(96)
        assert not fused.accepts(random(2, 96, 6).transpose(1, 2), weight)
        assert not fused.accepts(random(2, 6, 96).double(), weight)
        assert not fused.accepts(random(2, 6, 96).requires_grad_(), weight)

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    @pytest.mark.parametrize("shape", [(1, 96, 3, 5, 7), (2, 20, 1, 9, 4)], ids=str)
    def test_channel_norm_and_silu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
        last = torch.channels_last_3d
        x = random(*shape, dtype=dtype).contiguous(memory_format=last)
        x[:, :, 0, 2, 1] = 0  # no length to divide by
        norm = causal.ChannelNorm(shape[1], 3, None, torch.float32)
        norm.gamma.data = random(*norm.gamma.shape)
        norm.requires_grad_(False).to(DEVICE)
        past = random(*shape[:2], 2, *shape[3:], dtype=dtype).contiguous(memory_format=last)
        reference = torch.nn.functional.silu(norm(x.float())).to(dtype)
        assert channels.accepts(x, norm.gamma)
        close(norm.silu(x, None), reference)
        joined = norm.silu(x, past)
        assert joined.is_contiguous(memory_format=last)
        assert torch.equal(joined[:, :, :2], past)
        close(joined[:, :, 2:], reference)
        assert not channels.accepts(x.contiguous(), norm.gamma)
        assert not channels.accepts(x.detach().requires_grad_(), norm.gamma)

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_frames_within_a_border(dtype: torch.dtype) -> None:
        clip = random(2, 20, 3, 5, 7, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
        expected = torch.nn.functional.pad(clip, (1, 1, 1, 1)).movedim(1, -1)
        assert torch.equal(channels.bordered(clip), expected)

    @pytest.mark.parametrize(("outputs", "many", "calls"), [(40, 10**9, 3), (3, 10**9, 3), (32, 100, 5)])
    def test_causal_convolution_in_chunks(outputs: int, many: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
        layers = causal.Layers(TorchOps, torch.device(DEVICE), torch.float32)
        conv, norm = layers.conv3d(32, outputs, (3, 3, 3)), layers.norm(32)
        norm.gamma.data.normal_()
        laid = {"memory_format": torch.channels_last_3d}
        clip, addend = random(2, 32, 6, 5, 7).contiguous(**laid), random(2, outputs, 6, 5, 7).contiguous(**laid)

        def whole() -> torch.Tensor:
            cache = FrameCache()
            with torch.no_grad():
                parts = [
                    convolutions.causal_conv(
                        conv, part.clone(**laid), cache, TorchOps, norm=norm, addend=more, spare=True
                    )
                    for part, more in zip(clip.split((1, 2, 3), 2), addend.split((1, 2, 3), 2), strict=True)
                ]
            return torch.cat(parts, dim=2)

        monkeypatch.setattr(convolutions, "MANY", many)

        normed: list[Callable[[], object]] = []
        silu = type(norm).bordered_silu

        def bordered_silu(*args) -> torch.Tensor:
            assert all(made() is None for made in normed), "an earlier half is still there"
            out = silu(*args)
            normed.append(weakref.ref(out))
            return out

        monkeypatch.setattr(type(norm), "bordered_silu", bordered_silu)
        used: list[int] = []
        kernel = convolution.convolve
        monkeypatch.setattr(convolution, "convolve", lambda *args, **more: used.append(1) or kernel(*args, **more))
        ours = whole()
        assert len(used) == calls
        monkeypatch.setattr(convolutions, "_has_kernel", lambda *_: False)
        torch.testing.assert_close(ours, whole(), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("past", [slice(0, 2), slice(5, 7), slice(1, 2), slice(0, 0), "far"], ids=str)
    def test_frames_before_lie_anywhere(past: slice | str, monkeypatch: pytest.MonkeyPatch) -> None:
        if isinstance(past, str):
            past = slice(0, 2)
            monkeypatch.setattr(convolution, "FARTHEST", 0)
        frames, weight = random(1, 7, 6, 8, 32), random(16, 32, 3, 3, 3)
        new, before = frames[:, 2:5], frames[:, past]
        missing = frames.new_zeros(1, 2 - before.shape[1], 6, 8, 32)
        joined = convolution.convolve(torch.cat((missing, before, new), dim=1), weight, None)[:, :, 2:]
        apart = convolution.convolve(new, weight, None, past=before if before.shape[1] else None)
        assert torch.equal(joined, apart)

    @pytest.mark.parametrize("shortcut", [None, (32, 2, True), (48, 2, False), (24, 1, False)], ids=str)
    def test_enlarging_convolution(shortcut: tuple[int, int, bool] | None, monkeypatch: pytest.MonkeyPatch) -> None:
        conv = causal.Layers(TorchOps, torch.device(DEVICE), torch.float32).conv2d(32, 24, 3, padding=1)
        laid, frames, spread = {"memory_format": torch.channels_last_3d}, 3, None
        if shortcut:
            channels, times, first = shortcut
            spread = convolutions.Shortcut(random(2, channels, 2, 5, 7).contiguous(**laid), 24, times, first)
            frames = 2 * times - (times - 1 if first else 0)
        clip = random(2, 32, frames, 5, 7).contiguous(**laid)
        with torch.no_grad():
            ours = convolutions.enlarging_conv(conv, clip, TorchOps, spread)
            monkeypatch.setattr(convolutions, "_has_kernel", lambda *_: False)
            reference = convolutions.enlarging_conv(conv, clip, TorchOps, spread)
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_turned_weights_equal_a_copy(dtype: torch.dtype) -> None:
        weight = random(3, 160, 3, 3, 3, dtype=dtype)
        for part in (weight, weight[:, :, -1:], weight.contiguous(memory_format=torch.channels_last_3d)):
            assert torch.equal(taps.turned(part), part.movedim(1, -1).reshape(3, -1))

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
    def test_weights_of_an_enlarged_image_equal_rounded_sums(dtype: torch.dtype) -> None:
        weight = random(3, 160, 3, 3, dtype=dtype)
        first, middle, last = weight.float().unbind(2)  # rows, which are added first
        for phase, matrix in enumerate(taps.enlarging(weight).view(4, 3, 4, 160).unbind()):
            rows = (first + middle, last) if phase // 2 else (first, middle + last)
            left, centre, right = torch.stack(rows, 2).unbind(3)  # [3, 160, 2]
            columns = (left + centre, right) if phase % 2 else (left, centre + right)
            expected = torch.stack(columns, 3).flatten(2).transpose(1, 2).to(dtype)
            close(matrix, expected)
            if DEVICE == "cuda" or dtype is not torch.bfloat16:  # which the interpreter cuts off
                assert torch.equal(matrix, expected)

    def test_convolutions_that_stay_with_pytorch() -> None:
        layers = causal.Layers(TorchOps, torch.device(DEVICE), torch.float32)
        assert convolution.fits(layers.conv3d(32, 32, (3, 3, 3)))
        assert not convolution.fits(layers.conv3d(32, 32, (3, 1, 1)))
        assert not convolution.fits(layers.conv2d(32, 32, 3, stride=2))
        dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32  # the card's kernel takes halves
        x, weight = random(1, 32, 1, 4, 4, dtype=dtype), random(8, 32, 3, 3, 3, dtype=dtype)
        assert convolution.accepts(x, weight) and not convolution.accepts(x[:, :16], weight)
        assert not convolution.accepts(x.requires_grad_(), weight)
