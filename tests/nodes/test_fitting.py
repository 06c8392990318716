"""Conditions for another model are refused by Wan KSampler and the guider before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management
import comfy.sd
from wancore.nodes.bridge.model import load_model
from wancore.nodes.sampling import WanCoreDualExpertGuider, WanCoreKSampler
from wancore.wan_core.errors import InputError, WrongModelError

from ..bridge.tiny_models import write_tiny
from .clips import prompts
from .native import run

PICTURE, CONTROL = torch.zeros(1, 16, 3, 8, 12), torch.zeros(1, 32, 3, 8, 12)
GUIDANCE = {"cfg_high": 0.0, "cfg_low": 0.0, "shift": 0.0, "boundary": 0.0}
SAMPLING = {
    "latent": {"samples": torch.zeros(1, 16, 3, 8, 12)},
    "seed": 0,
    "preset": "auto",
    "steps": 2,
    "sampler_name": "euler",
    "scheduler": "simple",
    "denoise": 1.0,
    "start_at_step": 0,
    "end_at_step": 10000,
    "add_noise": True,
    **GUIDANCE,
}
CASES = [
    ("t2v_A14B_expert", {"vace_frames": [CONTROL]}, "VACE"),
    ("t2v_A14B_expert", {"concat_latent_image": PICTURE}, "I2V-A14B"),
    ("t2v_A14B_expert", {"audio_embed": torch.zeros(1, 25, 64, 12)}, "S2V"),
    ("i2v_A14B_expert", {"camera_conditions": torch.zeros(1, 24, 3, 64, 96)}, "Camera"),
    ("i2v_A14B_expert", {"concat_latent_image": CONTROL}, "Fun-A14B-Control"),
    ("i2v_A14B_expert", {"pose_video_latent": PICTURE}, "Animate"),
    ("fun_control_A14B", {"concat_latent_image": PICTURE}, "I2V-A14B"),
]


@pytest.fixture(autouse=True)
def as_in_a_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("loads a model")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", loads)
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    folder: Path = tmp_path_factory.mktemp("models")
    paths = {shapes: write_tiny(folder / f"{shapes}.safetensors", shapes) for shapes in {case[0] for case in CASES}}
    return {shapes: (load_model(path), comfy.sd.load_diffusion_model(path)) for shapes, path in paths.items()}


@pytest.mark.parametrize(("shapes", "values", "expected"), CASES)
def test_what_another_model_takes(models, shapes: str, values: dict[str, Any], expected: str):
    positive, negative = ([[text, {**options, **values}] for text, options in prompt] for prompt in prompts())
    for model in models[shapes]:
        for node, widgets in (
            (WanCoreKSampler, SAMPLING),
            (WanCoreDualExpertGuider, {**GUIDANCE, "timesteps": "integer"}),
        ):
            with pytest.raises(WrongModelError) as caught:
                run(node, high=model, positive=positive, negative=negative, **widgets)
            assert expected in caught.value.expected
            assert "A14B" in caught.value.found


@pytest.mark.parametrize("shapes", ["i2v_A14B_expert", "wan21_i2v_14B", "wan21_flf2v_14B"])
def test_a_model_that_starts_from_a_picture_refuses_a_prompt_alone(shapes: str, tmp_path: Path):
    positive, negative = prompts()
    path = tmp_path / f"{shapes}.safetensors"
    write_tiny(path, shapes)
    for model in (load_model(str(path)), comfy.sd.load_diffusion_model(str(path))):
        with pytest.raises(InputError, match="starts from a picture") as caught:
            run(WanCoreKSampler, high=model, positive=positive, negative=negative, **SAMPLING)
        assert "Wan Image to Video" in caught.value.expected
    (tmp_path / "Wan2.2-Fun-A14B-InP-high.safetensors").write_bytes(path.read_bytes())
    inpaints = load_model(str(tmp_path / "Wan2.2-Fun-A14B-InP-high.safetensors"))
    with pytest.raises(AssertionError, match="loads a model"):
        run(WanCoreKSampler, high=inpaints, positive=positive, negative=negative, **SAMPLING)
