"""ComfyUI's own loader and ours on the same quantised files, and each on what the other has saved: the same bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy.sd
from comfy.quant_ops import QuantizedTensor
from wancore.nodes.bridge.model import load_model
from wancore.wan_core.weights import inspect

from .quantised_files import NATIVE, family, is_block_matrix, is_known, weights, write_format

FORMATS = [*NATIVE, "fp8 scaled", "fp8 comfy_quant", "fp8 metadata", "fp8 plain", "fp8 e5m2 plain"]
# Both loaders compute in bfloat16, in another order, which rounding to 4 bits makes larger. Of plain float8 files
# ComfyUI rounds biases and embeddings too.
ROUNDED = {"convrot_w4a4": 0.1, "fp8 plain": 0.1, "fp8 e5m2 plain": 0.1}
MATRICES = [name for name, weight in weights().items() if is_block_matrix(name, weight)]


@pytest.fixture(autouse=True)
def inference(monkeypatch):
    """Plain float8 is kept where the card would not hold it as bfloat16; a CPU would decode it on loading."""
    monkeypatch.setattr(management, "maximum_vram_for_weights", lambda device=None: 0)
    with torch.inference_mode():
        yield
        management.unload_all_models()


def native(path: str) -> Any:
    """What Load Diffusion Model does."""
    return comfy.sd.load_diffusion_model(path)


def stored(patcher: Any) -> dict[str, tuple[str, list[Tensor]]]:
    """The layout and the bits of every quantised matrix: values and scales."""
    out = {}
    for name in MATRICES:
        weight = patcher.model.diffusion_model.get_parameter(name)
        if isinstance(weight, QuantizedTensor):
            parts = weight.state_dict("weight")
            out[name] = weight._layout_cls, [parts[key].reshape(-1).view(torch.uint8) for key in sorted(parts)]
        else:
            out[name] = str(weight.dtype), [weight.detach().view(torch.uint8)]
    return out


def same(ours: Any, theirs: Any) -> None:
    mine, other = stored(ours), stored(theirs)
    for name in MATRICES:
        assert mine[name][0] == other[name][0], name
        assert all(map(torch.equal, mine[name][1], other[name][1])), name


def answer(patcher: Any) -> Tensor:
    management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(0)
    noise, text = (torch.randn(size, generator=generator) for size in ((1, 16, 3, 8, 8), (1, 512, family.TEXT_DIM)))
    return patcher.model.apply_model(noise, torch.tensor([0.9]), c_crossattn=text)


def mapped_and_packed(patcher: Any, path: str) -> tuple[int, int]:
    """Bytes of the weights that lie in the file itself, not in a copy of it; and of the packed matrices."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path)]
    ranges = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    is_mapped, packed = 0, 0
    for parameter in patcher.model.diffusion_model.parameters():
        tensor = parameter._qdata if isinstance(parameter, QuantizedTensor) else parameter
        size = tensor.numel() * tensor.element_size()
        packed += size if tensor.element_size() == 1 else 0
        is_mapped += size if any(start <= tensor.data_ptr() < end for start, end in ranges) else 0
    return is_mapped, packed


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("kind", [kind for kind in (*FORMATS, "LightX2V fp8", "Q8_0", "Q4_K") if is_known(kind)])
def test_nothing_is_copied_on_loading_that_comfyui_maps(kind, tmp_path):
    path = write_format(tmp_path / "wan2.2_t2v_high_noise_14B", kind)
    mine, packed = mapped_and_packed(load_model(path), path)
    assert mine >= packed >= sum(weights()[name].numel() for name in MATRICES) / 2  # bytes: 4 bits a number or more
    if kind in FORMATS:
        assert mine >= mapped_and_packed(native(path), path)[0]


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if is_known(kind)])
def test_both_loaders_hold_and_save_the_same_bits(kind, tmp_path):
    path = write_format(tmp_path / "wan2.2_t2v_high_noise_14B", kind)
    ours, theirs = load_model(path), native(path)
    same(ours, theirs)
    mine, other = answer(ours), answer(theirs)
    assert (mine - other).norm() < ROUNDED.get(kind, 0.02) * other.norm()
    for loader, patcher in (("theirs", theirs), ("ours", ours)):
        file = str(tmp_path / f"saved_by_{loader}_high_noise.safetensors")
        comfy.sd.save_checkpoint(file, patcher, metadata=dict(family.T2V_HIGH.metadata))
        assert inspect(file).quantised == ("" if "plain" in kind else "comfy_quant")
        same(load_model(file), native(file))
        same(load_model(file), theirs)
