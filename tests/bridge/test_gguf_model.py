"""A GGUF file as a MODEL: the weights stay in blocks, and the result is that of the same file decoded by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from wancore.tests.comfy_host import import_comfy

import_comfy()

import comfy.model_management
from comfy_kitchen.tensor.base import QuantizedTensor
from gguf import GGMLQuantizationType, GGUFWriter, quants
from make_pocket import build, family
from safetensors.torch import save_file
from wancore.nodes.bridge.model import load_model

TYPES = ["Q8_0", "Q4_0", "Q5_1"]


def write_pair(folder: Path, kind: str) -> tuple[Path, Path]:
    """The high expert of the miniature family, its block matrices quantised: as GGUF, and decoded as safetensors."""
    weights = build(family.T2V_HIGH, fp8=False)
    number = GGMLQuantizationType[kind]
    writer, decoded = GGUFWriter(folder / "high.gguf", "wan"), {}
    for name, weight in weights.items():
        array = weight.float().numpy()
        if name.startswith("blocks.") and name.endswith(".weight") and array.ndim == 2:
            packed = quants.quantize(array, number)
            writer.add_tensor(name, packed, raw_dtype=number)
            decoded[name] = torch.from_numpy(quants.dequantize(packed, number).copy())
        else:
            writer.add_tensor(name, array.reshape(*array.shape[:2], *array.shape[3:]) if array.ndim == 5 else array)
            decoded[name] = weight.float()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(decoded, folder / "decoded.safetensors", metadata=family.T2V_HIGH.metadata)
    return folder / "high.gguf", folder / "decoded.safetensors"


def predict(path: Path) -> tuple[torch.Tensor, object]:
    patcher = load_model(str(path))
    comfy.model_management.load_models_gpu([patcher])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 16, 3, 8, 8, generator=generator)
    text = torch.randn(1, 512, family.TEXT_DIM, generator=generator)
    result = patcher.model.apply_model(noise, torch.tensor([0.9]), c_crossattn=text)
    return result, patcher


@pytest.mark.parametrize("kind", TYPES)
@torch.inference_mode()
def test_equals_the_decoded_file(kind: str, tmp_path: Path) -> None:
    packed, decoded = write_pair(tmp_path, kind)
    ours, patcher = predict(packed)
    weight = patcher.model.diffusion_model.blocks[0].ffn[0].weight
    assert isinstance(weight, QuantizedTensor) and weight._qdata.dtype == torch.uint8
    expected, _ = predict(decoded)
    assert (ours - expected).norm() / expected.norm() < 1e-5


@torch.inference_mode()
def test_unloads_and_reloads_to_the_same_bits(tmp_path: Path) -> None:
    packed, _ = write_pair(tmp_path, "Q8_0")
    first, patcher = predict(packed)
    before = patcher.model.diffusion_model.blocks[0].ffn[0].weight._qdata.clone()
    comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu([patcher.clone()])
    assert torch.equal(patcher.model.diffusion_model.blocks[0].ffn[0].weight._qdata, before)
    assert torch.equal(predict(packed)[0], first)
