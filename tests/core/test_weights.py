"""Weights files: detection from names and shapes, hostile and broken files, pairing. No tensor is ever read."""

from __future__ import annotations

import json
import os
import random
import resource
import struct
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from wancore.wan_core.errors import WeightsFileError, WrongModelError
from wancore.wan_core.weights import check_pair, check_text_encoder, check_vae, inspect, require
from wancore.wan_core.weights.container import PEEK
from wancore.wan_core.weights.header import MAX_HEADER
from wancore.wan_core.weights.names import expert_of, is_distilled, partner_names
from wancore.wan_core.weights.wholeness import check_blocks, check_tensors, check_types

from . import weight_files as files

FAMILIES = {  # file under tests/shapes: (kind, family, width, layers, in, out)
    "t2v_A14B_expert": ("diffusion_model", "t2v-A14B", 5120, 40, 16, 16),
    "i2v_A14B_expert": ("diffusion_model", "i2v-A14B", 5120, 40, 36, 16),
    "ti2v_5B": ("diffusion_model", "ti2v-5B", 3072, 30, 48, 48),
    "t2v_1.3B": ("diffusion_model", "t2v-1.3B", 1536, 30, 16, 16),
    "s2v_14B": ("diffusion_model", "s2v-14B", 5120, 40, 16, 16),
    "animate_14B": ("diffusion_model", "animate-14B", 5120, 40, 36, 16),
    "vace_1.3B": ("diffusion_model", "vace-2.1", 1536, 30, 16, 16),
    "vace_14B": ("diffusion_model", "vace-2.1", 5120, 40, 16, 16),
    "fun_camera_A14B": ("diffusion_model", "fun-A14B", 5120, 40, 36, 16),
    "fun_control_A14B": ("diffusion_model", "fun-A14B", 5120, 40, 52, 16),
    "wan21_flf2v_14B": ("diffusion_model", "flf2v-2.1", 5120, 40, 36, 16),
    "wan21_i2v_14B": ("diffusion_model", "i2v-2.1", 5120, 40, 36, 16),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_detects_every_transformer(tmp_path, name, prefix):
    kind, family, dim, layers, in_dim, out_dim = FAMILIES[name]
    found = inspect(files.write_model(tmp_path / "x.safetensors", name, prefix=prefix))
    config = found.config
    assert (found.kind, found.family.id, found.prefix) == (kind, family, prefix)
    assert (config.dim, config.num_layers, config.in_dim, config.out_dim) == (dim, layers, in_dim, out_dim)
    assert (config.num_heads, config.text_dim, config.freq_dim, config.patch_size) == (dim // 128, 4096, 256, (1, 2, 2))


def test_vace_of_two_experts_is_told_by_its_name(tmp_path):
    """The tensors of Wan 2.1 VACE 14B and of both experts of Wan 2.2 VACE-Fun are alike."""
    names = {
        "wan2.1_vace_14B_fp16": "vace-2.1",
        "wan2.2_fun_vace_high_noise_14B_bf16": "vace-fun-A14B",
        "Wan2.2-VACE-Fun-A14B-low-noise-Q4": "vace-fun-A14B",
    }
    for name, family in names.items():
        assert inspect(files.write_model(tmp_path / f"{name}.safetensors", "vace_14B")).family.id == family


@pytest.mark.parametrize(
    ("shapes", "changes", "family"),
    [
        ("i2v_A14B_expert", {"patch_embedding.weight": [5120, 52, 1, 2, 2]}, "fun-A14B"),  # control without ref_conv
        ("ti2v_5B", {"patch_embedding.weight": [3072, 100, 1, 2, 2]}, "fun-5B"),
        ("ti2v_5B", {"patch_embedding.weight": [3072, 148, 1, 2, 2]}, "fun-5B"),
        ("ti2v_5B", {"patch_embedding.weight": [3072, 100, 1, 2, 2], "control_adapter.conv.weight": [3072, 6144, 2, 2]},
         "fun-5B"),
        ("ti2v_5B", {"patch_embedding.weight": [3072, 52, 1, 2, 2], "control_adapter.conv.weight": [3072, 6144, 2, 2]},
         "camera"),
        ("wan21_i2v_14B", {"patch_embedding.weight": [5120, 48, 1, 2, 2]}, "fun-2.1"),
        ("wan21_i2v_14B", {"patch_embedding.weight": [5120, 32, 1, 2, 2],
                           "control_adapter.conv.weight": [5120, 1536, 2, 2]}, "fun-2.1"),
        ("ti2v_5B", {"patch_embedding.weight": [3072, 64, 1, 2, 2]}, "wan"),
    ],
)  # fmt: skip
def test_fun_models_are_told_by_their_channels(tmp_path, shapes, changes, family):
    tensors = {name: ("BF16", shape) for name, shape in {**files.shapes_of(shapes), **changes}.items()}
    assert inspect(files.write_hollow(tmp_path / "x.safetensors", tensors)).family.id == family


def test_every_shape_file_is_detected():
    known = set(FAMILIES) | {"umt5_xxl", "vae21", "vae22", "wav2vec2_large", "clip_vision_h"}
    assert {path.stem for path in files.SHAPES.glob("*.json")} == known


def test_detects_the_other_parts(tmp_path):
    def read(name):
        return inspect(files.write_model(tmp_path / f"{name}.safetensors", name))

    assert (read("vae21").kind, read("vae21").family.id, read("vae21").width) == ("vae", "vae21", 16)
    assert (read("vae22").kind, read("vae22").family.id, read("vae22").width) == ("vae", "vae22", 48)
    assert (read("umt5_xxl").kind, read("umt5_xxl").width) == ("text_encoder", 4096)


def test_detects_the_published_text_encoder_layout_and_its_strangers(tmp_path):
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    query = {"encoder.block.0.layer.0.SelfAttention.q.weight": ("F16", [4096, 4096])}
    t5 = {"shared.weight": ("F16", [32128, 4096]), bias.format(0): ("F16", [32, 64]), **query}
    umt5 = {**t5, "shared.weight": ("F16", [256384, 4096]), bias.format(1): ("F16", [32, 64])}
    assert inspect(files.write_hollow(tmp_path / "t5.safetensors", t5)).family.id == "t5"
    assert inspect(files.write_hollow(tmp_path / "umt5.safetensors", umt5)).family.id == "umt5"
    clip = {"text_model.encoder.layers.0.mlp.fc1.weight": ("F16", [3072, 768])}
    assert inspect(files.write_hollow(tmp_path / "clip.safetensors", clip)).kind == "text_encoder"
    sdxl = {"model.diffusion_model.input_blocks.0.0.weight": ("F16", [320, 4, 3, 3]),
            "first_stage_model.decoder.conv_in.weight": ("F16", [512, 4, 3, 3])}  # fmt: skip
    assert inspect(files.write_hollow(tmp_path / "sdxl.safetensors", sdxl)).family.id == "other"
    lora = {"diffusion_model.blocks.0.ffn.0.lora_down.weight": ("F16", [64, 5120])}
    assert inspect(files.write_hollow(tmp_path / "lora.safetensors", lora)).kind == "lora"


def test_precision_and_scales(tmp_path):
    shapes = files.shapes_of("t2v_1.3B")
    plain = {name: ("F8_E4M3" if len(shape) == 2 else "F32", shape) for name, shape in shapes.items()}
    found = inspect(files.write_hollow(tmp_path / "a.safetensors", plain))
    assert (found.precision, found.quantised) == ("fp8_e4m3fn", "")
    scaled = {**plain, "scaled_fp8": ("F8_E4M3", [0]), "blocks.0.ffn.0.scale_weight": ("F32", [])}
    found = inspect(files.write_hollow(tmp_path / "b.safetensors", scaled))
    assert (found.precision, found.quantised) == ("fp8_e4m3fn", "scaled_fp8")
    marked = {**plain, "blocks.0.ffn.0.comfy_quant": ("U8", [30]), "blocks.0.ffn.0.weight_scale": ("F32", [])}
    assert inspect(files.write_hollow(tmp_path / "c.safetensors", marked)).quantised == "comfy_quant"
    unmarked = inspect(
        files.write_hollow(tmp_path / "d.safetensors", {**plain, "blocks.0.ffn.0.weight_scale": ("F32", [8960, 1])})
    )
    assert unmarked.quantised == "unmarked"
    require(unmarked, "diffusion_model")  # LightX2V's: one scale for each output channel
    packed = {name: ("U8", shape) if len(shape) == 2 else ("F32", shape) for name, shape in shapes.items()}
    packed["blocks.0.ffn.0.weight_scale"] = ("F32", [8960, 1])
    with pytest.raises(WrongModelError):
        require(inspect(files.write_hollow(tmp_path / "e.safetensors", packed)), "diffusion_model")


def test_head_count_from_metadata_is_taken_only_if_it_fits(tmp_path):
    tensors = {name: ("BF16", shape) for name, shape in files.shapes_of("t2v_1.3B").items()}

    def heads(value):
        metadata = {"config": json.dumps({"transformer": {"num_heads": value}})}
        return inspect(files.write_hollow(tmp_path / "x.safetensors", tensors, metadata)).config.num_heads

    assert heads(24) == 24
    assert heads("24") == heads(-1) == 12
    with pytest.raises(WeightsFileError):
        heads(7)


# Hostile and broken files


def valid_file() -> bytes:
    tensors = {"blocks.0.ffn.0.weight": ("BF16", [4, 6]), "some.modulation": ("F32", [1, 2, 4]), "empty": ("F32", [0])}
    return files.header_bytes(tensors, {"format": "pt"}) + bytes(range(80))


WRONG_KINDS = {
    "web page": (b"<!DOCTYPE html><html><head><title>Sign in</title>", "web page"),
    "web page after a blank line": (b"\n\n<html lang='en'>" + b" " * 600, "web page"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 14294743040\n", "git-lfs"),
    "zip pickle": (b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl" + b"\x00" * 64, "pickle"),
    "old pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "pickle"),
    "empty": (b"", "empty"),
    "zeros": (b"\x00" * 4096, "never finished"),
    "json": (b'{"error": "Access to model is restricted"}', "JSON"),
    "text": (b"Invalid username or password.", "text"),
    "noise": (bytes((7 * i * i + 13) % 251 for i in range(2, 400)), "no format"),
    "gzip": (b"\x1f\x8b\x08\x00abcdefgh", "archive"),
}


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_tells_what_a_wrong_file_is(tmp_path, kind):
    content, words = WRONG_KINDS[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsFileError) as caught:
        inspect(path)
    assert words in caught.value.found and str(path) in caught.value.where and caught.value.remedy


def test_a_pickle_is_never_opened(tmp_path):
    mark = tmp_path / "executed"
    payload = f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    for name in ("a.pt", "b.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02" + payload)
        with pytest.raises(WeightsFileError):
            inspect(tmp_path / name)
    assert not mark.exists()


PICKLES = {  # official files and others' in the shapes that people have them: the file to take
    "Wan2.1-T2V-14B/Wan2.1_VAE.pth": "wan_2.1_vae.safetensors",
    "vae/Wan2_1_VAE_bf16.pth": "wan_2.1_vae.safetensors",
    "Wan2.2-TI2V-5B/Wan2.2_VAE.pth": "wan2.2_vae.safetensors",
    "lightx2v/lightvaew2_1.pth": "wan_2.1_vae.safetensors",
    "vae_approx/taew2_1.pth": "lighttaew2_1.safetensors",
    "vae_approx/taew2_2.pth": "lighttaew2_2.safetensors",
    "Wan2.2-T2V-A14B/models_t5_umt5-xxl-enc-bf16.pth": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "text_encoders/pytorch_model.bin": "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "I2V/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth": "clip_vision_h.safetensors",
    "wav2vec2-large-xlsr-53-english/pytorch_model.bin": "wav2vec2_large_english_fp16.safetensors",
    "Wan2.2-Animate-14B/relighting_lora.ckpt": "WanAnimate_relight_lora_fp16.safetensors",
    "loras/Wan2.2-T2V-Lightning-4steps-lora-low_noise.pt": "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors",
    "loras/wan22_i2v_high_lightx2v_lora.bin": "wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise.safetensors",
    "FastWan2.2-TI2V-5B-FullAttn/model.pt": "Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors",
    "Wan2.2-TI2V-5B-Turbo/model.pt": "Wan22_TI2V_5B_Turbo_lora_rank_64_fp16.safetensors",
    "loras/my_style.ckpt": "my_style.safetensors",
    "models/wan2.2_t2v_low_noise_14B.pth": "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors",
    "models/wan22-i2v-a14b-high-noise.ckpt": "wan2.2_i2v_high_noise_14B_fp8_scaled.safetensors",
    "models/Wan2.2-TI2V-5B.pt": "wan2.2_ti2v_5B_fp16.safetensors",
    "models/wan_s2v.pth": "wan2.2_s2v_14B_fp8_scaled.safetensors",
    "models/self_forcing_dmd.pt": "self_forcing_dmd.safetensors",
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_is_refused_with_the_file_to_take(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir()
    for start in (b"\x80\x02", b"PK\x03\x04"):
        path.write_bytes(start + b"\0" * 100)
        with pytest.raises(WeightsFileError) as caught:
            inspect(path)
        assert f"Take {PICKLES[name]} " in caught.value.remedy and str(path) in caught.value.where


def test_what_is_no_file_at_all(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    places = [tmp_path, tmp_path / "nothing", tmp_path / "dangling", tmp_path / "nothing" / "x"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        places += [tmp_path / "pipe", Path("/dev/zero")]
    for place in places:
        with pytest.raises(WeightsFileError) as caught:
            inspect(place)
        assert str(place) in caught.value.where


def unreadable(folder: Path) -> Path:
    """A file that may not be read; for a user who may read all, one that the system refuses to read."""
    if os.geteuid() == 0:
        return Path("/proc/self/mem")
    path = folder / "x.safetensors"
    path.write_bytes(valid_file())
    path.chmod(0)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_unreadable_file(tmp_path):
    path = unreadable(tmp_path)
    with pytest.raises(WeightsFileError) as caught:
        inspect(path)
    assert "cannot be read" in caught.value.what and str(path) in caught.value.where and caught.value.found


def test_every_truncation_is_refused_and_counted(tmp_path):
    whole = valid_file()
    path = tmp_path / "x.safetensors"
    length = struct.unpack("<Q", whole[:8])[0]
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(WeightsFileError) as caught:
            inspect(path)
        if size >= 8:
            missing = len(whole) - size if size >= 8 + length else 8 + length - size
            assert caught.value.found == f"{missing} bytes missing", size
    path.write_bytes(whole)
    assert inspect(path).kind == "unknown"


def handcrafted() -> list[bytes]:
    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    tables = [
        {"a": {**good, "shape": [-2]}},
        {"a": {**good, "shape": [2.0]}},
        {"a": {**good, "shape": [True, 2]}},
        {"a": {**good, "shape": [2**62, 2**62]}},
        {"a": {**good, "shape": [1] * 100 + [2]}},
        {"a": {**good, "shape": "2"}},
        {"a": {**good, "data_offsets": [8, 0]}},
        {"a": {**good, "data_offsets": [0, 2**63]}},
        {"a": {**good, "data_offsets": [-8, 0]}},
        {"a": {**good, "data_offsets": [0]}},
        {"a": {**good, "data_offsets": [4, 12]}},
        {"a": good, "b": good},
        {"a": {**good, "dtype": "F31"}},
        {"a": {**good, "dtype": None}},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": {**good, "extra": 1}},
        {"a": [1]},
        {"a": good, "__metadata__": {"x": 1}},
        {"a": good, "__metadata__": []},
        {"a": good, "__metadata__": None},
    ]
    raw = [json.dumps(table).encode() for table in tables]
    raw += [
        b'{"a":' + json.dumps(good).encode() + b',"a":' + json.dumps(good).encode() + b"}",
        b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}',
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}',
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"{" + b"[" * 200_000,
        b'{"\xff":1}',
        b"{}x",
        b"[]",
    ]
    return [struct.pack("<Q", len(text)) + text + bytes(8) for text in raw]


def test_handcrafted_headers_are_refused_fast(tmp_path):
    path = tmp_path / "x.safetensors"
    cases = [*handcrafted(), struct.pack("<Q", MAX_HEADER + 1) + b"{", valid_file() + b"x"]
    for case in cases:
        path.write_bytes(case)
        seconds = []
        for _ in range(2):  # other processes may hold the machine up
            start = time.perf_counter()
            with pytest.raises(WeightsFileError) as caught:
                inspect(path)
            seconds.append(time.perf_counter() - start)
        assert str(path) in caught.value.where
        assert min(seconds) < 0.25, case[:60]
        tracemalloc.start()
        try:
            with pytest.raises(WeightsFileError):
                inspect(path)
            assert tracemalloc.get_traced_memory()[1] < 2**20 + 40 * len(case), case[:60]
        finally:
            tracemalloc.stop()


def test_twenty_thousand_mutations_give_our_error_or_a_valid_file(tmp_path):
    rng = random.Random(20261120)
    whole = valid_file()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    path = tmp_path / "x.safetensors"
    path.touch()
    refused, slowest, most = 0, 0.0, 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(20_000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(end)
            action = rng.randrange(4)
            if action == 0:
                data[place] = rng.randrange(256)
            elif action == 1:
                data[place] ^= 1 << rng.randrange(8)
            elif action == 2:
                del data[place]
            else:
                data[place:place] = rng.choice((b"0", b"9", b'"', b"}", b"-", b"[", b"\\u0000", b"1e9"))
        with path.open("r+b") as file:  # emptying it first makes file systems write it out at once
            file.write(data)
            file.truncate()
        if number % 20 == 0:  # tracing makes it many times slower
            tracemalloc.start()
        start = time.process_time()
        try:
            inspect(path)
        except WeightsFileError:
            refused += 1
        slowest = max(slowest, time.process_time() - start)
        if tracemalloc.is_tracing():
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert slowest < 0.25  # seconds
    assert most < 2**20, "memory was taken for what a header says"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50 * 1024  # KiB, in any of them
    assert 15_000 < refused < 20_000  # most are refused; a changed letter of a name is not an error


def test_only_the_header_is_read(tmp_path, monkeypatch):
    path = files.write_model(tmp_path / "x.safetensors", "t2v_A14B_expert")
    length = struct.unpack("<Q", path.open("rb").read(8))[0]
    before = Path("/proc/self/io").read_text() if Path("/proc/self/io").exists() else ""
    start = time.perf_counter()
    inspect(path)
    assert time.perf_counter() - start < 1.0
    if before:
        after = Path("/proc/self/io").read_text()
        read = int(after.split()[1]) - int(before.split()[1])
        assert read < length + 8 + PEEK + 100_000  # bytes; the file has 28.6 GB


# Names


def test_expert_names():
    high = [
        "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors",
        "Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn_scaled_KJ.safetensors",
        "HighNoise/Wan2.2-T2V-A14B-HighNoise-Q4_K_M.gguf",
        "high_noise_model/diffusion_pytorch_model.safetensors",
        "wan22_h_bf16.safetensors",
        "smoothMixWan2214BI2V_i2vHigh.safetensors",
    ]
    for name in high:
        assert expert_of(name) == "high", name
        (same, *_) = partner_names(name)
        assert expert_of(partner_names(name)[-1]) == "low" or expert_of(same) == "low", name
    for name in (
        "wan2.1_t2v_14B.safetensors",
        "slow_flow.safetensors",
        "highres_fix.safetensors",
        "high_low.safetensors",
        "wanFlow.safetensors",
        "Wan22LowVRAM.safetensors",
        "Wan22HighRes.safetensors",
    ):
        assert expert_of(name) is None, name
    assert partner_names("HighNoise/Wan2.2-HighNoise-Q8.gguf")[-1] == "LowNoise/Wan2.2-LowNoise-Q8.gguf"
    assert partner_names("x_i2vHigh.safetensors") == ("x_i2vLow.safetensors",)
    assert partner_names("a/x_HIGH_y.safetensors") == ("a/x_LOW_y.safetensors",)
    assert partner_names("a\\x_low_noise.safetensors") == ("a/x_high_noise.safetensors",)


def test_distilled_names():
    for name in (
        "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise",
        "Wan22-Lightning",
        "Wan2_2_5B_FastWanFullAttn_lora_rank_128_bf16.safetensors",
        "Wan22_TI2V_5B_Turbo_lora_rank_64_fp16.safetensors",
        "wan_CausVid_14B",
        "x_rcm_y",
    ):
        assert is_distilled(name), name
    for name in ("wan2.2_t2v_high_noise_14B_fp8_scaled", "orcmoon", "14steps", "breakfast_wan", "style_lora"):
        assert not is_distilled(name), name


# Pairs


@pytest.fixture
def models(tmp_path):
    names = {
        "t2v_high": ("wan2.2_t2v_high_noise_14B.safetensors", "t2v_A14B_expert"),
        "t2v_low": ("wan2.2_t2v_low_noise_14B.safetensors", "t2v_A14B_expert"),
        "i2v_low": ("wan2.2_i2v_low_noise_14B.safetensors", "i2v_A14B_expert"),
        "5b": ("wan2.2_ti2v_5B.safetensors", "ti2v_5B"),
        "s2v": ("wan2.2_s2v_14B.safetensors", "s2v_14B"),
        "vace": ("wan2.1_vace_14B.safetensors", "vace_14B"),
        "animate": ("wan2.2_animate_14B.safetensors", "animate_14B"),
        "vae21": ("wan_2.1_vae.safetensors", "vae21"),
        "vae22": ("wan2.2_vae.safetensors", "vae22"),
        "text": ("umt5_xxl.safetensors", "umt5_xxl"),
    }
    return {key: inspect(files.write_model(tmp_path / name, shapes)) for key, (name, shapes) in names.items()}


def test_pairs(models, tmp_path):
    check_pair(models["t2v_high"], models["t2v_low"])
    wrong = [("t2v_high", "i2v_low"), ("t2v_low", "t2v_high"), ("t2v_high", "t2v_high"), ("t2v_high", "5b")]
    for high, low in wrong:
        with pytest.raises(WrongModelError) as caught:
            check_pair(models[high], models[low])
        assert models[high].name in caught.value.where and models[low].name in caught.value.where
    with pytest.raises(WrongModelError) as caught:
        check_pair(models["t2v_high"], models["i2v_low"])
    assert models["t2v_low"].name in caught.value.remedy


def test_every_file_in_every_wrong_place_is_refused(models):
    right = {
        "diffusion_model": {"t2v_high", "t2v_low", "i2v_low", "5b", "s2v", "vace", "animate"},
        "vae": {"vae21", "vae22"},
        "text_encoder": {"text"},
    }
    for kind, fitting in right.items():
        for name, checkpoint in models.items():
            if name in fitting:
                require(checkpoint, kind)
                continue
            with pytest.raises(WrongModelError) as caught:
                require(checkpoint, kind)
            assert checkpoint.name in caught.value.where and caught.value.remedy


def test_vae_and_text_encoder_must_fit_the_model(models, tmp_path):
    check_vae(models["t2v_high"], models["vae21"])
    check_vae(models["5b"], models["vae22"])
    for model, vae, name in (("t2v_high", "vae22", "wan_2.1_vae"), ("5b", "vae21", "wan2.2_vae")):
        with pytest.raises(WrongModelError) as caught:
            check_vae(models[model], models[vae])
        assert models[vae].name in caught.value.where and models[model].name in caught.value.found
        assert name in caught.value.remedy
    check_text_encoder(models["t2v_high"], models["text"])
    small = {name: ("BF16", [64 if axis == 4096 else axis for axis in shape])
             for name, shape in files.shapes_of("umt5_xxl").items()}  # fmt: skip
    with pytest.raises(WrongModelError):
        check_text_encoder(models["t2v_high"], inspect(files.write_hollow(tmp_path / "small.safetensors", small)))


def test_tensors_are_compared_by_name_and_shape():
    expected = {"a.weight": (4, 8), "a.bias": (4,)}
    check_tensors("x", "vae", expected, expected)
    check_tensors("x", "vae", {**expected, "a.weight_scale": (), "scaled_fp8": (0,)}, expected)
    check_tensors("x", "vae", {**expected, "a.weight": (4, 4)}, expected, packed=True)
    wrong = [{"a.weight": (4, 8)}, {**expected, "b.weight": (1,)}, {**expected, "a.weight": (4, 4)},
             {**expected, "b.weight_scale": ()}]  # fmt: skip
    for found in wrong:
        with pytest.raises(WrongModelError):
            check_tensors("x", "vae", found, expected)
    many = {f"layer{i}": (1,) for i in range(9)}
    with pytest.raises(WrongModelError) as caught:
        check_tensors("x", "vae", {}, many)
    assert caught.value.found.startswith("9 missing: layer0, ") and caught.value.found.count("layer") == 5
    assert "layer4, ... Take" in str(caught.value), "more are meant, and the sentence ends"


def test_a_block_far_off_makes_no_others():
    """A number in a name is a lie as any other: nothing is made for the blocks that it says are before it."""
    names = {f"blocks.999.{number}.weight": (1,) for number in range(5000)}
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(WrongModelError, match=r"999 missing: blocks\.0\."):
            check_blocks("x", "text_encoder", names, dict.fromkeys(names, "F32"))
        assert time.process_time() - start < 0.25
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_types_are_those_of_the_layout():
    expected = {"a.weight": (4, 8), "a.bias": (4,)}
    check_types("x", "vae", {"a.weight": "F8_E4M3", "a.bias": "BF16", "other": "I64"}, expected)
    check_types("x", "vae", {"a.weight": "Q4_K", "a.bias": "F32"}, expected)
    for layout, kind, fits in (("", "I8", False), ("scaled_fp8", "I8", False), ("comfy_quant", "I8", True),
                               ("comfy_quant", "I64", False), ("unmarked", "U8", True), ("one scale", "I8", True),
                               ("lightx2v_nvfp4", "U8", True), ("lightx2v_nvfp4", "I8", False)):  # fmt: skip
        types = {"a.weight": kind, "a.bias": "F32"}
        if fits:
            check_types("x", "vae", types, expected, quantised=layout)
            continue
        with pytest.raises(WrongModelError) as caught:
            check_types("x", "vae", types, expected, quantised=layout)
        assert caught.value.found == f"1 of another type: a.weight {kind}" and "Load VAE" in caught.value.remedy
    with pytest.raises(WrongModelError):
        check_types("x", "vae", {"a.weight": "F32", "a.bias": "I8"}, expected, quantised="comfy_quant")
