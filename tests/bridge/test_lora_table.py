"""Strengths of LoRAs as data of the run: read at every call, for each step, with nothing loaded for a change."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.lora
import comfy.model_management as management
import comfy.sd
import comfy.utils
from comfy.model_patcher import ModelPatcher
from wancore.nodes.bridge import dora
from wancore.nodes.bridge import lora_table as table
from wancore.nodes.bridge.guider import DualExpertGuider
from wancore.nodes.bridge.identity import model_identity
from wancore.nodes.bridge.lora import _readable, apply_lora
from wancore.nodes.bridge.lora_table import rows_of, step_of, with_strengths
from wancore.nodes.bridge.model import load_model
from wancore.nodes.lora import of_steps
from wancore.wan_core.errors import InputError

from .quantised_files import family, weights, write_format
from .test_branches import ALLOWED, LAYER, delta, effective, load, pairs, path, stored  # noqa: F401
from .tiny_models import text, write_lora, write_tiny

SIGMAS = torch.tensor([1.0, 0.9, 0.6, 0.0])


pytestmark = pytest.mark.usefixtures("no_room", "inference")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("table")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(write_tiny(folder / "wan2.2_t2v_high_noise_14B.safetensors", "t2v_A14B_expert"))


@pytest.fixture(scope="module")
def lora(folder):
    """Pairs, and differences of norms, biases, the head and modulation, as published files have them."""
    file = folder / "lightx2v_high_noise.safetensors"
    tensors = load_file(write_lora(file, "t2v_A14B_expert"))
    generator = torch.Generator().manual_seed(3)
    width = load_file(folder / "wan2.2_t2v_high_noise_14B.safetensors")["head.modulation"].shape[-1]
    for name, size in (
        ("blocks.1.diff_m", (1, 6, width)),
        ("head.diff_m", (1, 2, width)),
        ("patch_embedding.diff_b", (width,)),
    ):
        tensors[f"diffusion_model.{name}"] = 0.1 * torch.randn(size, generator=generator)
    save_file(tensors, file)
    return str(file)


def predict(patcher, step: int = 0) -> torch.Tensor:
    management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {
        **patcher.model_options["transformer_options"],
        "sample_sigmas": SIGMAS,
        "sigmas": SIGMAS[step : step + 1],
    }
    return patcher.model.apply_model(noise, torch.tensor([0.9]), c_crossattn=text(), transformer_options=options)


def beside(model, lora, strength, **kwargs):
    return apply_lora(model, lora, "lightx2v_high_noise.safetensors", strength, merge=False, **kwargs)[0]


def test_the_table_agrees_with_the_merge(model, lora):
    merged, match = apply_lora(model, lora, "a", 0.7)
    table, match_beside = apply_lora(model, lora, "a", 0.7, merge=False)
    assert (match.applied, match.beside, match_beside.beside) == (match_beside.applied, False, True)
    assert not match.unknown and "merged" in match.report() and "beside" in match_beside.report()
    plain, expected = predict(model), predict(merged)
    assert (plain - expected).norm() > 0.01 * plain.norm()
    assert torch.allclose(predict(table), expected, atol=2e-4)
    assert not table.patches
    assert torch.equal(predict(model), plain), "the LoRA has left something behind"


def test_bf16_weights_agree_too(folder, lora):
    bf16 = load_model(
        write_tiny(folder / "wan2.2_t2v_high_noise_bf16.safetensors", "t2v_A14B_expert", dtype=torch.bfloat16)
    )
    plain = predict(bf16)
    merged, table = predict(apply_lora(bf16, lora, "a", 1.0)[0]), predict(beside(bf16, lora, 1.0))
    change = (merged - plain).norm()
    assert change > 0.05 * plain.norm()
    assert (table - merged).norm() < 0.1 * change  # the merged sum is rounded to bfloat16


def adapters(kind: str, layer: str, shape: torch.Size) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    rand = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    if kind == "loha":
        parts = {"hada_w1_a": rand(shape[0], 2), "hada_w1_b": rand(2, shape[1])}
        parts |= {"hada_w2_a": 0.1 * rand(shape[0], 2), "hada_w2_b": rand(2, shape[1])}
    elif kind == "lokr":
        parts = {"lokr_w1": 0.1 * rand(4, 4), "lokr_w2": rand(shape[0] // 4, shape[1] // 4)}
    else:
        parts = {"lora_A.weight": rand(4, shape[1]), "lora_B.weight": 0.1 * rand(shape[0], 4)}
        parts["lora_magnitude_vector"] = 1.0 + rand(shape[0]).abs()
    return {f"diffusion_model.{layer}.{name}": tensor for name, tensor in parts.items()}


@pytest.mark.parametrize("kind", ["loha", "lokr", "dora"])
def test_other_adapters_agree_with_the_merge(kind, model, lora, tmp_path):
    shape = comfy.utils.get_attr(model.model.diffusion_model, "blocks.0.ffn.0").weight.shape
    save_file(adapters(kind, "blocks.0.ffn.0", shape), tmp_path / "a.safetensors")
    file = str(tmp_path / "a.safetensors")
    merged, table = model, model
    for each in (lora, file):  # on one weight, in this order
        merged = apply_lora(merged, each, "a", 0.5)[0]
        table = apply_lora(table, each, "a", 0.5, merge=False)[0]
    assert torch.allclose(predict(table), predict(merged), atol=5e-4)


def loaded(kind: str, folder):
    """A model in one of the formats; bf16: in plain weights, computed in float32."""
    if kind == "bf16":
        file = str(folder / "high_noise.safetensors")
        save_file(weights(), file, metadata=family.T2V_HIGH.metadata)
    else:
        file = write_format(folder / "high_noise", kind)
    base = load_model(file, dtype=torch.float32 if kind == "bf16" else None)
    load(base, "complete")
    return base


@pytest.mark.parametrize("kind", ["Q8_0", "bf16"])
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_dora_of_a_square_layer_has_the_axis_of_its_magnitudes(axis, kind, tmp_path):
    """Against ComfyUI's own merge, from the table and given by the native node."""
    base, name = loaded(kind, tmp_path), "blocks.0.self_attn.q"
    layer = comfy.utils.get_attr(base.model.diffusion_model, name)
    size, generator = layer.in_features, torch.Generator().manual_seed(7)
    assert layer.out_features == size
    x = torch.eye(size)
    plain, bias = (layer(x) - layer(0 * x)).t(), layer(0 * x[:1])[0]
    down, up = torch.randn(4, size, generator=generator), 0.01 * torch.randn(size, 4, generator=generator)
    magnitude = plain.norm(dim=1 - axis, keepdim=True)
    magnitude = magnitude * torch.linspace(0.5, 1.5, size).reshape(magnitude.shape)
    parts = {"lora_A.weight": down, "lora_B.weight": up, "dora_scale": magnitude}
    lora = {f"diffusion_model.{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(lora, tmp_path / "dora.safetensors")
    native = comfy.sd.load_lora_for_models(base, None, _readable(lora, None), 0.6, 0)[0]
    key = f"diffusion_model.{name}.weight"
    merged = comfy.lora.calculate_weight(native.patches[key], plain.clone(), key)
    table_of = apply_lora(base, str(tmp_path / "dora.safetensors"), "dora", 0.6, merge=False)[0]
    with table.running(table_of.model, table_of.model_options["transformer_options"], 0):
        beside_it = layer(x)
    load(native, "partial")
    for found in (beside_it, layer(x)):
        assert torch.allclose(found, merged.t() + bias, atol=1e-4 * float(merged.abs().max()))


@pytest.mark.parametrize("kind", ["Q8_0", "fp8 scaled", "bf16"])
def test_dora_measures_its_rows_once(kind, tmp_path, monkeypatch):
    """Beside another LoRA and at changing strengths: ComfyUI's own numbers, and lengths only where they are new."""
    base = loaded(kind, tmp_path)
    layer = comfy.utils.get_attr(base.model.diffusion_model, LAYER)
    x = torch.eye(layer.in_features)
    plain, bias = (layer(x) - layer(0 * x)).t(), layer(0 * x[:1])[0]
    down, up = torch.randn(4, plain.shape[1]), 0.01 * torch.randn(plain.shape[0], 4)
    magnitude = plain.norm(dim=1) * torch.linspace(0.5, 1.5, len(plain))
    pair = {"lora_A.weight": down, "lora_B.weight": up}
    save_file({f"diffusion_model.{LAYER}.{name}": part for name, part in pair.items()}, tmp_path / "first.safetensors")
    pair["lora_magnitude_vector"] = magnitude
    save_file({f"diffusion_model.{LAYER}.{name}": part for name, part in pair.items()}, tmp_path / "dora.safetensors")
    measured, made = [], dora.Lengths
    monkeypatch.setattr(dora, "Lengths", lambda *args: measured.append(args) or made(*args))

    def answer(*strengths):
        patcher = base
        for name, strength in zip(("first", "dora"), strengths, strict=True):
            lora = str(tmp_path / f"{name}.safetensors")
            patcher = apply_lora(patcher, lora, name, strength, merge=False)[0]
        with table.running(patcher.model, patcher.model_options["transformer_options"], 0):
            found = layer(x)
        before = plain + strengths[0] * up @ down
        row = magnitude.unsqueeze(1) / before.norm(dim=1, keepdim=True)
        expected = before + strengths[1] * (row * (before + up @ down) - before)
        assert torch.allclose(found, expected.t() + bias, atol=1e-4 * float(expected.abs().max()))

    for strength in (1.0, 0.3, -0.5):
        answer(0.7, strength)
    assert len(measured) == 1, "the strength of the DoRA changes no length"
    answer(0.2, 1.0)
    answer(0.7, 1.0)
    assert len(measured) == 2, "what is added before it does, and comes back"
    lora = comfy.utils.load_torch_file(str(tmp_path / "dora.safetensors"))
    native = comfy.sd.load_lora_for_models(base, None, _readable(lora, None), 0.6, 0)[0]
    if kind != "bf16":
        row = magnitude.unsqueeze(1) / plain.norm(dim=1, keepdim=True)
        expected = plain + 0.6 * (row * (plain + up @ down) - plain)
        for _ in range(2):
            load(native, "partial")
            assert torch.allclose(layer(x), expected.t() + bias, atol=1e-4 * float(expected.abs().max()))
        assert len(measured) == 3, "the same for the native node's"


def test_every_step_has_its_own_strength(model, lora):
    scheduled = beside(model, lora, (0.0, 1.0, 0.5))
    by_strength = {strength: predict(beside(model, lora, strength)) for strength in (1.0, 0.5)}
    by_strength[0.0] = predict(model)
    for step, strength in enumerate((0.0, 1.0, 0.5)):
        assert torch.equal(predict(scheduled, step), by_strength[strength])


@pytest.mark.parametrize(
    ("sigma", "step"), [(1.0, 0), (0.95, 0), (0.9, 1), (0.9 * (1 + 1e-7), 1), (0.61, 1), (0.6, 2), (0.1, 2), (0.0, 2)]
)
def test_a_step_is_an_interval_of_the_sigmas(sigma, step):
    assert step_of({"sample_sigmas": SIGMAS, "sigmas": torch.tensor([sigma])}) == step
    assert step_of({}) == 0


class Sigmas(torch.Tensor):
    """Counts how often a value is brought from where the tensor lies: on a GPU the program waits for it each time."""

    reads = 0
    READERS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__")

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        Sigmas.reads += getattr(func, "__name__", "") in cls.READERS
        return super().__torch_function__(func, types, args, kwargs)


def test_a_forward_reads_the_step_once(model, lora, monkeypatch):
    """However many ask for it, and before the layers: what waits for them holds up the next call."""
    scheduled = beside(model, lora, (0.0, 1.0, 0.5))
    plain = [predict(scheduled, step) for step in range(3)]
    monkeypatch.setitem(globals(), "SIGMAS", SIGMAS.as_subclass(Sigmas))
    forward, at_layers = type(scheduled.model.diffusion_model).forward, []
    monkeypatch.setattr(
        type(scheduled.model.diffusion_model),
        "forward",
        lambda *args, **kwargs: at_layers.append(Sigmas.reads) or forward(*args, **kwargs),
    )
    scheduled.pre_run()  # a run has texts to remember, too
    for step in range(3):
        monkeypatch.setattr(Sigmas, "reads", 0)
        assert torch.equal(predict(scheduled, step), plain[step])
        assert (at_layers.pop(), Sigmas.reads) == (1, 1)
    scheduled.cleanup()


def sample(patcher, seen: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    guider = DualExpertGuider(patcher)
    guider.set_conds([[text(), {}]], [[text(seed=1), {}]])
    guider.set_cfg(1.0)
    noise = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sampler = comfy.samplers.sampler_object("euler")

    def callback(step, denoised, x, total):
        seen[step] = (x.clone(), denoised.clone())

    return guider.sample(noise, torch.zeros_like(noise), sampler, SIGMAS, callback=callback, disable_pbar=True, seed=0)


def test_a_whole_run_reads_the_table_step_by_step(model, lora):
    plain, scheduled, full = {}, {}, {}
    sample(model, plain)
    sample(beside(model, lora, (0.0, 1.0)), scheduled)
    sample(beside(model, lora, 1.0), full)
    assert torch.equal(scheduled[0][1], plain[0][1]) and not torch.equal(scheduled[0][1], full[0][1])
    assert torch.equal(scheduled[1][0], plain[1][0]), "both runs reach the second step with the same latent"
    assert not torch.equal(scheduled[1][1], plain[1][1]), "the second step has the LoRA"


class Loads:
    """Counts what ComfyUI does to weights."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        for name in ("patch_weight_to_device", "load", "unpatch_model"):
            monkeypatch.setattr(ModelPatcher, name, self._counted(name, getattr(ModelPatcher, name)))

    def _counted(self, name, function):
        def call(patcher, *args, **kwargs):
            moves_nothing = name == "unpatch_model" and not (kwargs.get("unpatch_weights", True))
            self.count += not moves_nothing
            return function(patcher, *args, **kwargs)

        return call


def test_a_change_of_strength_loads_nothing(model, lora, monkeypatch):
    reads = []
    read = comfy.utils.load_torch_file
    monkeypatch.setattr(
        comfy.utils, "load_torch_file", lambda *args, **kwargs: reads.append(args) or read(*args, **kwargs)
    )
    results = [predict(beside(model, lora, 0.8))]
    loads, before = Loads(monkeypatch), len(reads)
    for strength in (0.3, (0.0, 1.0), 0.8):
        results.append(predict(beside(model, lora, strength)))
    assert (loads.count, len(reads)) == (0, before)
    assert torch.equal(results[0], results[-1]) and not torch.equal(results[0], results[1])
    predict(apply_lora(model, lora, "a", 0.8)[0])
    assert loads.count, "a merge is counted as the load that it is"


def test_a_replaced_file_is_read_again(model, lora, tmp_path):
    file = tmp_path / "lightx2v.safetensors"
    tensors = load_file(lora)
    save_file(tensors, file)
    before = predict(beside(model, str(file), 1.0))
    save_file({name: tensor * 2 for name, tensor in tensors.items() if "alpha" not in name}, file)
    assert not torch.equal(predict(beside(model, str(file), 1.0)), before)


def test_other_strengths_for_a_merged_row(model, lora):
    merged = apply_lora(model, lora, "lightx2v_4steps.safetensors", 1.0)[0]
    merged = apply_lora(merged, lora, "style.safetensors", 0.5)[0]
    assert [(row.merged, row.is_distilled, row.strengths) for row in rows_of(merged)] == [
        (True, True, (1.0,)),
        (True, False, (0.5,)),
    ]

    def repair(row):
        return (0.0, 1.0) if row.is_distilled else row.strengths

    first, second = with_strengths(merged, repair), with_strengths(merged, repair)
    assert first.patches_uuid == second.patches_uuid != merged.patches_uuid
    assert [row.merged for row in rows_of(first)] == [False, True]
    style = apply_lora(model, lora, "style.safetensors", 0.5)[0]
    assert torch.equal(predict(first, 0), predict(style))
    assert torch.allclose(predict(first, 1), predict(merged), atol=2e-4)
    assert with_strengths(merged, lambda row: row.strengths).patches_uuid == merged.patches_uuid
    assert len({model_identity(patcher) for patcher in (merged, first, style)}) == 3


def test_native_models_take_one_strength_only(folder, model, lora):
    native = comfy.sd.load_diffusion_model(str(folder / "wan2.2_t2v_high_noise_14B.safetensors"))
    patched, match = apply_lora(native, lora, "a", 1.0, merge=False)
    assert not match.beside and patched.patches
    for change in (
        lambda: apply_lora(native, lora, "a", (0.0, 1.0)),
        lambda: with_strengths(patched, lambda row: (0.5,)),
    ):
        with pytest.raises(InputError, match="step"):
            change()


@pytest.mark.parametrize("how", ["complete", "partial"])
def test_our_node_adds_the_exact_delta_to_quantised_weights(path, how, tmp_path):  # noqa: F811
    base = load_model(path)
    save_file(pairs(extra=True), tmp_path / "a.safetensors")
    load(base, how)
    plain, bits = effective(base), stored(base)
    patched, match = apply_lora(base, str(tmp_path / "a.safetensors"), "a", 0.7)
    assert match.beside and not patched.patches
    exact = delta(pairs(extra=True), 0.7)
    with table.running(base.model, patched.model_options["transformer_options"], 0):
        error = float((effective(base) - plain - exact).norm() / exact.norm())
    assert error <= ALLOWED
    assert all(map(torch.equal, stored(base), bits)) and torch.equal(effective(base), plain)


@pytest.mark.parametrize(
    ("text", "strengths"), [("", (0.8,)), (" 0, 0 1", (0.0, 0.0, 0.8)), ("0.5", (0.4,)), ("1\n-1", (0.8, -0.8))]
)
def test_factors_of_the_steps(text, strengths):
    assert of_steps("steps_high", text, 0.8) == strengths


@pytest.mark.parametrize("text", ["a", "1;2", "nan", "inf", "11"])
def test_what_is_no_factor_is_refused(text):
    with pytest.raises(InputError) as error:
        of_steps("steps_high", text, 1.0)
    assert error.value.where == "steps_high"
