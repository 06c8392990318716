"""Weights that are sent ahead of their blocks, through ComfyUI's own queue; only the card is stood in for."""

from __future__ import annotations

import comfy.model_management as management
import comfy.model_prefetch
import comfy.ops
import pytest
import torch
from torch import nn
from wancore.nodes.bridge import residency
from wancore.nodes.bridge.ops import stream

CPU = torch.device("cpu")


class Card:
    """Notes which layers were sent; fails so often at the second layer of the second block."""

    def __init__(self, failures: int, message: str) -> None:
        self.sent: list[int] = []
        self.failures, self.message = failures, message

    def send(self, layers: list[nn.Module], *_unused: object) -> None:
        for layer in layers:
            assert not hasattr(layer, "_prefetch"), "sent, and never taken back"
            if layer._v == 3 and self.failures:
                self.failures -= 1
                raise RuntimeError(self.message)
            layer._prefetch = {"signature": None}
            self.sent.append(layer._v)


@pytest.fixture
def blocks() -> list[nn.Module]:
    """Two with two layers each, numbered."""
    made = [nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    for number, layer in enumerate(layer for block in made for layer in block):
        layer._v = number
    return made


def streamed(blocks: list[nn.Module], card: Card, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks in the order in which they compute; the card caught up in between where a block is -1."""
    order: list[int] = []
    queued = [None, *blocks, None]
    monkeypatch.setattr(comfy.model_prefetch, "make_prefetch_queue", lambda *_: queued)
    monkeypatch.setattr(comfy.ops, "cast_modules_with_vbar", card.send)
    monkeypatch.setattr(management, "ensure_pin_registerable", lambda _size: True)
    monkeypatch.setattr(management, "soft_empty_cache", lambda: order.append(-1))
    for index, block in stream(blocks, CPU, {}):
        assert block is blocks[index] and all(hasattr(layer, "_prefetch") for layer in block)
        order.append(index)
    assert not any(hasattr(layer, "_prefetch") for block in blocks for layer in block)
    return order


def test_each_block_is_sent_once(blocks, monkeypatch):
    card = Card(0, "")
    assert streamed(blocks, card, monkeypatch) == [0, 1] and card.sent == [0, 1, 2, 3]


def test_a_block_that_finds_no_room_is_sent_again_when_the_card_caught_up(blocks, monkeypatch):
    """PyTorch keeps what the blocks before it worked in, and other allocators do not get it."""
    residency._note_short_memory.cache_clear()
    card = Card(1, "VRAM grow failed: 403874816 bytes")
    assert streamed(blocks, card, monkeypatch) == [0, -1, 1] and card.sent == [0, 1, 2, 2, 3]


@pytest.mark.parametrize(("failures", "message"), [(2, "VRAM grow failed: 1 bytes"), (1, "the file was cut off")])
def test_what_helps_not_is_an_error(blocks, monkeypatch, failures, message):
    with pytest.raises(RuntimeError, match=message):
        streamed(blocks, Card(failures, message), monkeypatch)
