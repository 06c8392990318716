"""What ComfyUI leaves of weights on their way when a call fails; only the card is stood in for."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as management
import comfy.ops
import pytest
import torch
from torch import nn
from wancore.nodes.bridge import leftovers
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.ops import stream, wan_operations

from .tiny_models import write_tiny

CARD, CPU = torch.device("meta"), torch.device("cpu")
SHORT = torch.cuda.OutOfMemoryError("Allocation would exceed allowed memory")


class Pages:
    """An address range of Dynamic VRAM: how often each of its pages is held."""

    device, base_addr, offset = 0, 2**30, 3 * 2**25

    def __init__(self, *held: int) -> None:
        self.held = list(held)

    def get_residency(self) -> list[int]:
        return [1 + 2 * (count > 0) for count in self.held]

    def unpin(self, start: int, size: int) -> None:
        assert (start, size) == (self.base_addr, self.offset)
        self.held = [max(0, count - 1) for count in self.held]


@pytest.fixture
def arrived(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices that were waited for."""
    waited: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    return waited


def place(layer: nn.Module, pages: Pages) -> None:
    """Puts the layer where Dynamic VRAM fetches it for every call."""
    layer._v = (pages, pages.base_addr, 64)
    layer._v_signature = None


def test_a_layer_whose_cast_fails_is_fetched_again(arrived, monkeypatch):
    """Otherwise ComfyUI takes it for fetched, into memory that is another's by then."""
    layer = wan_operations(comfy.ops.manual_cast).Linear(4, 4)
    pages, sent = Pages(1, 0, 1), []
    place(layer, pages)

    def send(layers: list[nn.Module], *_unused: object) -> None:
        for one in layers:
            one._prefetch = {"signature": None}
            sent.append(one)

    def fails(*_unused: object) -> None:
        raise SHORT

    monkeypatch.setattr(comfy.ops, "cast_modules_with_vbar", send)
    monkeypatch.setattr(management, "sync_stream", lambda *_: None)
    monkeypatch.setattr(comfy.ops, "resolve_cast_module_with_vbar", fails)
    for times in (1, 2):
        with pytest.raises(torch.cuda.OutOfMemoryError), leftovers.cleared_on_failure(nn.Sequential(layer)):
            comfy.ops.cast_bias_weight(layer, dtype=torch.float32, device=CARD, offloadable=True)
        assert sent == [layer] * times and not hasattr(layer, "_prefetch")
    assert pages.held == [0, 0, 0] and arrived == [0, 0]
    with pytest.raises(torch.cuda.OutOfMemoryError):  # what it is there for
        comfy.ops.cast_bias_weight(layer, dtype=torch.float32, device=CARD, offloadable=True)
    assert hasattr(layer, "_prefetch")


def test_what_goes_well_is_left_alone(arrived):
    layer, pages = nn.Linear(2, 2), Pages(1)
    place(layer, pages)
    with leftovers.cleared_on_failure(layer):
        layer._prefetch = {"signature": None}
    assert hasattr(layer, "_prefetch") and pages.held == [1] and not arrived


def test_a_forward_that_fails_leaves_nothing(tmp_path: Path, arrived, monkeypatch):
    """Also one that the user stops."""
    model = load_model(write_tiny(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors", "t2v_A14B_expert")).model
    layer, pages = model.diffusion_model.time_projection[1], Pages(1)
    place(layer, pages)

    def stopped(*_unused: object, **_options: object) -> None:
        layer._prefetch = {"signature": None}
        raise management.InterruptProcessingException

    monkeypatch.setattr(model.diffusion_model, "forward", stopped)
    with pytest.raises(management.InterruptProcessingException):
        model.apply_model(torch.zeros(1, 16, 1, 4, 4), torch.tensor([0.5]), c_crossattn=torch.zeros(1, 8, 4096))
    assert not hasattr(layer, "_prefetch") and pages.held == [0]


def test_blocks_that_are_not_sent_ahead_keep_no_marks():
    """A first try may have left some, of which the second, that went well, knows nothing."""
    blocks = [nn.Sequential(nn.Linear(2, 2)) for _ in range(2)]
    for _, block in stream(blocks, CPU, {}):
        block[0]._prefetch = {"signature": None}
    assert not any(hasattr(block[0], "_prefetch") for block in blocks)
