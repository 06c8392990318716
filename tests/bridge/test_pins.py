"""Pinned copies in RAM: a text encoder takes none from the experts."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from wancore.nodes.bridge import pins

GIB = 2**30


@pytest.mark.parametrize(("available", "allowed"), [(8 * GIB, True), (5 * GIB, False)])
def test_only_free_ram_is_pinned(monkeypatch: pytest.MonkeyPatch, available: int, allowed: bool) -> None:
    arguments = pins.management.args
    monkeypatch.setattr(arguments, "disable_pinned_memory", False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    with pytest.raises(KeyError), pins.in_free_ram_only(4 * GIB):
        assert arguments.disable_pinned_memory is not allowed
        raise KeyError
    assert not arguments.disable_pinned_memory  # whatever happened within


def test_what_the_user_switched_off_stays_off(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = pins.management.args
    monkeypatch.setattr(arguments, "disable_pinned_memory", True)
    with pins.in_free_ram_only(1):
        assert arguments.disable_pinned_memory
    assert arguments.disable_pinned_memory


def test_size_is_that_in_the_file() -> None:
    layer = torch.nn.Linear(8, 4, dtype=torch.bfloat16)
    assert pins.size_of(layer) == 2 * (32 + 4)
