"""What a run remembers of its texts."""

from __future__ import annotations

import torch
from torch import nn
from wancore.wan_core.hooks import Hooks
from wancore.wan_core.texts import TextMemory

from .small_trunk import prompt, transformer, video

TIME = torch.tensor([500.0])
LAYER = nn.Identity()


def test_a_text_is_known_by_its_bits() -> None:
    memory = TextMemory(layers=1, room=10**6)
    memory.start("weights")
    text = torch.tensor([[[0.0, float("nan")]]])
    assert memory.known(text) is text
    assert memory.known(text.clone()) is text
    for other in (torch.tensor([[[-0.0, float("nan")]]]), text.double(), text.repeat(2, 1, 1)):
        assert memory.known(other) is other
    assert memory.pair(text, LAYER, lambda: ("k", "v")) == ("k", "v")  # pyright: ignore[reportArgumentType]
    assert memory.pair(text, LAYER, lambda: 1 / 0) == ("k", "v")
    assert memory.pair(text.clone(), LAYER, lambda: ("own", "")) == ("own", "")  # pyright: ignore[reportArgumentType]
    memory.start("others")
    assert memory.pair(text, LAYER, lambda: ("new", "")) == ("new", "")  # pyright: ignore[reportArgumentType]


def test_room_is_for_keys_and_values_of_every_layer() -> None:
    text = torch.ones(1, 8, 4)
    memory = TextMemory(layers=3, room=2 * 3 * text.nbytes)
    assert memory.known(text) is memory.known(text.clone())
    assert memory.known(2 * text) is not memory.known(2 * text)


def test_a_trunk_gives_the_same_bits() -> None:
    model, memory, calls = transformer(), TextMemory(layers=3, room=10**6), []
    model.blocks[1].cross_attn.v.register_forward_hook(lambda *_: calls.append(1))
    for text in (prompt(), prompt(), prompt(2)):
        memory.start(None)
        x = video(len(text.text))
        plain = model(x, TIME.expand(len(x)), text)
        calls.clear()
        assert torch.equal(model(x, TIME.expand(len(x)), text, Hooks(texts=memory)), plain)
    assert calls == [1], "another batch is another text"
    assert torch.equal(model(video(), TIME, prompt(), Hooks(texts=memory)), model(video(), TIME, prompt()))
    assert calls == [1, 1], "only the call without a memory computes"
