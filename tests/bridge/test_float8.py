"""Float8 files over tokens rounded by rows: near the decoded weights, with LoRA exact beside them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.sd
import comfy.utils
from wancore.nodes.bridge import float8
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.lora_table import running
from wancore.nodes.bridge.model import load_model
from wancore.wan_core import paths
from wancore.wan_core.kernels import Form, Rows8, rows8

from .quantised_files import write_format
from .test_branches import LAYER, pairs, with_lora

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield
        float8._rows8_on.cache_clear()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    return write_format(tmp_path_factory.mktemp("float8") / "wan2.2_t2v_high_noise_14B", "fp8 scaled")


def velocity(patcher) -> torch.Tensor:
    """One forward in bfloat16, as on a GPU."""
    model = patcher.model.diffusion_model
    seed = torch.Generator().manual_seed(1)
    x = torch.randn(1, 16, 3, 8, 8, generator=seed).bfloat16()
    text = torch.randn(1, 20, model.config.text_dim, generator=seed).bfloat16()
    patcher.load(CPU, full_load=True)
    return model(x, torch.tensor([700.0]), text)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def both_ways(patcher, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor, list[Rows8]]:
    """The velocity by decoded weights and by rows, and what was multiplied by rows: every layer of the blocks."""
    decoded = velocity(patcher)
    monkeypatch.setenv(paths.OVERRIDE, "9.0")
    float8._rows8_on.cache_clear()
    calls: list[Rows8] = []
    monkeypatch.setattr(float8, "linear", lambda x, *rest: calls.append(x) or rows8.linear(x, *rest))
    by_rows = velocity(patcher)
    blocks = len(patcher.model.diffusion_model.blocks)
    assert len(calls) == 8 * blocks  # q, k, v, o, q and o of the cross-attention, both of the feed-forward
    return decoded, by_rows, calls


@pytest.mark.parametrize("lora", [False, True], ids=["alone", "with LoRA"])
def test_rows_are_near_the_decoded_weights(path: str, lora: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    patcher = load_model(path)
    if lora:
        patcher = with_lora(patcher, pairs())
    decoded, by_rows, calls = both_ways(patcher, monkeypatch)
    assert all((x.exact is not None) == lora for x in calls)
    assert 0 < difference(by_rows, decoded) < 0.05


def test_differences_of_biases_stay_in_8_bits(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LightX2V's LoRAs have them on every layer: they are added to the bias, for which no weight is decoded."""
    save_file(pairs(extra=True), tmp_path / "lightx2v_high_noise.safetensors")
    patcher = load_model(path)
    patcher = apply_lora(patcher, str(tmp_path / "lightx2v_high_noise.safetensors"), "lightx2v", 1.0)[0]
    with running(patcher.model, patcher.model_options["transformer_options"], 0):
        decoded, by_rows, _ = both_ways(patcher, monkeypatch)
    assert 0 < difference(by_rows, decoded) < 0.05


def test_layers_say_what_they_take(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.OVERRIDE, "9.0")
    float8._rows8_on.cache_clear()
    patcher = load_model(path)
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, LAYER)
    half = torch.bfloat16
    assert float8.form(CPU, half, layer) == Form(half, rows8.FLOAT8)
    assert float8.form(CPU, torch.float32, layer) == Form(torch.float32)
    embedding = patcher.model.diffusion_model.text_embedding[0]
    assert float8.form(CPU, half, layer, embedding) == Form(half)  # stored in bfloat16
    layer.weight_function = [lambda weight: weight]
    assert float8.form(CPU, half, layer) == Form(half)  # someone else's patch needs the decoded weight
    layer.weight_function = []
    with torch.inference_mode(False), torch.enable_grad():
        assert float8.form(CPU, half, layer) == Form(half)


@pytest.mark.parametrize("card", ["8.6:12", "8.9:12"])
def test_other_cards_keep_comfyui_s_way(path: str, card: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.OVERRIDE, card)
    monkeypatch.setattr(torch, "__version__", "2.11.0")  # from 2.12 on, sm_89 multiplies by rows, too
    float8._rows8_on.cache_clear()
    layer = comfy.utils.get_attr(load_model(path).model.diffusion_model, LAYER)
    assert float8.form(CPU, torch.bfloat16, layer) == Form(torch.bfloat16)


@pytest.mark.parametrize("broken", ["refuses", "wrong"])
def test_a_card_that_cannot_multiply_rows_keeps_comfyui_s_way(
    path: str, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def product(x: Rows8, *rest: torch.Tensor) -> torch.Tensor:
        if broken == "refuses":
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return 2 * linear(x, *rest)

    linear = rows8.linear
    layer = comfy.utils.get_attr(load_model(path).model.diffusion_model, LAYER)
    monkeypatch.setenv(paths.OVERRIDE, "12.0")
    monkeypatch.setattr(rows8, "linear", product)
    assert float8.form(CPU, torch.bfloat16, layer) == Form(torch.bfloat16)


def test_the_trial_leaves_the_noise_of_a_run_alone() -> None:
    before = torch.get_rng_state()
    assert rows8.works(CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_products_of_few_rows_are_decoded() -> None:
    """cuBLAS refuses them; on the GPU this takes the other branch only above the bound."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for tokens in (1, 16, rows8.LEAST_ROWS, rows8.LEAST_ROWS + 1):
        x = torch.randn(1, tokens, 64, device=device, dtype=torch.bfloat16)
        weight = torch.randn(32, 64, device=device).to(rows8.FLOAT8)
        out = rows8.linear(rows8.formed(x, Form(x.dtype, rows8.FLOAT8)), weight, torch.tensor(0.5, device=device), None)
        assert difference(out.float(), x.float() @ weight.float().t() * 0.5) < 0.05
