"""What stands in the place of weights, in every widget that takes a file: refused, and told what it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_pocket import build
from safetensors.torch import save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.utils
import folder_paths
from wancore.nodes import doctor, loaders, lora, sound, vision
from wancore.nodes.bridge.audio_encoder import load_audio_encoder
from wancore.nodes.bridge.clip_vision import load_clip_vision
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.text_encoder import load_text_encoder
from wancore.nodes.bridge.vae import load_vae
from wancore.pocket import family
from wancore.wan_core.errors import WeightsFileError
from wancore.wan_core.weights.gguf import MAGIC

from ..core.test_weights import WRONG_KINDS, unreadable

HIGH, TEXT, VAE = "whole_high.safetensors", "whole_text.safetensors", "whole_vae.safetensors"
WHOLE = {HIGH: family.T2V_HIGH, TEXT: family.TEXT_ENCODER, VAE: family.VAE}
FOLDERS = ("diffusion_models", "text_encoders", "vae", "loras", "audio_encoders", "clip_vision")


def run(node: Any, **widgets: Any) -> Any:
    """What the executor does: a clone of the class with its hidden inputs, then execute."""
    return node.PREPARE_CLASS_CLONE({"hidden_inputs": {}}).execute(**widgets)


def load_models(**widgets: str) -> Any:
    return run(
        loaders.WanCoreLoadModels, **{"model": HIGH, "low_model": "none", "text_encoder": TEXT, "vae": VAE, **widgets}
    )


def lora_pair(**widgets: str) -> Any:
    """On a model of one expert and on a pair."""
    model = object()  # which is not touched before the file is known to be one
    return run(lora.WanCoreLoraPair, high=model, low=model, strength_high=1.0, strength_low=1.0, **widgets)


WIDGETS: dict[str, Callable[[str], Any]] = {
    "model": lambda name: load_models(model=name),
    "low_model": lambda name: load_models(low_model=name),
    "text_encoder": lambda name: load_models(text_encoder=name),
    "vae": lambda name: load_models(vae=name),
    "model_name": lambda name: run(loaders.WanCoreLoadDiffusionModel, model_name=name),
    "text_encoder_name": lambda name: run(loaders.WanCoreLoadTextEncoder, text_encoder_name=name),
    "vae_name": lambda name: run(loaders.WanCoreLoadVAE, vae_name=name),
    "clip_name": lambda name: run(vision.WanCoreLoadClipVision, clip_name=name),
    "audio_encoder_name": lambda name: run(sound.WanCoreLoadAudioEncoder, audio_encoder_name=name),
    "lora_high": lambda name: lora_pair(lora_high=name, lora_low="none"),
}
FUNCTIONS: dict[str, Callable[[str], Any]] = {  # behind the widgets, for what lists of files never offer
    "model": load_model,
    "text encoder": load_text_encoder,
    "VAE": load_vae,
    "CLIP vision": load_clip_vision,
    "audio encoder": load_audio_encoder,
    "LoRA": lambda path: apply_lora(None, path, "a", 1.0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Whole files, and what is none: under the names of weights, in one folder."""
    folder = tmp_path_factory.mktemp("models")
    for name, member in WHOLE.items():
        save_file(build(member, fp8=False), folder / name, metadata=member.metadata)
    for number, (content, _) in enumerate(WRONG_KINDS.values()):
        (folder / f"wrong_{number}.safetensors").write_bytes(content)
    (folder / "wrong_gguf.gguf").write_bytes(MAGIC + b"\2")
    return folder


@pytest.fixture(autouse=True)
def listed(folder, monkeypatch):
    for name in FOLDERS:
        extensions = folder_paths.folder_names_and_paths[name][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(folder)], extensions))
    folder_paths.filename_list_cache.clear()

    def refuse(*args, **kwargs):
        raise AssertionError("weights were read")

    monkeypatch.setattr(comfy.utils, "load_torch_file", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    yield
    folder_paths.filename_list_cache.clear()


@pytest.mark.parametrize("widget", WIDGETS)
def test_every_widget_tells_what_a_wrong_file_is(widget, folder):
    for number, (_, words) in enumerate(WRONG_KINDS.values()):
        with pytest.raises(WeightsFileError) as caught:
            WIDGETS[widget](f"wrong_{number}.safetensors")
        error = caught.value
        assert words in error.found and f"wrong_{number}.safetensors" in error.where and error.remedy, words


def test_there_are_ten_widgets_and_all_are_there():
    nodes = (*loaders.NODES, *vision.NODES, *sound.NODES, *lora.NODES)
    known = {i.id for node in nodes for i in node.define_schema().inputs}
    assert len(WIDGETS) >= 10 and known >= WIDGETS.keys()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_takes_what_is_no_file(function, folder, tmp_path):
    (tmp_path / "a folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    places = [tmp_path / "a folder", tmp_path / "nothing", tmp_path / "dangling", unreadable(tmp_path)]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        places += [tmp_path / "pipe", Path("/dev/zero")]
    places.append(folder / "wrong_gguf.gguf")
    for place in places:
        with pytest.raises(WeightsFileError) as caught:
            FUNCTIONS[function](str(place))
        assert str(place) in caught.value.where and caught.value.remedy, place


def test_the_doctor_finds_them_all(folder):
    names = sorted(path.name for path in folder.glob("wrong_*.safetensors"))
    assert len(names) == len(WRONG_KINDS)
    for name in names:
        widgets = dict.fromkeys(doctor.FOLDERS, "none") | {"model": name}
        (report,) = run(doctor.WanCoreDoctor, **widgets).args
        assert "problem: " in report and name in report
