"""OFT and BOFT: weights are rotated as the files say, beside weights of every type, in the precision of the run."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..comfy_host import import_comfy

import_comfy()

import comfy.lora
import comfy.sd
from wancore.nodes.bridge import lora_table as table
from wancore.nodes.bridge.lora import _readable, apply_lora
from wancore.nodes.bridge.model import load_model

from .quantised_files import family, weights, write_format
from .test_branches import LAYER, load

KEY = f"diffusion_model.{LAYER}"

pytestmark = pytest.mark.usefixtures("no_room", "inference")


@pytest.fixture(params=["bf16", "Q8_0"])
def base(request, tmp_path):
    if request.param == "Q8_0":
        return load_model(write_format(tmp_path / "wan2.2_t2v_high_noise_14B", "Q8_0"))
    file = str(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors")
    save_file(weights(), file, metadata=family.T2V_HIGH.metadata)
    return load_model(file)


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def rotation(blocks: Tensor) -> Tensor:
    """[n, b, b] -> one orthogonal matrix of their Cayley transforms."""
    turned, eye = blocks - blocks.transpose(1, 2), torch.eye(blocks.shape[1])
    return torch.block_diag(*((eye + block) @ torch.linalg.inv(eye - block) for block in turned))


def oft(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    blocks = 0.1 * noise(len(weight) // 8, 8, 8)
    return {"oft_blocks": blocks}, rotation(blocks).T @ weight


def boft(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Stages of blocks of eight, each between a shuffle of the rows and its inverse; files have no alpha as a rule."""
    blocks, scale = 0.1 * noise(3, len(weight) // 8, 8, 8), 1 + 0.1 * noise(len(weight), 1)
    rotated = weight
    for stage, of_stage in enumerate(blocks):
        shuffle = torch.arange(len(weight)).unflatten(0, (-1, 2, 4 << stage)).transpose(1, 2).flatten()
        rotated = (rotation(of_stage) @ rotated[shuffle])[shuffle.argsort()]
    return {"oft_blocks": blocks, "rescale": scale}, scale * rotated


def effective(patcher) -> Tensor:
    """The layer's weight as it acts on bfloat16, in float32."""
    layer = comfy.utils.get_attr(patcher.model.diffusion_model, LAYER)
    x = torch.eye(layer.in_features, dtype=torch.bfloat16)
    return (layer(x) - layer(torch.zeros_like(x))).float().t()


@pytest.mark.parametrize("make", [oft, boft])
def test_rotations_reach_the_weights(make, base, tmp_path):
    load(base, "complete")
    plain = effective(base)
    parts, expected = make(plain)
    lora = {f"{KEY}.{part}": tensor for part, tensor in parts.items()}
    save_file(lora, tmp_path / "a.safetensors")
    for strength in (1.0, 0.5):
        if strength != 1.0:
            read = comfy.lora.load_lora(_readable(lora, None), {KEY: KEY}, log_missing=False)
            patch = (strength, read[KEY], 1.0, None, None)
            expected = comfy.lora.calculate_weight([patch], plain.clone(), KEY)
        patched, match = apply_lora(base, str(tmp_path / "a.safetensors"), "a", strength)
        assert match is not None and match.applied == 1 and match.beside
        with table.running(base.model, patched.model_options["transformer_options"], 0):
            found = effective(base)
        change = (expected - plain).norm()
        assert change > 0.1 * plain.norm()
        assert (found - expected).norm() < 0.03 * change, strength


def test_rotations_given_by_the_native_node(base, tmp_path):
    load(base, "complete")
    plain = effective(base)
    parts, expected = oft(plain)
    lora = {f"{KEY}.{part}": tensor for part, tensor in parts.items()}
    native = comfy.sd.load_lora_for_models(base, None, lora, 1.0, 0)[0]
    load(native, "complete")
    found = effective(native)
    assert (found - expected).norm() < 0.03 * (expected - plain).norm()
