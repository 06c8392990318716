"""Prompt cleaning and tokens, with a vocabulary trained on the spot."""

from __future__ import annotations

import pytest
import torch
from wancore.pocket.tokenizer import example_sentences, train_tokenizer
from wancore.wan_core.errors import WeightsFileError
from wancore.wan_core.text import clean as cleaning
from wancore.wan_core.text.clean import clean
from wancore.wan_core.text.tokenizer import END, PAD, TEXT_TOKENS, Tokenizer
from wancore.wan_core.weights.vocabulary import tokenizer_file


@pytest.fixture(scope="module")
def model() -> torch.Tensor:
    return train_tokenizer(example_sentences(), 600)


@pytest.fixture(scope="module")
def tokenizer(model: torch.Tensor) -> Tokenizer:
    return Tokenizer.from_tensor(model)


def test_clean():
    assert clean("  a \n\t red   ball  ") == "a red ball"
    assert clean("salt &amp;amp; pepper &lt;3") == "salt & pepper <3"
    assert clean("") == ""
    assert clean("红色的球　在移动") == "红色的球 在移动"  # an ideographic space is whitespace


@pytest.mark.skipif(not cleaning.HAS_FTFY, reason="ftfy is not installed")
def test_clean_repairs_mojibake():
    assert clean("cafÃ© “chic”") == 'café "chic"'


def test_clean_without_ftfy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cleaning, "ftfy", None)
    assert clean(" cafe\u0301  &amp; bar ") == "caf\u00e9 & bar"


def test_tokens_end_and_decode(tokenizer: Tokenizer):
    ids = tokenizer.encode("  a red   circle moves to the right ")
    assert ids[-1] == END
    assert ids.count(END) == 1
    assert tokenizer.decode(ids) == "a red circle moves to the right"
    assert tokenizer.encode("") == [END]
    assert max(tokenizer.vocabulary().values()) < 600


def test_long_text_is_cut_before_its_end_token(tokenizer: Tokenizer):
    ids = tokenizer.encode("circle " * 2000)
    assert len(ids) == TEXT_TOKENS
    assert ids[-1] == END
    assert END not in ids[:-1]
    assert len(tokenizer.encode("a red circle", tokens=3)) == 3


def test_batch(tokenizer: Tokenizer):
    ids, mask = tokenizer.batch(["a red circle", ""], tokens=16)
    assert ids.shape == mask.shape == (2, 16)
    assert mask[1].tolist() == [1] + [0] * 15
    assert ids[mask == 0].eq(PAD).all()
    assert ids[0][mask[0] == 1].tolist() == tokenizer.encode("a red circle")


def test_the_model_survives_a_round_trip(model: torch.Tensor, tokenizer: Tokenizer, tmp_path):
    assert torch.equal(tokenizer.to_tensor(), model)
    (tmp_path / "spiece.model").write_bytes(model.numpy().tobytes())
    again = Tokenizer.from_file(tmp_path / "spiece.model")
    assert again.vocabulary() == tokenizer.vocabulary()


def test_garbage_is_named():
    with pytest.raises(WeightsFileError) as caught:
        Tokenizer(b"<!doctype html>", where="/models/umt5.safetensors")
    assert caught.value.where == "/models/umt5.safetensors"
    assert "spiece_model" in caught.value.remedy


def test_the_file_beside_the_weights(tmp_path):
    weights = tmp_path / "umt5-xxl-enc-bf16.safetensors"
    assert tokenizer_file(weights) is None
    (tmp_path / "spiece.model").touch()
    assert tokenizer_file(weights) == tmp_path / "spiece.model"
    (tmp_path / "umt5-xxl-enc-bf16.model").touch()
    assert tokenizer_file(weights) == tmp_path / "umt5-xxl-enc-bf16.model"
