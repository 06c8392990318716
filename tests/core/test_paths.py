"""The table of ways of computing, over cards that are not here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from wancore.wan_core import paths
from wancore.wan_core.paths import Card


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (Card(None), "decoded"),
        (Card((7, 5), 8), "decoded"),
        (Card((8, 6), 24), "decoded"),
        (Card((8, 9), 12, torch=(2, 11)), "tensor8"),  # can hang there
        (Card((8, 9), 12, torch=(2, 12)), "rows8"),
        (Card((9, 0), 141, torch=(2, 11)), "rows8"),
        (Card((12, 0), 32, torch=(2, 11)), "rows8"),
        (Card((12, 0), 32, torch=(2, 11), windows=True), "tensor8"),
        (Card((9, 0), 80, torch=(2, 11), triton=False), "tensor8"),
    ],
)
def test_float8_linear(card: Card, expected: str) -> None:
    path = paths.float8_linear(card)
    assert path.name == expected and path.why


@pytest.mark.parametrize("path_of", [paths.attention_in_8_bits, paths.layers_in_8_bits])
@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (Card(None), "exact"),
        (Card((7, 5), 8), "exact"),
        (Card((8, 6), 12), "int8"),
        (Card((8, 9), 24), "int8"),
        (Card((8, 9), 24, triton=False), "exact"),
        (Card((9, 0), 141), "int8"),
        (Card((10, 0), 180), "exact"),
        (Card((12, 0), 32), "int8"),
    ],
)
def test_in_8_bits(path_of: Callable[[Card], paths.Path], card: Card, expected: str) -> None:
    path = path_of(card)
    assert path.name == expected and path.why


def test_a_card_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.OVERRIDE, "8.9:12")
    card = paths.card_of(torch.device("cpu"))
    assert card.capability == (8, 9) and card.memory == 12
    assert "sm_89" in card.describe()
    monkeypatch.setenv(paths.OVERRIDE, "rtx")
    with pytest.raises(ValueError, match="rtx"):
        paths.card_of()
