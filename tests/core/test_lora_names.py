"""Every spelling of a LoRA's names against the official one, for every module of the published models."""

from __future__ import annotations

import pytest
from wancore.wan_core.weights.keys import DIFFUSERS, DIFFUSERS_BLOCK
from wancore.wan_core.weights.lora import PeftScale, official_name, peft_scale, why_unknown

from .weight_files import shapes_of

MODULES = sorted(
    {
        name.removesuffix(".weight")
        for shapes in ("t2v_A14B_expert", "wan21_flf2v_14B")
        for name, shape in shapes_of(shapes).items()
        if name.endswith(".weight") and len(shape) > 1 and ("blocks." not in name or "blocks.7." in name)
    }
)


def diffusers(module: str) -> str:
    rows = DIFFUSERS_BLOCK if module.startswith("blocks.") else DIFFUSERS
    for theirs, ours in rows:
        if theirs != "to_out":
            module = f"{module}.".replace(f".{ours}.", f".{theirs}.").removesuffix(".")
            module = theirs if module == ours else module
    return module


SPELLINGS = {
    "ComfyUI": lambda m: f"diffusion_model.{m}.lora_down.weight",
    "PEFT": lambda m: f"diffusion_model.{m}.lora_A.weight",
    "raw PEFT": lambda m: f"base_model.model.{m}.lora_A.weight",
    "DiffSynth": lambda m: f"{m}.lora_A.default.weight",
    "bare": lambda m: f"{m}.lora_A",
    "kohya": lambda m: f"lora_unet_{m.replace('.', '_')}.lora_down.weight",
    "VideoX-Fun": lambda m: f"lora_unet__{m.replace('.', '_')}.lora_down.weight",
    "diffusers": lambda m: f"transformer.{diffusers(m)}.lora_A.weight",
    "diffusers low": lambda m: f"transformer_2.{diffusers(m)}.lora_A.weight",
    "diffusers bare": lambda m: f"{diffusers(m)}.lora_A.weight",
    "diffusers kohya": lambda m: f"lora_transformer_{diffusers(m).replace('.', '_')}.lora_down.weight",
    "old diffusers": lambda m: f"transformer.{diffusers(m)}.lora.down.weight",
    "older diffusers": lambda m: f"transformer.{diffusers(m)}_lora.down.weight",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_module_in_every_spelling(spelling):
    wrong = [m for m in MODULES if official_name(SPELLINGS[spelling](m)) != f"diffusion_model.{m}.lora_down.weight"]
    assert not wrong


@pytest.mark.parametrize(
    "shapes", ["s2v_14B", "animate_14B", "vace_14B", "fun_camera_A14B", "fun_control_A14B", "ti2v_5B"]
)
@pytest.mark.parametrize("spelling", ["kohya", "VideoX-Fun"])
def test_modules_of_variants_get_their_dots_back(spelling, shapes):
    modules = {name.removesuffix(".weight") for name in shapes_of(shapes) if name.endswith(".weight")}
    wrong = [m for m in modules if official_name(SPELLINGS[spelling](m)) != f"diffusion_model.{m}.lora_down.weight"]
    assert not wrong


@pytest.mark.parametrize("part", ["alpha", "diff", "diff_b", "dora_scale", "hada_w2_a", "lokr_w1", "lora_mid.weight"])
def test_other_parts_keep_their_names(part):
    wanted = f"diffusion_model.blocks.3.cross_attn.k_img.{part}"
    assert official_name(f"lora_unet_blocks_3_cross_attn_k_img.{part}") == wanted
    assert official_name(f"transformer.blocks.3.attn2.add_k_proj.{part}") == wanted


def test_norms_swap_their_numbers():
    assert official_name("transformer.blocks.3.norm2.diff") == "diffusion_model.blocks.3.norm3.diff"
    assert official_name("diffusion_model.blocks.3.modulation.diff") == "diffusion_model.blocks.3.modulation.diff"


def test_lightx2v_names_modulation_after_its_module():
    """Source: ModelTC/LightX2V tools/extract/lora_extractor.py at 29c8504."""
    assert official_name("diffusion_model.blocks.3.diff_m") == "diffusion_model.blocks.3.modulation.diff"
    assert official_name("diffusion_model.head.diff_m") == "diffusion_model.head.modulation.diff"


def test_what_is_no_lora_stays():
    for name in ("blocks.0.ffn.0.weight", "lora_te1_text_model_layers_0.lora_down.weight", "spiece_model"):
        assert official_name(name) == name


def test_harmless_parts_are_known():
    assert "picture" in why_unknown("diffusion_model.blocks.0.cross_attn.k_img")
    assert "picture" in why_unknown("lora_unet_img_emb_proj_1") and "encoder" in why_unknown("lora_te1_text_model")
    assert "sparse attention" in why_unknown("diffusion_model.blocks.0.to_gate_compress")
    assert not why_unknown("diffusion_model.blocks.0.self_attn.k") and not why_unknown("double_blocks.0.img_attn")


def test_alpha_of_raw_peft(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    half = peft_scale(file, {"lora_adapter_metadata": '{"transformer.lora_alpha": 64, "transformer.r": 128}'})
    assert half == PeftScale(64, 128) and half.alpha_of(128) == 64 and half.alpha_of(32) == 16
    assert peft_scale(file, {"adapter_config": "[[["}) is peft_scale(file, {}) is None
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16, "r": 64, "use_rslora": true}')
    root = peft_scale(file, {"format": "pt"})
    assert root == PeftScale(16, 64, by_root=True) and root.alpha_of(64) == 128  # 16 / 8 times the rank
    assert peft_scale(tmp_path / "another.safetensors", {}) is None, "it says nothing of other files"
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16, "r": 64, "rank_pattern": {"q": 4}}')
    layers = peft_scale(file, {})
    assert layers is not None and layers.alpha_of(4) == layers.alpha_of(64) == 16
    (tmp_path / "adapter_config.json").write_text(
        '{"lora_alpha": 16, "r": 64, "alpha_pattern": {"attn2.to_k": 32, "^blocks.1.ffn.net.2": 8, "x": null}}'
    )
    own = peft_scale(file, {})
    assert own is not None
    names = ("transformer.blocks.0.attn2.to_k", "blocks.1.ffn.net.2", "blocks.0.attn1.to_k", "blocks.0.attn2.to_kv")
    assert [own.alpha_of(64, name) for name in names] == [32, 8, 16, 16]
