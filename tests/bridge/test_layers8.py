"""The option for layers in int8 on MODELs; its arithmetic is in tests/core/test_int8.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.sample
import comfy.utils
from safetensors.torch import save_file
from torch import Tensor
from wancore.nodes.bridge import float8, int8, residency
from wancore.nodes.bridge.eight_bits import LAYERS, possible
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.lora_table import running
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.ops import form
from wancore.tools.benchmark import engines, kept, workloads
from wancore.wan_core import paths
from wancore.wan_core.kernels import Form, Turned8, has_int8, linear8
from wancore.wan_core.planner.rounding import NOTHING, InEightBits

from .native_wan import noise, prompts, relative
from .quantised_files import FORMATS, family, is_known, write_format
from .test_branches import LAYER, pairs, with_lora

CPU = torch.device("cpu")
NAME = "wan2.2_t2v_high_noise_14B"
OF_A_BLOCK = 8  # q, k, v, o, q and o of the cross-attention, both of the feed-forward
NEAR = 0.03  # relative, after all blocks
ALLOWED = 1.5  # times the error of ComfyUI's own layers over float8
KINDS = [kind for kind in ("F16", *FORMATS) if is_known(kind)]
NATIVE = [kind for kind in KINDS if kind.startswith(("int8", "convrot"))]  # what ComfyUI multiplies in integers anyway

pytestmark = pytest.mark.usefixtures("no_room", "inference")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Turned8]:
    """What is multiplied in int8, on a CPU that takes the reference for a kernel."""
    found: list[Turned8] = []
    monkeypatch.setattr(int8, "_int8_on", lambda device: True)
    monkeypatch.setattr(int8, "linear8", lambda x, *rest: found.append(x) or linear8(x, *rest))
    return found


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind not in NATIVE])
def file(request, tmp_path_factory) -> str:
    return write_format(tmp_path_factory.mktemp("layers8") / NAME, request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return write_format(tmp_path_factory.mktemp("layers8") / NAME, "F16")


def velocity(patcher, dtype: torch.dtype = torch.bfloat16, batch: int = 1, **more: bool) -> Tensor:
    """One forward with the options of a MODEL, and more of them."""
    model, seed = patcher.model.diffusion_model, torch.Generator().manual_seed(1)
    x = torch.randn(batch, 16, 3, 8, 8, generator=seed).to(dtype)
    text = torch.randn(batch, 20, model.config.text_dim, generator=seed).to(dtype)
    patcher.load(CPU, full_load=True)
    options = {**patcher.model_options.get("transformer_options", {}), **more}
    return model(x, torch.full((batch,), 700.0), text, transformer_options=options)


@pytest.mark.parametrize("lora", [False, True], ids=["alone", "with LoRA"])
def test_files_of_every_storage_multiply_in_int8(file: str, lora: bool, calls: list[Turned8]) -> None:
    exact = load_model(file)
    if lora:
        exact = with_lora(exact, pairs())
    expected = velocity(exact)
    assert not calls
    found = velocity(LAYERS.put_on(exact))
    assert len(calls) == OF_A_BLOCK * len(exact.model.diffusion_model.blocks)
    assert all(x.values.dtype == torch.int8 for x in calls)
    assert 0 < relative(found, expected) < NEAR
    assert torch.equal(velocity(exact), expected)  # the original stays as it is


@pytest.mark.parametrize("kind", NATIVE)
def test_integers_are_multiplied_as_they_are(kind: str, tmp_path: Path, calls: list[Turned8]) -> None:
    model = load_model(write_format(tmp_path / NAME, kind))
    assert torch.equal(velocity(LAYERS.put_on(model)), velocity(model)) and not calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_other_types_of_computing(plain: str, dtype: torch.dtype, calls: list[Turned8]) -> None:
    model = load_model(plain, dtype=dtype)
    expected, found = velocity(model, dtype), velocity(LAYERS.put_on(model), dtype)
    assert calls[0].dtype == dtype and 0 < relative(found, expected) < NEAR


@pytest.mark.parametrize("batch", [1, 2])
def test_sparing_calls_take_parts(plain: str, batch: int, calls: list[Turned8]) -> None:
    """Parts of several samples lie apart in memory."""
    model = LAYERS.put_on(load_model(plain, dtype=torch.float32))
    whole = velocity(model, torch.float32, batch)
    every = len(calls)
    parts = velocity(model, torch.float32, batch, **{residency.OPTION: True})
    assert len(calls) - every > every and relative(parts, whole) < 1e-5
    assert any(not x.values.is_contiguous() for x in calls) == (batch > 1)


def test_loras_of_the_table_get_exact_tokens(plain: str, tmp_path: Path, calls: list[Turned8]) -> None:
    """Beside weights of floating point too, and with what is added to biases."""
    save_file(pairs(extra=True), tmp_path / "lightx2v_high_noise.safetensors")
    model = load_model(plain)
    changed = apply_lora(model, str(tmp_path / "lightx2v_high_noise.safetensors"), "a", 1.0, merge=False)[0]
    with running(changed.model, changed.model_options["transformer_options"], 0):
        expected, found = velocity(changed), velocity(LAYERS.put_on(changed))
    assert all(x.exact is not None for x in calls)
    assert 0 < relative(found, expected) < NEAR < relative(found, velocity(model))


def test_layers_say_what_they_take(plain: str, calls: list[Turned8]) -> None:
    patcher = load_model(plain)
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, LAYER)
    text = patcher.model.diffusion_model.text_embedding[0]
    half = torch.bfloat16
    assert form(CPU, half, layer, int8=True) == Form(half, torch.int8)
    assert form(CPU, half, layer) == Form(half)
    assert form(CPU, torch.float64, layer, int8=True) == Form(torch.float64)
    layer.in_features = 384  # no whole blocks
    assert form(CPU, half, layer, int8=True) == form(CPU, half, layer, text, int8=True) == Form(half)
    layer.in_features = 256
    layer._full_precision_mm_config = True  # what a file can ask for
    assert form(CPU, half, layer, int8=True) == Form(half)
    layer._full_precision_mm_config = False
    with torch.inference_mode(False), torch.enable_grad():
        assert form(CPU, half, layer, int8=True) == Form(half)


@pytest.mark.parametrize(("card", "first"), [("9.0", torch.float8_e4m3fn), ("8.9", torch.int8)])
def test_float8_goes_first_on_hopper(
    card: str, first: torch.dtype, plain: str, tmp_path: Path, calls: list[Turned8], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it is no slower, and needs no pass of its own to be turned."""
    monkeypatch.setenv(paths.OVERRIDE, card)
    monkeypatch.setattr(float8, "_rows8_on", lambda device: True)
    int8.float8_first.cache_clear()
    files = {plain: torch.int8, write_format(tmp_path / NAME, "fp8 scaled"): first}
    for file, values in files.items():
        layer = comfy.utils.get_attr(load_model(file).model.diffusion_model, LAYER)
        assert form(CPU, torch.bfloat16, layer, int8=True).values is values
    int8.float8_first.cache_clear()


def test_a_sampling_stays_near(plain: str, calls: list[Turned8]) -> None:
    model = load_model(plain, dtype=torch.float32)
    texts = [[[text[..., : family.TEXT_DIM], rest] for text, rest in given] for given in prompts()]

    def sampled(patcher) -> Tensor:
        start = noise()
        given = (*texts, torch.zeros_like(start))
        return comfy.sample.sample(patcher, start, 4, 1.0, "euler", "simple", *given, disable_pbar=True, seed=1)

    exact, found = sampled(model), sampled(LAYERS.put_on(model))
    assert calls and 0 < relative(found, exact) < NEAR
    assert torch.equal(sampled(model), exact)


def test_error_beside_float8_of_comfyui(tmp_path: Path, calls: list[Turned8], float8_card: None) -> None:
    """On channels with outliers, over a file of 16 bits and over one of float8, whose own error comes on top."""
    files, workload = kept.Kept(tmp_path, CPU, smoke=True), workloads.SMOKE_ERROR
    paths = {kind: files.transformer(workload.shapes, kind, 2, outliers=True) for kind in engines.PLAIN}
    given = engines.inputs(workload, CPU)
    reference = engines.forward(load_model(str(paths["bf16"]), dtype=torch.float32), given)()
    error = {"ComfyUI": relative(engines.NATIVE.ready(paths["fp8 scaled"], None, given)(), reference)}
    assert not calls
    for kind, file in paths.items():
        error[kind] = relative(engines.forward(LAYERS.put_on(load_model(str(file))), given)(), reference)
    assert len(calls) == 2 * 2 * OF_A_BLOCK
    assert all(error[kind] <= ALLOWED * error["ComfyUI"] for kind in paths), error


def test_exact_without_a_kernel(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named card does not bring the programs along."""
    model = load_model(plain)
    assert LAYERS.path().name == "exact" and not LAYERS.is_on({LAYERS.option: True}) and possible() == NOTHING
    monkeypatch.setenv(paths.OVERRIDE, "8.6:12")
    int8._int8_on.cache_clear()
    assert LAYERS.path().name == "int8" and LAYERS.is_on({LAYERS.option: True}) and not LAYERS.is_on({})
    assert possible() == InEightBits(attention=True, layers=True)
    assert not has_int8(CPU) and torch.equal(velocity(LAYERS.put_on(model)), velocity(model))
    int8._int8_on.cache_clear()
