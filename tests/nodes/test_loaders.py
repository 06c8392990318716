"""The loader nodes on a models folder: what auto takes, and that wrong files are refused before weights are read."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy.utils
import folder_paths
from wancore.nodes import doctor, loaders, lora
from wancore.nodes.bridge import loading
from wancore.nodes.bridge.facts import model_facts
from wancore.nodes.bridge.files import choices, path_of
from wancore.nodes.bridge.lora_table import rows_of
from wancore.pocket import family
from wancore.wan_core.errors import WanError, WeightsFileError, WrongModelError
from wancore.wan_core.weights.downloads import address_of

ROOT = Path(__file__).parents[2]
FOLDERS = ("diffusion_models", "text_encoders", "vae", "loras")
HIGH = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
LOW = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
TI2V = "wan2.2_ti2v_5B_fp16.safetensors"
TEXT = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
LORA_HIGH = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
LORA_LOW = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors"


@pytest.fixture(scope="module")
def pocket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pocket")
    subprocess.run([sys.executable, str(ROOT / "tools" / "make_pocket.py"), str(folder)], check=True, timeout=300)
    return folder


@pytest.fixture
def models(pocket, tmp_path, monkeypatch):
    """A models folder of the test's own with the text to video files, and ComfyUI looking there."""
    files = {HIGH, LOW, TEXT, VAE, LORA_HIGH, LORA_LOW}
    for name in FOLDERS:
        shutil.copytree(pocket / name, tmp_path / name, ignore=lambda _, listed: set(listed) - files)
        extensions = folder_paths.folder_names_and_paths[name][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], extensions))
    folder_paths.filename_list_cache.clear()
    with torch.inference_mode():
        yield tmp_path
    folder_paths.filename_list_cache.clear()


@pytest.fixture
def nothing_is_read(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(comfy.utils, "load_torch_file", refuse)


def run(node, **widgets):
    """What the executor does: a clone of the class with its hidden inputs, then execute."""
    clone = node.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    return clone.execute(**widgets)


def load(model=HIGH, low_model="auto", text_encoder="auto", vae="auto"):
    return run(loaders.WanCoreLoadModels, model=model, low_model=low_model, text_encoder=text_encoder, vae=vae)


def refused(**widgets):
    with pytest.raises(WanError) as caught:
        load(**widgets)
    assert caught.value.remedy
    return caught.value


def test_auto_takes_the_files_that_belong_together(models):
    high, low, clip, vae = load().args
    assert [model_facts(model).expert for model in (high, low)] == ["high", "low"]
    assert Path(model_facts(low).path).name == LOW
    assert clip.tokenize("a red circle") and vae.latent_channels == 16


def test_single_loaders_load(models):
    model = run(loaders.WanCoreLoadDiffusionModel, model_name=HIGH).args[0]
    assert model_facts(model).task.id == "t2v-A14B"
    half = run(loaders.WanCoreLoadDiffusionModel, model_name=HIGH, weight_dtype="bf16").args[0]
    assert half.model.diffusion_model.dtype == torch.bfloat16
    assert run(loaders.WanCoreLoadTextEncoder, text_encoder_name=TEXT).args[0].tokenize("x")
    assert run(loaders.WanCoreLoadVAE, vae_name=VAE).args[0].latent_channels == 16


def test_one_expert_alone(models):
    high, low, *_ = load(low_model="none").args
    assert low is None and model_facts(high).expert == "high"
    alone = load(model=LOW, low_model="none").args[0]
    assert model_facts(alone).expert == "low"


def test_auto_finds_the_partner_in_sub_folders(models):
    folder = models / "diffusion_models"
    for source, target in (
        (HIGH, "wan/HighNoise/a-HighNoise.safetensors"),
        (LOW, "wan/LowNoise/a-LowNoise.safetensors"),
    ):
        (folder / target).parent.mkdir(parents=True)
        (folder / source).rename(folder / target)
    name = next(name for name in choices("diffusion_models") if "High" in name)
    assert Path(model_facts(load(model=name).args[1]).path).name == "a-LowNoise.safetensors"
    assert path_of("diffusion_models", name).endswith("a-HighNoise.safetensors")


def test_missing_low_expert(models, nothing_is_read):
    (models / "diffusion_models" / LOW).unlink()
    error = refused()
    assert isinstance(error, WrongModelError) and LOW in error.found and HIGH in error.where


def test_a_model_that_may_have_a_partner_says_so(models):
    (models / "diffusion_models" / HIGH).rename(models / "diffusion_models" / "my_t2v.safetensors")
    assert "choose it as low_model" in loading.select("my_t2v.safetensors", "auto", "auto", "auto").report()
    (models / "diffusion_models" / "my_t2v.safetensors").rename(models / "diffusion_models" / HIGH)
    assert f"low: {LOW}\n" in loading.select(HIGH, "auto", "auto", "auto").report()


def test_low_expert_in_the_high_place(models, nothing_is_read):
    error = refused(model=LOW)
    assert LOW in error.where and HIGH in error.remedy
    swapped = refused(model=LOW, low_model=HIGH)
    assert LOW in swapped.where and HIGH in swapped.where
    assert HIGH in refused(low_model=HIGH).where


def test_auto_with_several_files_lists_them(models, nothing_is_read):
    shutil.copy(models / "vae" / VAE, models / "vae" / "other.safetensors")
    error = refused()
    assert error.where == "vae" and VAE in error.found and "other.safetensors" in error.found


def test_auto_with_no_fitting_file_says_what_is_there(models, nothing_is_read):
    (models / "text_encoders" / TEXT).rename(models / "vae" / "umt5.safetensors")
    (models / "text_encoders" / "notes.safetensors").write_text("<html>")
    error = refused()
    assert error.where == "text_encoder" and TEXT in error.remedy
    assert "notes.safetensors (this is no weights file)" in error.found


def test_auto_says_what_is_wrong_with_the_only_file(models, nothing_is_read):
    path = models / "vae" / VAE
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{VAE} (the weights file is cut off)" in refused().found


def test_the_doctor_sees_what_the_loaders_refuse(models, nothing_is_read):
    _, words = vae_with_a_hole(models)
    widgets = dict.fromkeys(doctor.FOLDERS, "none") | {"vae": "hole.safetensors"}
    (report,) = run(doctor.WanCoreDoctor, **widgets).args
    assert "problem: " in report and all(word in report for word in words)


@pytest.mark.parametrize(("model", "vae"), [(HIGH, VAE), (TI2V, "wan2.2_vae.safetensors")])
def test_auto_without_a_vae_says_where_the_one_of_the_model_is(model, vae, models, pocket, nothing_is_read):
    (models / "vae" / VAE).unlink()
    shutil.copy(pocket / "diffusion_models" / TI2V, models / "diffusion_models")
    error = refused(model=model)
    assert error.where == "vae" and re.findall(r"https:\S+/(\S+)\)", error.remedy) == [vae]


def test_every_missing_file_is_named_with_what_to_do(models):
    """Those of the published names with their address, those that lie elsewhere with their place."""
    (models / "text_encoders" / TEXT).rename(models / "vae" / TEXT)
    (models / "diffusion_models" / "wan").mkdir()
    (models / "diffusion_models" / HIGH).rename(models / "diffusion_models" / "wan" / HIGH)
    low = "wan2.2_t2v_low_noise_14B_fp16.safetensors"
    names = {"model": HIGH, "low_model": low, "text_encoder": TEXT, "vae": "mine.safetensors"}
    said = loaders.WanCoreLoadModels.validate_inputs(**names)
    found = os.path.join("wan", HIGH)
    assert said == (
        f"model: there is no {HIGH!r} in models/diffusion_models. Choose {found!r}. "
        f"low_model: there is no {low!r} in models/diffusion_models. Download it there from {address_of(low)}. "
        f"text_encoder: there is no {TEXT!r} in models/text_encoders. "
        f"Move it there from models/vae, where {TEXT!r} is. "
        "vae: there is no 'mine.safetensors' in models/vae. Put it there. Then press R to refresh the lists"
    )
    with pytest.raises(WeightsFileError, match="Download it there from https"):
        path_of("diffusion_models", low)


def i2v_low(models):
    weights = load_file(models / "diffusion_models" / LOW)
    weights["patch_embedding.weight"] = torch.zeros(len(weights["patch_embedding.weight"]), 36, 1, 2, 2)
    save_file(weights, models / "diffusion_models" / "wan2.2_i2v_low_noise_14B.safetensors")
    return {"low_model": "wan2.2_i2v_low_noise_14B.safetensors"}, ("i2v_low_noise", HIGH, LOW)


def vae_as_model(models):
    shutil.copy(models / "vae" / VAE, models / "diffusion_models" / "vae.safetensors")
    return {"model": "vae.safetensors"}, ("vae.safetensors", "VAE")


def text_encoder_as_vae(models):
    shutil.copy(models / "text_encoders" / TEXT, models / "vae" / "umt5.safetensors")
    return {"vae": "umt5.safetensors"}, ("umt5.safetensors", "UMT5", VAE)


def vae_as_text_encoder(models):
    shutil.copy(models / "vae" / VAE, models / "text_encoders" / "vae.safetensors")
    return {"text_encoder": "vae.safetensors"}, ("vae.safetensors", TEXT)


def lora_as_model(models):
    shutil.copy(models / "loras" / LORA_HIGH, models / "diffusion_models" / "lora.safetensors")
    return {"model": "lora.safetensors"}, ("lora.safetensors", "LoRA")


def truncated(models):
    path = models / "diffusion_models" / HIGH
    path.write_bytes(path.read_bytes()[:-1000])
    return {}, (HIGH, "1000 bytes")


def truncated_low(models):
    path = models / "diffusion_models" / LOW
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return {}, (LOW, "bytes missing")


def web_page(models):
    (models / "vae" / VAE).write_text("<!DOCTYPE html><html>")
    return {"vae": VAE}, (VAE, "web page")


def pickle_as_model(models):
    torch.save({"a": torch.zeros(2)}, models / "diffusion_models" / "wan_high_noise.pth")
    return {"model": "wan_high_noise.pth", "low_model": "none"}, ("wan_high_noise.pth", "pickle")


def empty_file(models):
    (models / "text_encoders" / TEXT).write_bytes(b"")
    return {"text_encoder": TEXT}, (TEXT, "empty")


def absent(models):
    return {"vae": "gone.safetensors"}, ("gone.safetensors",)


def wrong_width(models):
    weights = load_file(models / "text_encoders" / TEXT)
    weights["shared.weight"] = torch.zeros(640, 96)
    save_file(weights, models / "text_encoders" / "narrow.safetensors")
    return {"text_encoder": "narrow.safetensors"}, ("narrow.safetensors", "96", "128")


def part_with_a_hole(models, folder, source, widget, gone):
    weights = load_file(models / folder / source)
    del weights[gone]
    save_file(weights, models / folder / "hole.safetensors")
    return {widget: "hole.safetensors"}, ("hole.safetensors", gone)


def vae_with_a_hole(models):
    return part_with_a_hole(models, "vae", VAE, "vae", "decoder.conv1.weight")


def text_encoder_with_a_hole(models):
    return part_with_a_hole(models, "text_encoders", TEXT, "text_encoder", "encoder.final_layer_norm.weight")


BAD = (vae_with_a_hole, text_encoder_with_a_hole,
       i2v_low, vae_as_model, text_encoder_as_vae, vae_as_text_encoder, lora_as_model, truncated, truncated_low,
       web_page, pickle_as_model, empty_file, absent, wrong_width)  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.__name__)
def test_wrong_files_are_refused_before_anything_is_read(models, nothing_is_read, case):
    widgets, words = case(models)
    message = str(refused(**widgets))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("node", loaders.NODES, ids=lambda node: node.__name__)
def test_single_loaders_refuse_too(models, nothing_is_read, node):
    for name in FOLDERS[:3]:
        (models / name / "page.safetensors").write_text("<!DOCTYPE html>")
    folder_paths.filename_list_cache.clear()
    widget = node.define_schema().inputs[0].id
    widgets = {"low_model": "none", "text_encoder": "auto", "vae": "auto"} if node is loaders.WanCoreLoadModels else {}
    with pytest.raises(WeightsFileError) as caught:
        run(node, **{widget: "page.safetensors"}, **widgets)
    assert "page.safetensors" in caught.value.where and "web page" in caught.value.found


@pytest.mark.parametrize("auto", [True, False], ids=["auto", "named"])
@pytest.mark.parametrize(
    "place", [f"diffusion_models/{HIGH}", f"diffusion_models/{LOW}", f"text_encoders/{TEXT}", f"vae/{VAE}"]
)
def test_a_replaced_file_is_loaded_again(place, auto, models):
    widgets = {"model": HIGH, "low_model": LOW, "text_encoder": TEXT, "vae": VAE}
    widgets |= dict.fromkeys(("low_model", "text_encoder", "vae"), "auto") if auto else {}
    before = loaders.WanCoreLoadModels.fingerprint_inputs(**widgets)
    assert before == loaders.WanCoreLoadModels.fingerprint_inputs(**widgets)
    os.utime(models / place, ns=(1, 1))
    assert before != loaders.WanCoreLoadModels.fingerprint_inputs(**widgets)


def test_a_file_beside_those_of_auto_loads_nothing_again(models):
    widgets = {"model": HIGH, "low_model": "auto", "text_encoder": "auto", "vae": "auto"}
    before = loaders.WanCoreLoadModels.fingerprint_inputs(**widgets)
    (models / "vae" / "notes.safetensors").write_text("<html>")
    folder_paths.filename_list_cache.clear()
    assert before == loaders.WanCoreLoadModels.fingerprint_inputs(**widgets)


def test_a_replaced_part_is_loaded_again(models):
    folder = models / "diffusion_models" / "transformer"
    folder.mkdir()
    name = "diffusion_pytorch_model-00001-of-00002.safetensors"
    (folder / name).touch()
    os.utime(folder, ns=(1, 1))
    before = loaders.WanCoreLoadDiffusionModel.fingerprint_inputs(model_name="transformer")
    assert before == loaders.WanCoreLoadDiffusionModel.fingerprint_inputs(model_name="transformer")
    os.utime(folder / name, ns=(1, 1))
    assert before != loaders.WanCoreLoadDiffusionModel.fingerprint_inputs(model_name="transformer")


def test_a_replaced_lora_is_loaded_again(models):
    for lora_low in ("auto", LORA_LOW):
        for name in (LORA_HIGH, LORA_LOW):
            widgets = {"lora_high": LORA_HIGH, "lora_low": lora_low}
            before = lora.WanCoreLoraPair.fingerprint_inputs(**widgets)
            os.utime(models / "loras" / name, ns=(1, len(lora_low)))
            assert before != lora.WanCoreLoraPair.fingerprint_inputs(**widgets), (lora_low, name)


def test_a_linked_widget_has_no_stamp(models):
    """ComfyUI would load a model anew for every run where this fails."""
    widgets = {"model": None, "low_model": "auto", "text_encoder": TEXT, "vae": VAE}
    assert loaders.WanCoreLoadModels.fingerprint_inputs(**widgets)[0] == ("", ())
    assert loaders.WanCoreLoadVAE.fingerprint_inputs(vae_name=None) == ("", ())
    assert lora.WanCoreLoraPair.fingerprint_inputs(lora_high=None, lora_low="auto")[0] == ("", ())


def test_new_nodes_show_the_high_noise_model(models):
    (models / "diffusion_models" / "a_first.safetensors").write_bytes(b"")
    folder_paths.filename_list_cache.clear()
    assert loaders.WanCoreLoadModels.define_schema().inputs[0].default == HIGH


@pytest.mark.parametrize("node", [*loaders.NODES, *lora.NODES], ids=lambda node: node.__name__)
def test_every_node_and_input_is_explained(models, node):
    schema = node.GET_SCHEMA()
    assert schema.description and schema.display_name.startswith("Wan ")
    assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])
    page = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text()
    assert len(page.splitlines()) <= 60
    assert all(f"| `{item.id}` |" in page for item in [*schema.inputs, *schema.outputs])


# LoRA pair


@pytest.fixture
def reports(monkeypatch):
    shown = []
    monkeypatch.setattr(lora, "show_on_node", lambda node_id, text: shown.append(text))
    return shown


def pair(models, **widgets):
    high, low, *_ = load().args
    settings = {"lora_high": LORA_HIGH, "lora_low": "auto", "strength_high": 1.0, "strength_low": 1.0, **widgets}
    return (high, low), run(lora.WanCoreLoraPair, high=high, low=settings.pop("low", low), **settings).args


def test_lora_pair(models, reports):
    (high, low), (new_high, new_low) = pair(models)
    for old, new in ((high, new_high), (low, new_low)):
        assert model_facts(new).distilled and not model_facts(old).distilled
        assert new.model is old.model and len(rows_of(new)) == 1 and not rows_of(old)
    matched = 10 * (family.T2V_HIGH.layers or 0)  # every matrix of a block
    assert f"high: {LORA_HIGH} (strength 1, beside the weights): {matched} of {matched} layers" in reports[0]
    assert f"low: {LORA_LOW} (strength 1, beside the weights): {matched} of {matched} layers" in reports[0]


def test_lora_strength_zero_and_none(models, reports):
    (high, low), (new_high, new_low) = pair(models, strength_high=0.0, lora_low="none")
    assert new_high is high and new_low is low
    assert not model_facts(new_high).distilled
    assert reports[0] == "high: no LoRA\nlow: no LoRA"


def test_lora_strengths_of_the_steps(models, reports):
    _, (high, low) = pair(models, steps_high="0 1", strength_high=0.5, strength_low=0.5)
    assert [row.strengths for patcher in (high, low) for row in rows_of(patcher)] == [(0.0, 0.5), (0.5,)]
    assert "(strength 0 0.5, beside" in reports[0]


def test_lora_without_a_low_model(models, reports):
    _, (high, low) = pair(models, low=None)
    assert low is None and model_facts(high).distilled


def test_lora_made_for_both_experts(models, reports):
    shutil.copy(models / "loras" / LORA_HIGH, models / "loras" / "style.safetensors")
    _, (high, low) = pair(models, lora_high="style.safetensors")
    assert reports[0].count("style.safetensors") == 2 and rows_of(high) and rows_of(low)


def test_lora_pair_refusals(models, reports):
    with pytest.raises(WrongModelError):
        pair(models, lora_high=LORA_LOW, lora_low=LORA_HIGH)
    with pytest.raises(WrongModelError):
        pair(models, lora_high=LORA_LOW)
    (models / "loras" / LORA_LOW).unlink()
    with pytest.raises(WrongModelError) as caught:
        pair(models)
    assert LORA_HIGH in caught.value.where and f"({address_of(LORA_LOW)})" in caught.value.found
    save_file({"lora_te.q.lora_down.weight": torch.zeros(2, 2)}, models / "loras" / "other.safetensors")
    with pytest.raises(WrongModelError) as caught:
        pair(models, lora_high="other.safetensors")
    assert "other.safetensors" in caught.value.where and "Wan 2.2 T2V-A14B" in caught.value.remedy
    assert re.fullmatch(r"This [^.]+: '.+'\. Found .+\. Take .+\.", str(caught.value)), "three sentences"


def test_lora_changes_the_picture_by_its_delta(models, reports):
    _, (high, _) = pair(models)
    (base, _), _ = pair(models, lora_low="none")
    x, context = torch.randn(1, 16, 1, 4, 4), torch.randn(1, 512, 128)
    outs = []
    for patcher in (high, base):
        management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])
        options = patcher.model_options["transformer_options"]
        outs.append(patcher.model.apply_model(x, torch.tensor([0.5]), c_crossattn=context, transformer_options=options))
    assert not torch.allclose(*outs, atol=1e-3)


def test_choices_are_the_folders(models):
    assert choices("vae") == [VAE]
    with pytest.raises(WeightsFileError):
        path_of("vae", "../diffusion_models/" + HIGH)
    assert loading.partner_of("diffusion_models", HIGH) == LOW
