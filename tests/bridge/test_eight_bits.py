"""Options for computing in 8 bits on MODELs, and what that for attention comes to; test_layers8.py has the layers."""

from __future__ import annotations

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

from safetensors.torch import save_file
from wancore.nodes.bridge import host
from wancore.nodes.bridge.eight_bits import ATTENTION, LAYERS, Wish
from wancore.nodes.bridge.hooks import hooks_of
from wancore.nodes.bridge.model import load_model
from wancore.wan_core import paths
from wancore.wan_core.attention import attention_in_8_bits, torch_attention
from wancore.wan_core.errors import InputError

from .native_wan import native_model, weights


@pytest.mark.parametrize(("wish", "hook"), [(ATTENTION, "in_eight_bits"), (LAYERS, "layers_in_int8")])
def test_option_is_of_the_clone(wish: Wish, hook: str, tmp_path) -> None:
    save_file(weights(1), tmp_path / "wan.safetensors")
    with torch.inference_mode():
        model = load_model(str(tmp_path / "wan.safetensors"), dtype=torch.float32)
    changed = wish.put_on(model)
    assert getattr(hooks_of(dict(changed.model_options["transformer_options"])), hook)
    assert not getattr(hooks_of(dict(model.model_options.get("transformer_options", {}))), hook)


@pytest.mark.parametrize("wish", [ATTENTION, LAYERS])
def test_a_native_model_is_refused(wish: Wish) -> None:
    with pytest.raises(InputError, match="Wan Load"):
        wish.put_on(native_model(1))


def test_exact_without_a_kernel() -> None:
    q, k, v = torch.randn(3, 1, 40, 256, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert ATTENTION.path().name == "exact" and not ATTENTION.is_on({ATTENTION.option: True})
    assert torch.equal(attention_in_8_bits(q, k, v, 2), torch_attention(q, k, v, 2))


def test_a_flag_that_chooses_an_attention_goes_first(monkeypatch) -> None:
    monkeypatch.setenv(paths.OVERRIDE, "8.6:12")
    assert ATTENTION.path().name == "int8" and ATTENTION.is_on({ATTENTION.option: True}) and not ATTENTION.is_on({})
    monkeypatch.setattr(host, "attention_is_chosen", lambda: True)
    assert (
        ATTENTION.path().name == "exact"
        and "goes first" in ATTENTION.path().why
        and not ATTENTION.is_on({ATTENTION.option: True})
    )
