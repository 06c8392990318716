"""What a user gets wrong is refused on the right node, with the file or input and the remedy, before weights are read.

The wrong files have the headers of full-size checkpoints and no content (sparse files): reading their weights is slow.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from graphs import T2V_HIGH, T2V_LOW, TEXT_ENCODER, VAE, Nodes, Prompt, text_to_video
from make_pocket import family, published_name, shapes_of
from setup.client import Client, PromptFailedError, PromptRefusedError
from setup.server import Server

LARGE = 200_000_000  # bytes; far below every wrong file, far above what a refusal needs
QUICK = 5  # seconds
I2V_LOW = "wan2.2_i2v_low_noise_14B_bf16.safetensors"
I2V = dataclasses.replace(family.T2V_LOW, shapes="i2v_A14B_expert.json", name=I2V_LOW)


def write_full_size(path: Path, member: family.Member) -> None:
    """A safetensors file with the header of the full-size checkpoint; its weights are a hole in the file."""
    full = dataclasses.replace(member, widths={}, layers=None)
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes_of(full):
        start, end = end, end + 2 * math.prod(shape)
        header[published_name(name, member)] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


@pytest.fixture(scope="module", autouse=True)
def wrong_files(base: Path) -> Iterator[None]:
    """Wrong files in the models folders, for the tests of this module only."""
    models = base / "models"
    made = {
        "diffusion_models/a_vae.safetensors": lambda path: write_full_size(path, family.VAE),
        "diffusion_models/a_text_encoder.safetensors": lambda path: write_full_size(path, family.TEXT_ENCODER),
        f"diffusion_models/{I2V_LOW}": lambda path: write_full_size(path, I2V),
        "diffusion_models/full_high_noise.safetensors": lambda path: write_full_size(path, family.T2V_HIGH),
        "vae/a_text_encoder.safetensors": lambda path: write_full_size(path, family.TEXT_ENCODER),
        "text_encoders/a_vae.safetensors": lambda path: write_full_size(path, family.VAE),
    }
    for folder, whole in (("diffusion_models", T2V_HIGH), ("vae", VAE), ("text_encoders", TEXT_ENCODER)):
        content = (models / folder / whole).read_bytes()
        made[f"{folder}/truncated.safetensors"] = lambda path, part=content[:-1000]: path.write_bytes(part)
        made[f"{folder}/web_page.safetensors"] = lambda path: path.write_text("<!DOCTYPE html>\n<html>" + "x" * 4000)
        made[f"{folder}/pickle.safetensors"] = lambda path: path.write_bytes(b"\x80\x02}q\x00." + b"x" * 4000)
        made[f"{folder}/old.pt"] = lambda path: path.write_bytes(b"PK\x03\x04" + b"x" * 4000)
    for name, write in made.items():
        write(models / name)
    yield
    for name in made:
        (models / name).unlink()


Refuse = Callable[[Prompt], Mapping[str, str]]


@pytest.fixture
def refuse(client: Client, server: Server) -> Refuse:
    """Runs a prompt that must be refused; {node id: what it says}. Fails if the refusal read weights or took long."""
    process = psutil.Process(server.process.pid)

    def run(prompt: Prompt) -> Mapping[str, str]:
        before, start = process.memory_info().rss, time.monotonic()
        try:
            client.run(prompt)
        except PromptRefusedError as error:
            said = {node: " ".join(e["details"] for e in found["errors"]) for node, found in error.node_errors.items()}
        except PromptFailedError as error:
            said = {error.node_id: error.message}
        else:
            pytest.fail("the prompt was not refused")
        assert time.monotonic() - start < QUICK
        assert process.memory_info().rss - before < LARGE
        return said

    return run


LOADERS = {
    "diffusion_models": ("WanCoreLoadDiffusionModel", "model_name", 0),
    "text_encoders": ("WanCoreLoadTextEncoder", "text_encoder_name", 2),
    "vae": ("WanCoreLoadVAE", "vae_name", 3),
}
PLACES = {"diffusion_models": "model", "text_encoders": "text_encoder", "vae": "vae"}


def with_single_loader(nodes: Nodes, folder: str, name: str) -> Prompt:
    """The usual graph, but one part comes from a single-purpose loader with this file."""
    node_type, widget, slot = LOADERS[folder]
    prompt = text_to_video(nodes)
    prompt["single"] = nodes(node_type, **{widget: name})
    for node in prompt.values():
        for input_name, value in node["inputs"].items():
            if value == ["models", slot]:
                node["inputs"][input_name] = ["single", 0]
    return prompt


def with_load_models(nodes: Nodes, folder: str, name: str) -> Prompt:
    """The usual graph, with this file in the loader of everything."""
    chosen = {"model": T2V_HIGH, "low_model": T2V_LOW, "text_encoder": TEXT_ENCODER, "vae": VAE, PLACES[folder]: name}
    return text_to_video(nodes, models=nodes("WanCoreLoadModels", **chosen))


WRONG = [
    ("diffusion_models", "a_vae.safetensors", ("VAE",)),
    ("diffusion_models", "a_text_encoder.safetensors", ("text encoder",)),
    ("vae", "a_text_encoder.safetensors", ("text encoder",)),
    ("text_encoders", "a_vae.safetensors", ("VAE",)),
    *((folder, "truncated.safetensors", ("download", "1000|1,000|missing|short|cut")) for folder in LOADERS),
    *((folder, "web_page.safetensors", ("web page",)) for folder in LOADERS),
    *((folder, "pickle.safetensors", ("pickle",)) for folder in LOADERS),
]


@pytest.mark.parametrize("build", [with_single_loader, with_load_models])
@pytest.mark.parametrize(("folder", "name", "words"), WRONG)
def test_wrong_files(
    refuse: Refuse, nodes: Nodes, base: Path, build: Callable[..., Prompt], folder: str, name: str, words: tuple[str]
) -> None:
    said = refuse(build(nodes, folder, name))
    guilty = "single" if build is with_single_loader else "models"
    assert list(said) == [guilty]
    text = said[guilty]
    assert name in text, "the file must be named"
    for word in words:
        assert any(choice.lower() in text.lower() for choice in word.split("|")), f"{word!r} not in {text!r}"
    assert text.count(". ") >= 1 and text.rstrip().endswith("."), "a remedy must follow"


def test_low_expert_of_another_task(refuse: Refuse, nodes: Nodes) -> None:
    models = nodes("WanCoreLoadModels", model="full_high_noise.safetensors", low_model=I2V_LOW)
    said = refuse(text_to_video(nodes, models=models))
    assert list(said) == ["models"]
    assert I2V_LOW in said["models"] and "full_high_noise.safetensors" in said["models"]


@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ({"width": 833}, ("width", "833", "832")),
        ({"height": 100}, ("height", "100", "96")),
        ({"width": 8}, ("width", "16")),
        ({"length": 80}, ("80", "77", "81")),
        ({"length": 2}, ("2", "1", "5")),
    ],
)
def test_sizes_and_lengths(refuse: Refuse, nodes: Nodes, inputs: dict[str, int], named: tuple[str, ...]) -> None:
    prompt = text_to_video(nodes)
    prompt["size"]["inputs"] |= inputs
    said = refuse(prompt)
    assert list(said) == ["size"]
    assert all(word in said["size"] for word in named), said


def test_the_next_prompt_works(client: Client, nodes: Nodes) -> None:
    """After all these refusals the server is as good as new."""
    assert client.run(text_to_video(nodes)).files()
