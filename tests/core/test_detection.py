"""Every published layout is recognised, and every pairing judged, from headers: hollow files of full size.

Names and shapes: tests/shapes, read off the published files. What makes a layout of them is as these write it:
- prefixes, scaled_fp8, comfy_quant: Comfy-Org/ComfyUI comfy/model_detection.py, comfy/utils.py convert_old_quants,
  comfy/quant_ops.py QUANT_ALGOS;
- diffusers' names and folders: huggingface/diffusers scripts/convert_wan_to_diffusers.py at 7d56827;
- LightX2V: ModelTC/LightX2V at f8aee98: tools/convert/converter.py (names, block_N.safetensors, _partN.safetensors, the
  index), tools/convert/quant/quant.py (scales of int8, fp8, nvfp4, mxfp8), lightx2v_kernel gemm.py (their shapes),
  docs/EN/source/getting_started/model_structure.md (file names);
- GGUF: city96/ComfyUI-GGUF tools/convert.py (no prefix, at most four axes) and fix_5d_tensors.py;
- VAEs with `model.` before every name: kijai/ComfyUI-WanVideoWrapper nodes, which adds it where it is missing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from make_pocket import published_name
from wancore.pocket.family import TEXT_ENCODER
from wancore.wan_core.errors import WrongModelError
from wancore.wan_core.paths import Card
from wancore.wan_core.planner.plan import what
from wancore.wan_core.weights import check_text_encoder, check_vae, inspect, require
from wancore.wan_core.weights.doctor import check_lora, compute_path, diagnose
from wancore.wan_core.weights.downloads import with_address

from . import weight_files as files
from .diffusers_vae import diffusers_vae_name
from .test_lora_names import SPELLINGS, diffusers

ROOT = Path(__file__).parents[2]
TRUNKS = {  # shape list: family
    "t2v_A14B_expert": "t2v-A14B", "i2v_A14B_expert": "i2v-A14B", "ti2v_5B": "ti2v-5B", "t2v_1.3B": "t2v-1.3B",
    "s2v_14B": "s2v-14B", "animate_14B": "animate-14B", "vace_1.3B": "vace-2.1", "vace_14B": "vace-2.1",
    "fun_camera_A14B": "fun-A14B", "fun_control_A14B": "fun-A14B", "wan21_flf2v_14B": "flf2v-2.1",
    "wan21_i2v_14B": "i2v-2.1",
}  # fmt: skip
PLAIN = ("t2v_A14B_expert", "i2v_A14B_expert", "ti2v_5B", "t2v_1.3B", "wan21_i2v_14B")


def tensors_of(shapes: str, dtype: str = "BF16") -> dict:
    """The file's table, block matrices in the given type."""
    return {
        name: (dtype if name.startswith("blocks.") and len(shape) == 2 else "BF16", shape)
        for name, shape in files.shapes_of(shapes).items()
    }


def single(folder: Path, shapes: str, prefix: str = "") -> Path:
    return files.write_model(folder / "wan.safetensors", shapes, prefix=prefix)


def scaled(folder: Path, shapes: str, leaf: str, mark: str = "", dtype: str = "F8_E4M3") -> Path:
    table = tensors_of(shapes, dtype)
    for name, (kind, shape) in list(table.items()):
        if kind == dtype:
            layer = name.removesuffix("weight")
            table[layer + leaf] = ("F32", [shape[0], 1] if not mark else [])
            if mark == "comfy_quant":
                table[layer + mark] = ("U8", [30])
    if mark == "scaled_fp8":
        table[mark] = (dtype, [2])
    metadata = {"_quantization_metadata": json.dumps({"layers": {}})} if mark == "metadata" else None
    return files.write_hollow(folder / "wan.safetensors", table, metadata)


def one_scale(folder: Path, shapes: str) -> Path:
    """scale_weight beside each matrix, and no marker."""
    table = tensors_of(shapes, "F8_E4M3")
    scaled = [name for name, (kind, _) in table.items() if kind == "F8_E4M3"]
    scales = {name.removesuffix("weight") + "scale_weight": ("F32", []) for name in scaled}
    return files.write_hollow(folder / "wan.safetensors", {**table, **scales})


def blocks(folder: Path, shapes: str, dtype: str, in_a_byte: int, size: int, scales: str, mark: str) -> Path:
    """Formats with a scale for each block of `size` numbers."""
    table: dict[str, tuple] = {}
    for name, (kind, shape) in tensors_of(shapes, dtype).items():
        table[name] = (kind, shape)
        if kind != dtype:
            continue
        layer = name.removesuffix("weight")
        table[name] = (dtype, [shape[0], shape[1] // in_a_byte])
        table[f"{layer}weight_scale"] = (scales, [shape[0], shape[1] // size])
        if in_a_byte == 2:
            table[layer + ("weight_scale_2" if mark else "weight_global_scale")] = ("F32", [])
        if mark:
            table[layer + mark] = ("U8", [30])
    return files.write_hollow(folder / "wan.safetensors", table)


def sharded(
    folder: Path, shapes: str, rename=lambda name: name, model: str = "high_noise_model", count: int = 3
) -> Path:
    table, index = [(rename(name), value) for name, value in tensors_of(shapes).items()], {}
    for number in range(count):
        file = f"diffusion_pytorch_model-{number + 1:05}-of-{count:05}.safetensors"
        part = dict(table[number::count])
        files.write_hollow(folder / model / file, part)
        index |= dict.fromkeys(part, file)
    (folder / model / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder / model


def diffusers_name(name: str) -> str:
    module, dot, leaf = name.rpartition(".")
    return diffusers(name) if leaf in ("modulation", "emb_pos") else f"{diffusers(module)}{dot}{leaf}"


def stored_as(folder: Path, shapes: str, dtype: str) -> Path:
    """Block matrices in one type and nothing beside them: fp16, fp32, and float8 as it is cast."""
    return files.write_hollow(folder / "wan.safetensors", tensors_of(shapes, dtype))


def gguf(folder: Path, shapes: str, kind: str, prefix: str = "") -> Path:
    """A GGUF header over a hole in the file."""
    writer, number = GGUFWriter(folder / "wan.gguf", "wan"), GGMLQuantizationType[kind]
    size = {"Q8_0": (32, 34), "Q4_K": (256, 144), "F16": (1, 2)}
    total = 0
    for name, shape in files.shapes_of(shapes).items():
        block = name.startswith("blocks.") and len(shape) == 2
        elements, nbytes = size[kind] if block else (1, 2)
        sizes = [*shape[:2], *shape[3:]] if name == "patch_embedding.weight" else list(shape)
        stored = int(np.prod(shape)) // elements * nbytes
        row = [*sizes[:-1], sizes[-1] // elements * nbytes] if block and kind != "F16" else sizes
        dtype = np.dtype(np.uint8) if block and kind != "F16" else np.dtype(np.float16)
        raw = number if block else GGMLQuantizationType.F16
        writer.add_tensor_info(prefix + name, row, dtype, stored, raw_dtype=raw)
        total += -(-stored // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    path = folder / "wan.gguf"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + total)
    return path


def by_blocks(folder: Path, shapes: str) -> Path:
    """LightX2V's fp8, a file for each block."""
    parts: dict[str, dict[str, tuple]] = {}
    for name, (kind, shape) in tensors_of(shapes, "F8_E4M3").items():
        block = name.split(".")[1] if name.startswith("blocks.") else ""
        part = parts.setdefault(f"block_{block}.safetensors" if block else "non_block.safetensors", {})
        part[name] = (kind, shape)
        if kind == "F8_E4M3":
            part[f"{name}_scale"] = ("F32", [shape[0], 1])
    for file, tensors in parts.items():
        files.write_hollow(folder / "distill_fp8" / file, tensors)
    index = {"metadata": {"total_size": 0}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "distill_fp8" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "distill_fp8"


LAYOUTS: dict[str, tuple] = {}
for name, family in TRUNKS.items():
    LAYOUTS[f"{name} bf16"] = (single, name, (), family, "bf16", "")
    LAYOUTS[f"{name} gguf Q4_K"] = (gguf, name, ("Q4_K",), family, "Q4_K", "")
for name in PLAIN:
    family = TRUNKS[name]
    LAYOUTS |= {
        f"{name} model.diffusion_model.": (single, name, ("model.diffusion_model.",), family, "bf16", ""),
        f"{name} diffusion_model.": (single, name, ("diffusion_model.",), family, "bf16", ""),
        f"{name} model.": (single, name, ("model.",), family, "bf16", ""),
        f"{name} transformer.": (single, name, ("transformer.",), family, "bf16", ""),
        f"{name} module.": (single, name, ("module.",), family, "bf16", ""),
        f"{name} fp16": (stored_as, name, ("F16",), family, "fp16", ""),
        f"{name} fp32": (stored_as, name, ("F32",), family, "fp32", ""),
        f"{name} fp8 plain": (stored_as, name, ("F8_E4M3",), family, "fp8_e4m3fn", ""),
        f"{name} fp8 e5m2 plain": (stored_as, name, ("F8_E5M2",), family, "fp8_e5m2", ""),
        f"{name} official shards": (sharded, name, (), family, "bf16", ""),
        f"{name} diffusers shards": (sharded, name, (diffusers_name, "transformer"), family, "bf16", ""),
        f"{name} scaled_fp8": (scaled, name, ("scale_weight", "scaled_fp8"), family, "fp8_e4m3fn", "scaled_fp8"),
        f"{name} comfy_quant": (scaled, name, ("weight_scale", "comfy_quant"), family, "fp8_e4m3fn", "comfy_quant"),
        f"{name} metadata": (scaled, name, ("weight_scale", "metadata"), family, "fp8_e4m3fn", "comfy_quant"),
        f"{name} e5m2": (scaled, name, ("scale_weight", "scaled_fp8", "F8_E5M2"), family, "fp8_e5m2", "scaled_fp8"),
        f"{name} int8": (scaled, name, ("weight_scale", "comfy_quant", "I8"), family, "int8", "comfy_quant"),
        f"{name} mxfp8": (blocks, name, ("F8_E4M3", 1, 32, "F8_E8M0", "comfy_quant"), family, "mxfp8", "comfy_quant"),
        f"{name} nvfp4": (blocks, name, ("U8", 2, 16, "F8_E4M3", "comfy_quant"), family, "nvfp4", "comfy_quant"),
        f"{name} LightX2V nvfp4": (blocks, name, ("U8", 2, 16, "F8_E4M3", ""), family, "nvfp4", "lightx2v_nvfp4"),
        f"{name} LightX2V fp8": (scaled, name, ("weight_scale",), family, "fp8_e4m3fn", "unmarked"),
        f"{name} LightX2V int8": (scaled, name, ("weight_scale", "", "I8"), family, "int8", "unmarked"),
        f"{name} LightX2V mxfp8": (blocks, name, ("U8", 1, 32, "F8_E8M0", ""), family, "mxfp8", "unmarked"),
        f"{name} LightX2V blocks": (by_blocks, name, (), family, "fp8_e4m3fn", "unmarked"),
        f"{name} one scale, no mark": (one_scale, name, (), family, "fp8_e4m3fn", "one scale"),
        f"{name} gguf Q8_0": (gguf, name, ("Q8_0",), family, "Q8_0", ""),
        f"{name} gguf with a prefix": (gguf, name, ("Q4_K", "model.diffusion_model."), family, "Q4_K", ""),
        f"{name} gguf F16": (gguf, name, ("F16",), family, "fp16", ""),
    }


@pytest.mark.parametrize(("shapes", "levels"), [("vae21", False), ("vae22", True)])
@pytest.mark.parametrize("prefix", ["", "vae."])
def test_vaes_in_the_diffusers_spelling(shapes, levels, prefix, tmp_path):
    full = {name: tuple(shape) for name, shape in files.shapes_of(shapes).items()}
    tensors = {prefix + diffusers_vae_name(name, levels=levels): ("F32", shape) for name, shape in full.items()}
    found = inspect(files.write_hollow(tmp_path / "diffusion_pytorch_model.safetensors", tensors))
    assert (found.kind, found.family.id, found.shapes) == ("vae", shapes, full)
    require(found, "vae")


OTHERS = {  # text encoders, VAEs and the rest in the prefixes and names that they are found in
    **{
        f"VAE 2.1 {prefix}": ("vae21", prefix, "vae", "vae21")
        for prefix in ("", "vae.", "first_stage_model.", "model.")
    },
    **{f"VAE 2.2 {prefix}": ("vae22", prefix, "vae", "vae22") for prefix in ("", "vae.", "model.")},
    "UMT5 official": ("umt5_xxl", "", "text_encoder", "umt5"),
    "UMT5 inside a checkpoint": ("umt5_xxl", "text_encoders.umt5xxl.transformer.", "text_encoder", "umt5"),
    "wav2vec2 of transformers": ("wav2vec2_large", "wav2vec2.", "audio_encoder", "wav2vec2"),
    "CLIP ViT-H": ("clip_vision_h", "", "clip_vision", "clip_vision"),
    "wav2vec2": ("wav2vec2_large", "", "audio_encoder", "wav2vec2"),
}


@pytest.mark.parametrize("layout", OTHERS)
def test_every_other_part_is_recognised(layout, tmp_path):
    shapes, prefix, kind, family = OTHERS[layout]
    found = inspect(files.write_model(tmp_path / "x.safetensors", shapes, prefix=prefix))
    assert (found.kind, found.family.id) == (kind, family)
    assert len(found.shapes) == len(files.shapes_of(shapes))


@pytest.mark.parametrize("prefix", ["", "text_encoders.umt5xxl.transformer."])
def test_umt5_in_the_names_of_transformers(prefix, tmp_path):
    """As ComfyUI has it: with scales, the tokenizer, and the copy of the table that transformers writes."""
    shapes = {published_name(name, TEXT_ENCODER): shape for name, shape in files.shapes_of("umt5_xxl").items()}
    assert "encoder.block.23.layer.0.SelfAttention.relative_attention_bias.weight" in shapes
    tensors = {name: ("F8_E4M3" if "SelfAttention.q" in name else "BF16", shape) for name, shape in shapes.items()}
    tensors |= {
        name.replace("weight", "scale_weight"): ("F32", []) for name, (kind, _) in tensors.items() if kind == "F8_E4M3"
    }
    tensors |= {"encoder.embed_tokens.weight": ("BF16", [256384, 4096]), "spiece_model": ("U8", [4548313])}
    file = {prefix + name: value for name, value in tensors.items()} | {"scaled_fp8": ("F8_E4M3", [0])}
    found = inspect(files.write_hollow(tmp_path / "x.safetensors", file))
    assert (found.kind, found.family.id, found.width, found.quantised) == ("text_encoder", "umt5", 4096, "scaled_fp8")


def test_there_are_forty_layouts():
    assert len(LAYOUTS) >= 150 and len(OTHERS) >= 10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised(layout, tmp_path):
    write, shapes, arguments, family, precision, quantised = LAYOUTS[layout]
    path = write(tmp_path, shapes, *arguments)
    start = time.process_time()
    found = inspect(path)
    assert time.process_time() - start < 1
    assert (found.kind, found.family.id) == ("diffusion_model", family)
    assert (found.precision, found.quantised) == (precision, quantised)
    full = {name: tuple(shape) for name, shape in files.shapes_of(shapes).items()}
    if precision == "nvfp4":
        halved = {name for name, (kind, _) in tensors_of(shapes, "U8").items() if kind == "U8"}
        full = {name: (size[0], size[1] // 2) if name in halved else size for name, size in full.items()}
    assert {name: shape for name, shape in found.shapes.items() if name in full} == full
    if found.task is not None:
        require(found, "diffusion_model")


# Pairings: 12 models x 4 VAEs x 3 text encoders


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    models = {name: inspect(files.write_model(folder / f"{name}.safetensors", name)) for name in TRUNKS}
    vaes = {name: inspect(files.write_model(folder / f"{name}.safetensors", name)) for name in ("vae21", "vae22")}
    vaes["image VAE"] = inspect(
        files.write_hollow(folder / "sdxl_vae.safetensors", {"decoder.conv_in.weight": ("F16", [512, 4, 3, 3])})
    )
    vaes["a LoRA"] = inspect(
        files.write_hollow(folder / "lora.safetensors", {"blocks.0.ffn.0.lora_A.weight": ("F16", [4, 5120])})
    )
    texts = {"umt5_xxl": inspect(files.write_model(folder / "umt5.safetensors", "umt5_xxl"))}
    small = {"shared.weight": ("F16", [256, 768])} | {
        f"encoder.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight": ("F16", [32, 12])
        for block in range(2)
    }
    (folder / "umt5_base.model").touch()
    texts["umt5 base"] = inspect(files.write_hollow(folder / "umt5_base.safetensors", small))
    clip = {"text_model.embeddings.token_embedding.weight": ("F16", [49408, 768])}
    texts["CLIP"] = inspect(files.write_hollow(folder / "clip_l.safetensors", clip))
    return models, vaes, texts


def passes(check, *arguments) -> bool:
    try:
        check(*arguments)
    except WrongModelError as error:
        assert error.where and error.remedy
        return False
    return True


def test_every_pairing_is_judged(parts):
    models, vaes, texts = parts
    judged = 0
    for name, model in models.items():
        for vae_name, vae in vaes.items():
            for text_name, text in texts.items():
                fits = passes(require, vae, "vae") and passes(check_vae, model, vae)
                fits &= passes(require, text, "text_encoder") and passes(check_text_encoder, model, text)
                right = vae_name == ("vae22" if name == "ti2v_5B" else "vae21") and text_name == "umt5_xxl"
                assert fits == right, (name, vae_name, text_name)
                judged += 1
    assert judged == 144


# The doctor


def test_doctor_names_what_to_take_instead(parts):
    models, vaes, texts = parts
    bad = diagnose([models["t2v_A14B_expert"].path, vaes["vae22"].path, texts["umt5_xxl"].path])
    assert not bad.healthy and "wan_2.1_vae.safetensors" in bad.report()
    good = diagnose([models["t2v_A14B_expert"].path, vaes["vae21"].path, texts["umt5_xxl"].path])
    assert good.healthy and "These fit together." in good.report()


def test_doctor_knows_what_is_no_part_of_a_model(parts, tmp_path):
    """Files of other kinds and families beside those of a run: told apart, with the file to take, and nothing else."""
    model = parts[0]["t2v_A14B_expert"].path
    (tmp_path / "vae").mkdir()
    strange = files.write_hollow(tmp_path / "vae" / "x.safetensors", {"something.weight": ("F16", [8])})
    other = files.write_hollow(tmp_path / "flux.safetensors", {"double_blocks.0.img_attn.qkv.weight": ("F16", [8, 4])})
    for path, words in ((strange, "'something.weight'"), (other, "another family")):
        diagnosis = diagnose([model, path])
        assert not diagnosis.healthy and words in diagnosis.report() and "fit together" not in diagnosis.report()
        assert [checkpoint.path for checkpoint in diagnosis.usable] == [model]
    assert "Take wan_2.1_vae.safetensors" in diagnose([strange]).report(), "its folder says what it is meant to be"


BLOCK = "blocks.7.ffn.0.weight"
BROKEN = {  # what is wrong with the tensors of a model: changes of its table, and what is said
    "a hole": ({BLOCK: None}, f"1 missing: {BLOCK}"),
    "a block is gone": (
        {name: None for name in tensors_of("t2v_1.3B") if "blocks.7." in name},
        "1 missing: blocks.7.",
    ),
    "a hole around": ({"text_embedding.2.bias": None}, "1 missing: text_embedding.2.bias"),
    "another size": ({BLOCK: ("BF16", [8960, 1024])}, f"1 of another shape: {BLOCK} [8960, 1024]"),
    "whole numbers": ({BLOCK: ("I8", [8960, 1536])}, f"1 of another type: {BLOCK} I8"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_doctor_sees_tensors_that_are_not_the_models(what, tmp_path):
    changes, words = BROKEN[what]
    table = {**tensors_of("t2v_1.3B"), **changes}
    path = files.write_hollow(tmp_path / "wan.safetensors", {name: value for name, value in table.items() if value})
    diagnosis = diagnose([path])
    assert not diagnosis.healthy and words in diagnosis.report() and "Take an unchanged file" in diagnosis.report()


@pytest.mark.parametrize("name", ["head.modulation", "blocks.0.ffn.0.bias", "text_embedding.0.weight"])
def test_a_size_of_zero_is_refused(name, parts, tmp_path):
    table = tensors_of("t2v_1.3B")
    table[name] = ("BF16", [0 for _ in table[name][1]])
    diagnosis = diagnose([parts[0]["t2v_1.3B"].path, files.write_hollow(tmp_path / "wan.safetensors", table)])
    assert "which is 0" in diagnosis.report() and len(diagnosis.usable) == 1


def test_a_quantisation_of_another_kind_is_no_damage(tmp_path):
    table = {name.replace(".weight", ".qweight"): value for name, value in tensors_of("t2v_1.3B").items()}
    report = diagnose([files.write_hollow(tmp_path / "wan.safetensors", table)]).report()
    assert "lacks basic tensors" in report and "Take the bf16, fp8_scaled or GGUF file" in report


def test_doctor_sees_a_text_encoder_without_tokenizer(tmp_path):
    """As umt5-xxl-enc-bf16 is published: it needs the official file beside it."""
    path = files.write_model(tmp_path / "umt5-xxl-enc-bf16.safetensors", "umt5_xxl")
    assert diagnose([path]).healthy
    path.with_suffix(".model").unlink()
    diagnosis = diagnose([path])
    assert not diagnosis.healthy and "has no tokenizer" in diagnosis.report()
    assert "umt5-xxl-enc-bf16.model, spiece.model" in diagnosis.report()
    assert f"Take {with_address('umt5_xxl_fp8_e4m3fn_scaled.safetensors')}" in diagnosis.report()


def test_doctor_sees_a_text_encoder_with_a_hole(tmp_path):
    table = {name: ("BF16", shape) for name, shape in files.shapes_of("umt5_xxl").items()}
    gone = next(name for name in table if name.startswith("blocks.9."))
    del table[gone]
    assert f"1 missing: {gone}" in diagnose([files.write_hollow(tmp_path / "t.safetensors", table)]).report()


def test_a_module_of_vace_alone_names_the_model(tmp_path):
    """As Kijai publishes them, to be joined with a model by another pack."""
    table = {name: value for name, value in tensors_of("vace_14B").items() if name.startswith("vace_")}
    path = files.write_hollow(tmp_path / "Wan2_1-VACE_module_14B_bf16.safetensors", table)
    report = diagnose([path]).report()
    assert "module of VACE without its model" in report
    assert f"Take {with_address('wan2.2_fun_vace_high_noise_14B_fp8_scaled.safetensors')}" in report


def test_doctor_reads_broken_files_as_findings(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"<!DOCTYPE html>")
    diagnosis = diagnose([tmp_path / "a.safetensors", tmp_path / "none.safetensors"])
    assert not diagnosis.healthy and "web page" in diagnosis.report()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_loras_are_judged_by_their_layers(spelling, parts, tmp_path):
    models, _, _ = parts
    name = SPELLINGS[spelling]("blocks.3.self_attn.q")
    other = name.replace("down", "up").replace("lora_A", "lora_B")
    pair = {name: ("F16", [8, 5120]), other: ("F16", [5120, 8])}
    lora = inspect(files.write_hollow(tmp_path / "a.safetensors", pair))
    assert lora.kind == "lora"
    assert passes(check_lora, models["t2v_A14B_expert"], lora)
    assert not passes(check_lora, models["ti2v_5B"], lora)


@pytest.mark.parametrize("part", ["a1.weight", "w_norm", "set_weight", "lora_A.default", "diff_m", "lokr_w1", "diff_b"])
def test_a_lora_of_one_kind_of_part_is_one(part, tmp_path):
    tensors = {f"diffusion_model.blocks.3.self_attn.q.{part}": ("F16", [8, 8])}
    assert inspect(files.write_hollow(tmp_path / "a.safetensors", tensors)).kind == "lora"


LAYER = "diffusion_model.blocks.3.self_attn.q"


@pytest.mark.parametrize(
    ("shapes", "fits"),
    [
        ({"lora_down.weight": [8, 5120], "lora_up.weight": [5120, 8]}, True),
        ({"lora_down.weight": [8, 5120], "lora_up.weight": [5120, 4]}, False),
        ({"lora_down.weight": [8, 5120], "lora_up.weight": [3072, 8]}, False),
        ({"lora_down.weight": [8, 5120]}, False),
        ({"diff_b": [5120]}, True),
        ({"diff": [5120, 1]}, False),
    ],
)
@pytest.mark.parametrize("kind", ["bf16", "nvfp4", "Q4_K"])
def test_the_doctor_judges_loras_as_the_loader_does(kind, shapes, fits, tmp_path):
    """Halves of other ranks and sizes do not fit, whatever the model is stored as; packed matrices are half as wide."""
    make = {"bf16": single, "nvfp4": lambda *at: blocks(*at, "U8", 2, 16, "F8_E4M3", "comfy_quant"),
            "Q4_K": lambda *at: gguf(*at, "Q4_K")}[kind]  # fmt: skip
    model = make(tmp_path, "t2v_A14B_expert")
    tensors = {f"{LAYER}.{part}": ("F16", shape) for part, shape in shapes.items()}
    lora = files.write_hollow(tmp_path / "lora.safetensors", tensors)
    diagnosis = diagnose([model, lora])
    assert diagnosis.healthy == fits, diagnosis.report()
    assert ("lora.safetensors on wan" in diagnosis.report()) == fits
    if not fits:
        assert "blocks.3.self_attn.q" in diagnosis.report() and "Take a LoRA made for" in diagnosis.report()


def test_the_doctor_counts_what_of_a_lora_matches(parts, tmp_path):
    layers = ("blocks.3.self_attn.q", "blocks.3.cross_attn.k_img", "blocks.3.to_gate_compress", "blocks.77.ffn.0")
    pair = {"lora_A.weight": ("F16", [8, 5120]), "lora_B.weight": ("F16", [5120, 8])}
    tensors = {f"diffusion_model.{layer}.{part}": value for layer in layers for part, value in pair.items()}
    report = diagnose(
        [parts[0]["t2v_A14B_expert"].path, files.write_hollow(tmp_path / "a.safetensors", tensors)]
    ).report()
    assert "a.safetensors on t2v_A14B_expert.safetensors: 1 of 4 layers; 1 unknown, harmless (picture" in report
    low = files.write_hollow(tmp_path / "a_low.safetensors", tensors)
    high = files.write_model(tmp_path / "wan_high.safetensors", "t2v_A14B_expert")
    assert "a_low.safetensors on" not in diagnose([high, low]).report(), "it is for the other expert"
    assert "harmless (gates of FastVideo's" in report and "; 1 unknown: blocks.77.ffn.0" in report


@pytest.mark.parametrize("kind", ["bf16", "Q4_K"])
def test_a_control_lora_needs_a_model_with_a_narrower_input(kind, parts, tmp_path):
    """Whatever the other layers do: without its input it follows no control video."""
    patch, queries = "diffusion_model.patch_embedding", {"lora_A.weight": [8, 5120], "lora_B.weight": [5120, 8]}
    tensors = {f"{LAYER}.{part}": ("F16", shape) for part, shape in queries.items()}
    tensors |= {
        f"{patch}.lora_A.weight": ("F16", [8, 32, 1, 2, 2]),
        f"{patch}.lora_B.weight": ("F16", [5120, 8, 1, 1, 1]),
        f"{patch}.reshape_weight": ("F32", [5]),
    }
    lora = files.write_hollow(tmp_path / "control.safetensors", tensors)
    make = single if kind == "bf16" else lambda *at: gguf(*at, "Q4_K")
    fitting = diagnose([make(tmp_path, "t2v_A14B_expert"), lora])
    assert fitting.healthy and "2 of 2 layers" in fitting.report() and "input: 32 channels" in fitting.report()
    refused = diagnose([make(tmp_path, "i2v_A14B_expert"), lora])
    assert not refused.healthy and "more channels than the model's 36" in refused.report()


def extracted(shapes: str, small: int, modulation: bool) -> dict:
    """A LoRA as tools take it out of a whole model: pairs of matrices, and differences of all that is smaller.

    FastWan's and Turbo's: kijai/ComfyUI-KJNodes LoraExtractKJ, which leaves out five axes and modulation. LightX2V's:
    ModelTC/LightX2V tools/extract/lora_extractor.py at 29c8504, with whatever has fewer than `small` numbers whole.
    """
    out: dict[str, tuple] = {}
    for name, shape in files.shapes_of(shapes).items():
        layer, _, leaf = f"diffusion_model.{name}".rpartition(".")
        if leaf == "weight" and len(shape) == 2 and shape[0] * shape[1] >= small:
            out[f"{layer}.lora_up.weight"] = ("BF16", [shape[0], 128])
            out[f"{layer}.lora_down.weight"] = ("BF16", [128, shape[1]])
        elif leaf == "weight" and (len(shape) < 5 or modulation):
            out[f"{layer}.diff"] = ("BF16", shape)
        elif leaf == "bias":
            out[f"{layer}.diff_b"] = ("BF16", shape)
        elif leaf == "modulation" and modulation:
            out[f"{layer}.diff_m"] = ("BF16", shape)
    return out


@pytest.mark.parametrize(("shapes", "small", "modulation"), [("ti2v_5B", 0, False), ("t2v_A14B_expert", 10**6, True)])
def test_loras_taken_out_of_whole_models_match_whole(shapes, small, modulation, parts, tmp_path):
    tensors = extracted(shapes, small, modulation)
    lora = files.write_hollow(tmp_path / "lora_rank_128.safetensors", tensors)
    report = diagnose([parts[0][shapes].path, lora]).report()
    layers = len({name.rpartition(".lora_")[0] or name.rpartition(".")[0] for name in tensors})
    assert f"lora_rank_128.safetensors on {shapes}.safetensors: {layers} of {layers} layers\n" in report


def test_compute_path(parts, tmp_path):
    fp8 = inspect(scaled(tmp_path, "t2v_1.3B", "scale_weight", "scaled_fp8"))
    hopper, ampere, turing = (Card((major, minor), 24.0, (2, 11)) for major, minor in ((9, 0), (8, 6), (7, 5)))
    assert compute_path(fp8, hopper).startswith("float8") and "per token" in compute_path(fp8, hopper)
    assert "sm_89" in compute_path(fp8, ampere) and "no NVIDIA GPU" in compute_path(fp8, Card(None))
    assert compute_path(fp8, Card((8, 9), 24.0, (2, 11))).startswith("float8")
    plain = parts[0]["t2v_1.3B"]
    assert compute_path(plain, hopper).startswith("bfloat16, the type of the file") and "24 GiB" in compute_path(
        plain, hopper
    )
    assert "sm_80" in compute_path(plain, turing)
    four = inspect(blocks(tmp_path, "t2v_1.3B", "U8", 2, 16, "F8_E4M3", "comfy_quant"))
    assert compute_path(four, Card((12, 0))).startswith("nvfp4") and "sm_100" in compute_path(four, hopper)
    packed = inspect(gguf(tmp_path, "t2v_1.3B", "Q4_K"))
    assert "Triton" in compute_path(packed, hopper) and "PyTorch" in compute_path(packed, Card((9, 0), triton=False))


def test_what_8_bits_come_to_is_told(parts):
    report = diagnose([parts[0]["t2v_1.3B"].path], Card((8, 6), 24.0)).report()
    assert "layers: with the node Wan 8-bit Layers int8" in report and "Wan 8-bit Attention int8" in report
    hopper = diagnose([parts[0]["t2v_1.3B"].path], Card((9, 0), 141.0)).report()
    assert "Wan 8-bit Layers int8" in hopper and "fp8 files multiply in float8" in hopper


def test_every_model_of_the_pack_is_judged_fine(parts):
    models, vaes, texts = parts
    for name, model in models.items():
        vae = vaes["vae22" if name == "ti2v_5B" else "vae21"]
        diagnosis = diagnose([model.path, vae.path, texts["umt5_xxl"].path], Card((8, 9), 24.0))
        assert diagnosis.healthy and "computes: " in diagnosis.report(), diagnosis.report()


def test_command_is_quick_and_exits_with_its_verdict(parts):
    models, vaes, _ = parts
    command = [sys.executable, str(ROOT / "tools" / "doctor.py")]
    start, card = time.perf_counter(), {**os.environ, "WANCORE_CARD": "8.9:24"}
    good = subprocess.run(
        [*command, models["t2v_A14B_expert"].path], capture_output=True, text=True, check=False, env=card
    )
    quickest = time.perf_counter() - start
    assert good.returncode == 0 and "28.58 GB" in good.stdout and "sm_89, 24 GiB" in good.stdout
    card["WANCORE_CARD"] = "8.6:4"
    small = subprocess.run(
        [*command, models["t2v_A14B_expert"].path], capture_output=True, text=True, check=False, env=card
    )
    assert "VRAM: only 4.0 GiB are free" in small.stdout and "VRAM: only" not in good.stdout
    for _ in range(2):  # other processes may hold the machine up
        start = time.perf_counter()
        subprocess.run([*command, models["t2v_A14B_expert"].path], capture_output=True, check=False)
        quickest = min(quickest, time.perf_counter() - start)
    assert quickest < 1.0  # seconds
    bad = subprocess.run(
        [*command, models["ti2v_5B"].path, vaes["vae21"].path], capture_output=True, text=True, check=False
    )
    assert bad.returncode == 1 and "wan2.2_vae.safetensors" in bad.stdout
    imports = subprocess.run(
        [sys.executable, "-X", "importtime", *command[1:], models["t2v_A14B_expert"].path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not any(line.endswith("| torch") for line in imports.stderr.splitlines()), "torch takes seconds to import"


@pytest.mark.parametrize("factor", ['"x"', "[]"])
def test_command_goes_on_without_what_runs_have_taken(factor, parts, tmp_path):
    card = {**os.environ, "WANCORE_CARD": "8.9:24", "COMFYUI_PATH": str(tmp_path)}
    path = parts[0]["t2v_A14B_expert"].path
    command = [sys.executable, str(ROOT / "tools" / "doctor.py"), path]
    without = subprocess.run(command, capture_output=True, text=True, check=True, env=card)
    kept = tmp_path / "user" / "wancore" / "pace.json"
    kept.parent.mkdir(parents=True)
    release = tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2])
    name, key = Card((8, 9), 24.0, release).describe(), what(inspect(path))
    kept.write_text(f'{{"{name}": {{"{key}": {factor}}}}}')
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=card)
    assert (found.returncode, found.stdout) == (0, without.stdout), found.stderr


def test_command_prints_names_that_the_console_cannot(tmp_path):
    """As on Windows, where output into a file or pipe is in an old code page."""
    path = files.write_model(tmp_path / "\u89c6\u9891.safetensors", "vae21")
    command = [sys.executable, str(ROOT / "tools" / "doctor.py"), path]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONIOENCODING": "cp1252"}
    )
    assert found.returncode == 0 and "\\u89c6\\u9891.safetensors" in found.stdout, found.stderr
