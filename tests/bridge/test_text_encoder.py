"""Our UMT5 in ComfyUI's CLIP object: the native encoder's numbers, the official tokens, native prompt handling."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from wancore.pocket.tokenizer import example_sentences, train_tokenizer
from wancore.tests.comfy_host import import_comfy

import_comfy()

import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
from comfy import sd1_clip
from comfy.text_encoders import t5, wan
from wancore.nodes.bridge.lookup import rows_of
from wancore.nodes.bridge.text_encoder import HostedUMT5, load_text_encoder
from wancore.wan_core.errors import WeightsFileError, WrongModelError
from wancore.wan_core.text.tokenizer import Tokenizer
from wancore.wan_core.text.umt5 import UMT5Config, UMT5Encoder

from .test_containers import in_shards

CONFIG = UMT5Config(vocabulary=640, dim=48, attention_dim=32, ffn_dim=96, num_heads=4, num_layers=3)
NATIVE = {
    "d_model": 48,
    "d_kv": 8,
    "d_ff": 96,
    "num_heads": 4,
    "num_layers": 3,
    "vocab_size": 640,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "umt5",
}
PROMPTS = (
    "a red circle moves to the right",
    "a (red:1.4) circle, ((small)), moves (to the right:0.5)",
    r"a \(red\) circle",
    "",
    "two blue birds fly over the sea. " * 20,
)


@pytest.fixture(scope="module")
def vocabulary() -> torch.Tensor:
    return train_tokenizer(example_sentences(), 600)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    out = {}
    for name, parameter in UMT5Encoder(CONFIG).state_dict().items():
        noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
        table = name.startswith("shared") or "bias" in name
        spread = 1.0 if table else (3 / parameter.shape[-1]) ** 0.5
        out[name] = 1 + 0.2 * noise if parameter.ndim == 1 else noise * spread
    return out


@pytest.fixture(scope="module")
def folder(weights: dict, vocabulary: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("text")
    save_file({**weights, "spiece_model": vocabulary}, where / "umt5.safetensors")
    save_file({"umt5xxl": torch.full((2, CONFIG.dim), 0.25)}, where / "style.safetensors")
    return where


@pytest.fixture(autouse=True)
def as_in_a_node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The embeddings folder is the one above; no gradients."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([str(folder)], {".safetensors"}))
    with torch.inference_mode():
        yield


@pytest.fixture
def ours(folder: Path) -> comfy.sd.CLIP:
    return load_text_encoder(folder / "umt5.safetensors")


@pytest.fixture
def native(weights: dict, vocabulary: torch.Tensor, folder: Path) -> comfy.sd.CLIP:
    """ComfyUI's own classes with the small sizes; its Wan classes only know the large ones."""
    model = functools.partial(
        sd1_clip.SDClipModel,
        textmodel_json_config=dict(NATIVE),
        special_tokens={"end": 1, "pad": 0},
        model_class=t5.T5,
        enable_attention_masks=True,
        zero_out_masked=True,
    )

    class SmallTokenizer(wan.UMT5XXlTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}):  # noqa: B006  (the native signature)
            super().__init__(embedding_directory, tokenizer_data)
            self.embedding_directory, self.embedding_size = embedding_directory, CONFIG.dim

    return comfy.sd.CLIP(
        SimpleNamespace(
            params={},
            clip=functools.partial(sd1_clip.SD1ClipModel, name="umt5xxl", clip_model=model),
            tokenizer=functools.partial(sd1_clip.SD1Tokenizer, clip_name="umt5xxl", tokenizer=SmallTokenizer),
        ),
        embedding_directory=[str(folder)],
        tokenizer_data={"spiece_model": vocabulary},
        state_dict=[dict(weights)],
        model_options={"dtype": torch.float32},
    )


def conditioning(clip: comfy.sd.CLIP, prompt: str) -> torch.Tensor:
    (cond, _options), = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))  # fmt: skip
    return cond


def close(ours: torch.Tensor, native: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == native.shape
    assert (ours - native).norm() <= tolerance * native.norm()


@pytest.mark.parametrize("length", [1, 7, 200])
@pytest.mark.parametrize("layer", [None, 1, -2])
def test_the_encoder_equals_the_native_one(weights: dict, length: int, layer: int | None):
    place = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.manual_cast}
    mine, theirs = HostedUMT5(asdict(CONFIG), **place), t5.T5(NATIVE, **place)
    mine.load_state_dict(weights)
    theirs.load_state_dict(weights)
    assert mine.num_layers == theirs.num_layers
    ids = torch.randint(2, 600, (2, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[1, (length + 1) // 2 :] = 0
    embeds = mine.get_input_embeddings()(ids, out_dtype=torch.float32)
    for attention_mask in (None, mask):
        for normed in (True, False):
            options = {
                "intermediate_output": layer,
                "final_layer_norm_intermediate": normed,
                "dtype": torch.float32,
            }
            given = (None, attention_mask, embeds, [length, length])
            for one, other in zip(mine(*given, **options), theirs(*given, **options), strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    close(one, other)
    close(mine(ids, mask, dtype=torch.float32)[0], theirs(ids, mask, dtype=torch.float32)[0])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_conditionings_equal_the_native_ones(ours: comfy.sd.CLIP, native: comfy.sd.CLIP, prompt: str):
    assert ours.tokenize(prompt) == native.tokenize(prompt)
    cond = conditioning(ours, prompt)
    close(cond, conditioning(native, prompt))
    assert cond.shape == (1, 512, CONFIG.dim)
    tokens = ours.tokenize(prompt)["umt5xxl"][0].index((1, 1.0)) + 1
    assert cond[0, tokens:].eq(0).all()
    assert cond[0, :tokens].ne(0).any(dim=-1).all()


def test_weights_change_the_conditioning(ours: comfy.sd.CLIP):
    plain, weighted = conditioning(ours, "a red circle"), conditioning(ours, "a (red:1.4) circle")
    assert (plain - weighted).norm() > 1e-2 * plain.norm()


def test_embeddings(ours: comfy.sd.CLIP, native: comfy.sd.CLIP):
    prompt = "a circle, embedding:style moves"
    tokens = ours.tokenize(prompt)["umt5xxl"][0]
    assert [entry[0].tolist() for entry in tokens if torch.is_tensor(entry[0])] == [[0.25] * CONFIG.dim] * 2
    close(conditioning(ours, prompt), conditioning(native, prompt))
    assert (conditioning(ours, prompt) - conditioning(ours, "a circle, moves")).norm() > 1e-2


def test_clip_skip(ours: comfy.sd.CLIP, native: comfy.sd.CLIP):
    plain = conditioning(ours, PROMPTS[0])
    for clip in (ours, native):
        clip.clip_layer(-2)
    close(conditioning(ours, PROMPTS[0]), conditioning(native, PROMPTS[0]))
    assert (conditioning(ours, PROMPTS[0]) - plain).norm() > 1e-2 * plain.norm()


@pytest.mark.parametrize(
    "prompt",
    [
        "  a red\n\n circle &amp;amp; a ball ",
        "",
        "the cat’s “ring”",
        "a red circle",
        "a \uff08red\uff1a1.2\uff09 circle",
    ],
)
def test_tokens_are_the_official_ones(ours: comfy.sd.CLIP, vocabulary: torch.Tensor, prompt: str):
    official = Tokenizer.from_tensor(vocabulary).batch([prompt])[0][0].tolist()
    tokens = ours.tokenize(prompt)["umt5xxl"][0]
    assert [token for token, _ in tokens] == official
    assert {weight for _, weight in tokens} == {1.0}


def test_long_prompts_are_cut_and_named(
    ours: comfy.sd.CLIP, vocabulary: torch.Tensor, caplog: pytest.LogCaptureFixture
):
    prompt = "circle " * 700 + "the end"
    tokens = ours.tokenize(prompt)["umt5xxl"]
    assert len(tokens) == 1
    assert [token for token, _ in tokens[0]] == Tokenizer.from_tensor(vocabulary).batch([prompt])[0][0].tolist()
    assert "Wan reads 512" in caplog.text
    assert conditioning(ours, prompt).shape == (1, 512, CONFIG.dim)
    with_ids = ours.tokenize(prompt, return_word_ids=True)["umt5xxl"][0]
    assert [entry[:2] for entry in with_ids] == tokens[0]


def test_a_prompt_of_just_the_length_is_whole(ours: comfy.sd.CLIP, caplog: pytest.LogCaptureFixture):
    single = len(ours.tokenize("circle")["umt5xxl"][0])
    assert single == 512
    pieces = next(index for index, entry in enumerate(ours.tokenize("red red")["umt5xxl"][0]) if entry[0] == 1) // 2
    tokens = ours.tokenize("red " * (511 // pieces))["umt5xxl"][0]
    assert len(tokens) == 512
    assert not caplog.records


def test_saved_and_loaded_again(ours: comfy.sd.CLIP, folder: Path, tmp_path: Path):
    saved = ours.get_sd()
    prefix = "umt5xxl.transformer."
    file = {name.removeprefix(prefix): tensor for name, tensor in saved.items() if "logit" not in name}
    save_file(file, tmp_path / "saved.safetensors")
    again = load_text_encoder(tmp_path / "saved.safetensors")
    assert torch.equal(conditioning(again, PROMPTS[1]), conditioning(ours, PROMPTS[1]))
    assert again.get_sd().keys() == saved.keys()


def test_reload_for_another_device(ours: comfy.sd.CLIP):
    make, arguments = ours.patcher.cached_patcher_init
    for options in ({}, {"disable_dynamic": True}):
        again = make(*arguments, **options)
        assert again.is_clip
        assert again.model.state_dict().keys() == ours.patcher.model.state_dict().keys()
    clone = ours.clone()
    assert torch.equal(conditioning(clone, PROMPTS[0]), conditioning(ours, PROMPTS[0]))


def scaled(weights: dict[str, torch.Tensor], kind: torch.dtype) -> tuple[dict, dict, dict]:
    """The matrices in scaled fp8, their scales, and what they stand for in float32."""
    matrices = [
        name for name in weights if "SelfAttention.q" in name or ("DenseReluDense" in name and "norm" not in name)
    ]
    scales = {name: weights[name].abs().max() / torch.finfo(kind).max for name in matrices}
    stored = {name: (weights[name] / scales[name]).to(kind) for name in matrices}
    meant = {**weights, **{name: stored[name].float() * scales[name] for name in matrices}}
    return {**weights, **stored}, scales, meant


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("layout", ["scaled_fp8", "comfy_quant"])
def test_scaled_fp8(weights: dict, vocabulary: torch.Tensor, tmp_path: Path, layout: str, kind: torch.dtype):
    stored, scales, meant = scaled(weights, kind)
    suffix = "scale_weight" if layout == "scaled_fp8" else "weight_scale"
    stored |= {name.removesuffix("weight") + suffix: scale.reshape(()) for name, scale in scales.items()}
    if layout == "scaled_fp8":
        stored["scaled_fp8"] = torch.zeros(2, dtype=kind)
    else:
        mark = torch.tensor(list(b'{"format": "%s"}' % str(kind).removeprefix("torch.").encode()), dtype=torch.uint8)
        stored |= {name.removesuffix("weight") + "comfy_quant": mark.clone() for name in scales}
    save_file({**stored, "spiece_model": vocabulary}, tmp_path / "fp8.safetensors")
    save_file({**meant, "spiece_model": vocabulary}, tmp_path / "fp32.safetensors")
    clip = load_text_encoder(tmp_path / "fp8.safetensors")
    kept = clip.get_sd()["umt5xxl.transformer." + next(iter(scales))]
    assert kept.dtype == kind  # not blown up in memory
    close(conditioning(clip, PROMPTS[1]), conditioning(load_text_encoder(tmp_path / "fp32.safetensors"), PROMPTS[1]))


def test_native_lora(ours: comfy.sd.CLIP, native: comfy.sd.CLIP):
    layer = "text_encoders.umt5xxl.transformer.encoder.block.1.layer.0.SelfAttention.q"
    generator = torch.Generator().manual_seed(1)
    lora = {
        f"{layer}.lora_up.weight": torch.randn(32, 4, generator=generator),
        f"{layer}.lora_down.weight": torch.randn(4, 48, generator=generator),
        f"{layer}.alpha": torch.tensor(2.0),
    }
    changed = [comfy.sd.load_lora_for_models(None, clip, dict(lora), 0, 0.7)[1] for clip in (ours, native)]
    before = conditioning(ours, PROMPTS[0])
    after = conditioning(changed[0], PROMPTS[0])
    assert (after - before).norm() > 1e-2 * before.norm()
    close(after, conditioning(changed[1], PROMPTS[0]))
    close(conditioning(ours, PROMPTS[0]), before)


OFFICIAL = (
    ("encoder.block.", "blocks."),
    ("layer.0.SelfAttention.relative_attention_bias", "pos_embedding.embedding"),
    ("layer.0.SelfAttention.", "attn."),
    ("layer.0.layer_norm", "norm1"),
    ("layer.1.layer_norm", "norm2"),
    ("layer.1.DenseReluDense.wi_0", "ffn.gate.0"),
    ("layer.1.DenseReluDense.wi_1", "ffn.fc1"),
    ("layer.1.DenseReluDense.wo", "ffn.fc2"),
    ("encoder.final_layer_norm", "norm"),
    ("shared", "token_embedding"),
)


def test_official_files_with_the_tokenizer_beside(
    weights: dict, vocabulary: torch.Tensor, ours: comfy.sd.CLIP, tmp_path: Path
):
    renamed = {functools.reduce(lambda n, pair: n.replace(*pair), OFFICIAL, name): w for name, w in weights.items()}
    file = tmp_path / "umt5-xxl-enc-bf16.safetensors"
    save_file(renamed, file)
    with pytest.raises(WeightsFileError, match="spiece_model") as caught:
        load_text_encoder(file)
    assert str(file) in caught.value.where
    (tmp_path / "spiece.model").write_bytes(vocabulary.numpy().tobytes())
    assert torch.equal(conditioning(load_text_encoder(file), PROMPTS[1]), conditioning(ours, PROMPTS[1]))


@pytest.mark.parametrize("table", ["shared.weight", "encoder.embed_tokens.weight"])
def test_diffusers_folder(table: str, weights: dict, vocabulary: torch.Tensor, ours: comfy.sd.CLIP, tmp_path: Path):
    """Shards with an index; the tokenizer lies in a folder beside, and of the tied tables one is stored."""
    folder = tmp_path / "text_encoder"
    renamed = {table if name == "shared.weight" else name: tensor for name, tensor in weights.items()}
    in_shards(folder, renamed, name="model-{:05}-of-{:05}.safetensors")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(vocabulary.numpy().tobytes())
    assert torch.equal(conditioning(load_text_encoder(folder), PROMPTS[1]), conditioning(ours, PROMPTS[1]))


def test_wrong_files(weights: dict, vocabulary: torch.Tensor, tmp_path: Path):
    file = tmp_path / "wrong.safetensors"
    missing = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_file(
        {name: tensor for name, tensor in weights.items() if name != missing} | {"spiece_model": vocabulary}, file
    )
    with pytest.raises(WrongModelError, match=r"1\.DenseReluDense\.wo"):
        load_text_encoder(file)
    save_file({"head.modulation": torch.zeros(1, 2, 8)}, file)
    with pytest.raises((WrongModelError, WeightsFileError)):
        load_text_encoder(file)
    save_file({**weights, "spiece_model": torch.zeros(30, dtype=torch.uint8)}, file)
    with pytest.raises(WeightsFileError, match="tokenizer"):
        load_text_encoder(file)


def test_a_failure_leaves_no_weights_on_their_way(
    ours: comfy.sd.CLIP, cleared: list[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
):
    encoder = ours.cond_stage_model.umt5xxl.transformer

    def fails(*_unused: object, **_options: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(encoder, "encode", fails)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        conditioning(ours, "a lighthouse")
    assert cleared == [encoder]


def test_a_plain_table_is_looked_up_where_it_lies(ours: comfy.sd.CLIP):
    table = ours.cond_stage_model.umt5xxl.transformer.shared
    numbers = torch.tensor([[5, 0, 31, 5]])
    assert table.lies_in_ram
    assert torch.equal(rows_of(table.weight, numbers, torch.float32), table(numbers, out_dtype=torch.float32))
    assert rows_of(table.weight, numbers, None).dtype == table.weight.dtype
    table.weight_function = [lambda weight: 2 * weight]  # a patch: the native way applies it
    assert not table.lies_in_ram
