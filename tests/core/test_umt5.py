"""UMT5: parity with the official code, sizes read from tensors, masks, names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from wancore.tools.golden_cases import read
from wancore.tools.golden_cases.text import t5
from wancore.wan_core.text.keys import encoder_name, encoder_names
from wancore.wan_core.text.umt5 import UMT5Config, UMT5Encoder, bounded, contexts, position_buckets

TESTS = Path(__file__).parents[1]
SMALL = UMT5Config(vocabulary=50, dim=24, attention_dim=30, ffn_dim=40, num_heads=3, num_layers=2)


def small_encoder(config: UMT5Config = SMALL) -> UMT5Encoder:
    torch.manual_seed(0)
    return UMT5Encoder(config).requires_grad_(False)


def test_equals_the_official_encoder():
    results = list(t5(read(TESTS / "golden" / "t5.safetensors")))
    assert len(results) == 2
    assert all(result.ok for result in results), results


def test_full_size_names_and_shapes():
    """Built on the meta device, the encoder has exactly the published file's parameters."""
    official = json.loads((TESTS / "shapes" / "umt5_xxl.json").read_text())["shapes"]
    published = {target: tuple(official[name]) for name, target in encoder_names(official).items()}
    config = UMT5Config.from_shapes(published)
    assert config == UMT5Config(256384, 4096, 4096, 10240, 64, 24)
    ours = UMT5Encoder(config, device=torch.device("meta")).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == published


def test_sizes_are_read_from_any_tensors():
    shapes = {name: tuple(tensor.shape) for name, tensor in small_encoder().state_dict().items()}
    assert UMT5Config.from_shapes(shapes) == SMALL
    table = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    with pytest.raises(KeyError, match="relative_attention_bias"):  # a plain T5: one table for all layers
        UMT5Config.from_shapes({name: shape for name, shape in shapes.items() if name != table})


def test_padding_never_reaches_the_tokens():
    encoder = small_encoder()
    ids = torch.tensor([[7, 8, 9, 1]])
    alone = encoder(ids)
    for padding, filler in ((3, 0), (20, 0), (5, 42)):
        longer = torch.cat((ids, torch.full((1, padding), filler)), dim=1)
        mask = (torch.arange(longer.shape[1]) < 4).long()[None]
        torch.testing.assert_close(contexts(encoder(longer, mask), mask)[0], alone[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(encoder(longer)[0, :4], alone[0], atol=1e-3)  # without the mask it does


def test_texts_of_a_batch_do_not_meet():
    encoder = small_encoder()
    ids, mask = torch.tensor([[5, 6, 1, 0], [9, 8, 7, 1]]), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    together = contexts(encoder(ids, mask), mask)
    for row, length in enumerate((3, 4)):
        torch.testing.assert_close(together[row], encoder(ids[row : row + 1, :length])[0], rtol=1e-5, atol=1e-6)


def test_a_layer_in_between():
    encoder = small_encoder()
    x = encoder.shared(torch.tensor([[5, 6, 1]]))
    final, kept = encoder.encode(x, layer=1)
    assert kept is not None
    torch.testing.assert_close(encoder.encoder.final_layer_norm(kept), final)
    assert encoder.encode(x)[1] is None


def test_position_buckets():
    rows = position_buckets(400, 32)
    assert rows.shape == (400, 400)
    assert rows.diagonal().eq(0).all()
    assert rows[200, 193:208].tolist() == [
        7,
        6,
        5,
        4,
        3,
        2,
        1,
        0,
        17,
        18,
        19,
        20,
        21,
        22,
        23,
    ]  # before: 0-15, after: 16-31
    assert rows[0, 128:].eq(31).all()
    assert rows[399, :272].eq(15).all()
    assert rows[0].diff()[1:].ge(0).all()


def test_float16_stays_finite():
    huge = torch.tensor([1.0, float("inf"), -float("inf"), 65504.0], dtype=torch.float16)
    assert bounded(huge).tolist() == [1.0, 64512.0, -64512.0, 64512.0]
    assert bounded(huge.float())[1].isinf()


def test_names():
    assert (
        encoder_name("blocks.3.ffn.gate.0.scale_weight") == "encoder.block.3.layer.1.DenseReluDense.wi_0.scale_weight"
    )
    assert encoder_name("text_encoders.umt5xxl.transformer.shared.weight") == "shared.weight"
    assert encoder_name("spiece_model") == "spiece_model"
    tied = ["encoder.embed_tokens.weight", "shared.weight"]
    assert encoder_names(tied) == {"shared.weight": "shared.weight"}
    assert encoder_names(tied[:1]) == {"encoder.embed_tokens.weight": "shared.weight"}
