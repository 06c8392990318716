"""What tests of loaded models stand in: inference mode, and ComfyUI without a model afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management


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
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """The models that were cleared of what a failed call leaves."""
    from wancore.nodes.bridge import leftovers

    found: list[torch.nn.Module] = []
    monkeypatch.setattr(leftovers, "clear", found.append)
    return found
