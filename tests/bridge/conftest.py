"""What tests of loaded models stand in: inference mode, and ComfyUI without a model afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy_kitchen.tensor.fp8


@pytest.fixture
def inference() -> Iterator[None]:
    """Inference mode; models are unloaded at the end, while no other test's model can die."""
    with torch.inference_mode():
        yield
        gc.disable()  # a model that is collected now would shorten the list that ComfyUI walks along
        try:
            management.unload_all_models()
        finally:
            gc.enable()


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain float8 is kept where the card would not hold it as bfloat16; a CPU would decode it on loading."""
    monkeypatch.setattr(management, "maximum_vram_for_weights", lambda device=None: 0)


@pytest.fixture
def float8_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers multiply float8, as on cards that can: PyTorch's own product for the CPU takes seconds."""

    def product(x, weight, *, scale_a, scale_b, bias=None, out_dtype=None):
        out = x.float() @ weight.float() * (scale_a * scale_b)
        return (out if bias is None else out + bias.float()).to(out_dtype)

    monkeypatch.setattr(management, "supports_fp8_compute", lambda device=None: True)
    monkeypatch.setattr(comfy_kitchen.tensor.fp8, "scaled_mm_v2", product, raising=False)


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The models that were cleared of what a failed call leaves."""
    from wancore.nodes.bridge import leftovers

    found: list[torch.nn.Module] = []
    monkeypatch.setattr(leftovers, "clear", found.append)
    return found
