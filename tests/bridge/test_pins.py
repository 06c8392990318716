"""Pinned copies in RAM: a text encoder takes none from the experts, and gives its own up for them."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from wancore.nodes.bridge import guider, pins

from .native_wan import native_model, noise

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


class Loaded:
    """A patcher of Dynamic VRAM as far as pinned copies go."""

    def __init__(self, size: int, pinned: int) -> None:
        self.model, self.size, self.pinned = object(), size, pinned

    def is_dynamic(self) -> bool:
        return True

    def model_size(self) -> int:
        return self.size

    def loaded_ram_size(self) -> int:
        return self.pinned

    def partially_unload_ram(self, wanted: int) -> int:
        freed = min(self.pinned, wanted)
        self.pinned -= freed
        return freed


@pytest.mark.parametrize(
    ("ram", "kept"),
    [(64, 4.3), (33, 2.4), (32, 1.4), (24, 0.0)],
)
def test_the_text_encoder_gives_way_to_the_experts(monkeypatch: pytest.MonkeyPatch, ram: int, kept: float) -> None:
    encoder, high, low = Loaded(int(4.3 * GIB), int(4.3 * GIB)), Loaded(int(13.5 * GIB), 0), Loaded(int(13.5 * GIB), 0)
    low.pinned = GIB  # of a run before, which must not be given up
    used = GIB + encoder.pinned + low.pinned
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=ram * GIB - used))
    monkeypatch.setattr(pins.management.args, "disable_pinned_memory", False)
    monkeypatch.setattr(pins.management, "loaded_models", lambda: [low, None, high, encoder])
    monkeypatch.setattr(pins.comfy.memory_management, "RAM_CACHE_HEADROOM", GIB, raising=False)
    freed = pins.make_room([high, low])
    assert encoder.pinned == pytest.approx(kept * GIB, rel=0.1, abs=GIB / 10)
    assert freed == int(4.3 * GIB) - encoder.pinned and low.pinned == GIB


def test_clones_of_one_model_share_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, high = Loaded(4 * GIB, 4 * GIB), Loaded(13 * GIB, 0)
    clone = Loaded(13 * GIB, 0)
    clone.model = high.model
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20 * GIB))
    monkeypatch.setattr(pins.management.args, "disable_pinned_memory", False)
    monkeypatch.setattr(pins.management, "loaded_models", lambda: [high, encoder])
    assert pins.make_room([high, clone]) == 0 and encoder.pinned == 4 * GIB


@pytest.mark.parametrize(
    ("sigmas", "needed"), [([1.0, 0.5, 0.0], "high low"), ([1.0, 0.9], "high"), ([0.5, 0.0], "low"), ([], "")]
)
def test_room_is_made_for_the_experts_that_run(monkeypatch: pytest.MonkeyPatch, sigmas: list, needed: str) -> None:
    class StopHereError(Exception):
        pass

    experts = {"high": native_model(1), "low": native_model(2)}

    def note(models: list) -> int:
        assert [name for name, model in experts.items() if any(model is other for other in models)] == needed.split()
        raise StopHereError

    monkeypatch.setattr(guider, "make_room", note)
    with pytest.raises(StopHereError):
        guider.DualExpertGuider(*experts.values()).sample(None, noise(), None, torch.tensor(sigmas))


def test_plain_patchers_have_no_copies_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = SimpleNamespace(model=None, is_dynamic=lambda: False)
    assert pins.make_room([plain]) == 0
    monkeypatch.setattr(pins.management, "loaded_models", lambda: [plain])
    monkeypatch.setattr(pins.management.args, "disable_pinned_memory", False)
    assert pins.make_room([Loaded(2**60, 0)]) == 0


def test_frames_take_the_place_of_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many bytes as they lack, and no more; nothing where there is room."""
    high, low = Loaded(13 * GIB, 3 * GIB), Loaded(13 * GIB, 2 * GIB)
    monkeypatch.setattr(pins.management, "loaded_models", lambda: [low, None, high])
    for available, freed in ((5 * GIB, 0), (3 * GIB, 1 * GIB), (1 * GIB, 3 * GIB)):
        high.pinned, low.pinned = 3 * GIB, 2 * GIB
        monkeypatch.setattr(psutil, "virtual_memory", lambda available=available: SimpleNamespace(available=available))
        pins.free_ram(2 * GIB)
        assert high.pinned + low.pinned == 5 * GIB - freed
