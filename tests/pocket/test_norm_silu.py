"""The VAEs' norm and SiLU with a gradient, against PyTorch's own, on CPU through Triton's interpreter or on the GPU."""

from __future__ import annotations

import pytest
import torch

from ..core.interpreted import ON_DEVICE, run_interpreted

pytest.importorskip("triton")

if not ON_DEVICE:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from wancore.pocket.training.norm_silu import ELEMENTS, _backward_kernel

    def test_parity_in_the_interpreter() -> None:
        assert "skipped" not in run_interpreted(__file__)

    @pytest.mark.parametrize("width", [8, 96])
    def test_it_compiles_for_hopper(width: int) -> None:
        block = triton.next_power_of_2(width)
        constants = {"ROWS": ELEMENTS // block, "BLOCK": block}
        types = dict.fromkeys(("x", "gamma", "gradient", "to_x"), "*bf16") | {"to_gamma": "*fp32"}
        types |= {"positions": "i32", "channels": "i32", "root": "fp32", "least": "fp32"}
        types |= dict.fromkeys(constants, "constexpr")
        names = _backward_kernel.arg_names
        given = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(_backward_kernel, {name: types[name] for name in names}, given)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        assert len(compiled.asm["cubin"]) > 0

else:
    from wancore.pocket import family, models
    from wancore.pocket.training import vae as training
    from wancore.pocket.training.norm_silu import NormSilu
    from wancore.wan_core.vae.frames import laid_out
    from wancore.wan_core.vae.norms import ChannelNorm

    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

    @pytest.mark.parametrize("shape", [(1, 8, 5, 12, 16), (3, 24, 1, 7, 9), (2, 96, 2, 4, 4)])
    def test_it_and_its_gradient_are_pytorchs(shape: tuple[int, ...]) -> None:
        random = torch.Generator().manual_seed(2)
        x = torch.randn(shape, generator=random)
        x[0, :, 0, 0, 0] = 0  # a vector without a length
        x[0, :, 0, 1, 1] *= 1e-13
        values = {}
        gamma = 1 + 0.3 * torch.randn((shape[1], 1, 1, 1), generator=random)
        upper = torch.randn(shape, generator=random).to(DEVICE)
        for name in ("plain", "kernel"):
            given = [laid_out(part.double() if name == "plain" else part) if part is x else part for part in (x, gamma)]
            given = [part.to(DEVICE).detach().requires_grad_() for part in given]
            if name == "plain":
                normed = torch.nn.functional.normalize(given[0], dim=1) * shape[1] ** 0.5 * given[1].double()
                made = torch.nn.functional.silu(normed)
            else:
                made = NormSilu.apply(*given)
                assert made.is_contiguous(memory_format=torch.channels_last_3d)
            made.backward(upper.to(made.dtype))
            values[name] = [made.detach(), *(part.grad for part in given)]
        for found, expected in zip(values["kernel"], values["plain"], strict=True):
            expected = expected.to(found.dtype)
            if found.ndim == 5:  # vectors without a length have gradients of another size: compared apart
                for place in ((0, 0), (1, 1)):
                    short = (0, slice(None), 0, *place)
                    assert (found[short] - expected[short]).norm() <= 3e-6 * expected[short].norm()
                    found[short] = expected[short] = 0
            assert expected.norm() > 1
            assert (found - expected).norm() <= 3e-6 * expected.norm()

    def test_a_vae_learns_the_same_with_it() -> None:
        model = models.load_weights(models.new_vae(), family.VAE).to(DEVICE)
        clips = torch.rand((2, 3, 5, 8, 8), generator=torch.Generator().manual_seed(3)).to(DEVICE) * 2 - 1
        found = {}
        for name in ("plain", "kernel"):
            model.zero_grad()
            if name == "kernel":
                for layer in model.modules():
                    if isinstance(layer, ChannelNorm):
                        layer.silu = training.silu_of(layer)
            mean, log_variance = training.posterior(model, clips, training.OneChunk())
            made = model.decoder(model.conv2(model.statistics.denormalise(mean)), training.OneChunk())
            (made.square().mean() + log_variance.mean()).backward()
            found[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert (found["kernel"] - found["plain"]).norm() <= 1e-4 * found["plain"].norm()
