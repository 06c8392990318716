"""ComfyUI's own node for training a LoRA, on our MODEL and on a native one."""

from __future__ import annotations

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management
import comfy.sd
from safetensors.torch import save_file
from wancore.nodes.bridge.model import load_model

from .native_wan import noise, prompts, relative, weights

nodes_train = pytest.importorskip("comfy_extras.nodes_train")
POSITIVE, _ = prompts(tokens=512)
WIDGETS = {
    "batch_size": 1,
    "steps": 2,
    "grad_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "rank": 4,
    "optimizer": "SGD",
    "loss_function": "MSE",
    "seed": 1,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": True,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}


def train(model, **widgets):
    """LoRA and losses of a few steps on one clip."""
    latents = [{"samples": noise(seed=8)}]
    values = {name: [value] for name, value in {**WIDGETS, **widgets}.items()}
    lora, losses, _ = nodes_train.TrainLoraNode.execute([model], latents, [POSITIVE], **values).result
    return lora, losses["loss"]


@pytest.fixture
def one_sigma(monkeypatch):
    """The node draws its steps from the generator that the LoRA was drawn from, in the order of the model's layers."""

    def half(self, model_wrap, batch_size, device):
        return torch.full((batch_size,), 0.5, device=device)

    monkeypatch.setattr(nodes_train.TrainSampler, "_generate_batch_sigmas", half)


@pytest.mark.parametrize("bypass", [False, True])
def test_native_training_node(bypass, one_sigma, tmp_path) -> None:
    path = str(tmp_path / "wan.safetensors")
    save_file(weights(1), path)
    lora, losses = train(load_model(path, dtype=torch.float32), bypass_mode=bypass)
    native = comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})
    expected, expected_losses = train(native, bypass_mode=bypass)
    assert losses[0] == pytest.approx(expected_losses[0], rel=1e-5)
    assert lora.keys() == expected.keys()
    learned = {name for name, value in lora.items() if name.endswith("lora_up.weight") and value.abs().max() > 0}
    assert learned == {
        name for name, value in expected.items() if name.endswith("lora_up.weight") and value.abs().max() > 0
    }
    assert any("self_attn.q" in name for name in learned) and any("ffn.0" in name for name in learned)


def test_gradients_are_those_of_the_native_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(comfy.model_management, "in_training", True)  # native models rotate by another kernel then
    path = str(tmp_path / "wan.safetensors")
    save_file(weights(1), path)
    models = (
        load_model(path, dtype=torch.float32),
        comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32}),
    )
    found = []
    for patcher in models:
        x = noise().requires_grad_()
        patcher.model.requires_grad_(False)
        out = patcher.model.apply_model(x, torch.tensor([0.7]), c_crossattn=POSITIVE[0][0])
        found.append(torch.autograd.grad(out.square().mean(), x)[0])
    assert relative(*found) < 1e-5
