"""A real ComfyUI server with this pack and the miniature weights, started once for all tests of this folder."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from make_pocket import make_pocket
from setup.client import Client
from setup.comfyui import DEFAULT_VERSION
from setup.places import ROOT, cache_folder
from setup.server import Launch, Server, link_pack, serve

T2V_HIGH = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
T2V_LOW = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
TEXT_ENCODER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
VAE = "wan_2.1_vae.safetensors"
LORA_HIGH = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
LORA_LOW = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_low_noise.safetensors"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("server")


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI that the tests run in."""
    return Path(os.environ.get("COMFYUI_PATH") or cache_folder() / f"ComfyUI-{DEFAULT_VERSION}")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder with this pack and the miniature weights under their published names."""
    folder = tmp_path_factory.mktemp("comfyui")
    link_pack(folder)
    make_pocket(folder / "models")
    return folder


@pytest.fixture(scope="session")
def launch(comfyui: Path, base: Path) -> Launch:
    return Launch(comfyui, Path(sys.executable), base, ("--cpu",))


@pytest.fixture(scope="session")
def server(launch: Launch) -> Iterator[Server]:
    """The server; its log is a test artefact."""
    artefacts = ROOT / "tests" / "artefacts"
    artefacts.mkdir(exist_ok=True)
    with serve(launch, artefacts / f"server-{launch.comfyui.name}.log") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server) -> Client:
    return Client(server.address)


@pytest.fixture(scope="session")
def object_info(client: Client) -> dict[str, Any]:
    """What the server says of every node."""
    return client.get("/object_info")


@pytest.fixture(scope="session")
def ours(object_info: dict[str, Any]) -> dict[str, Any]:
    """What the server says of the nodes of this pack."""
    return {name: node for name, node in object_info.items() if name.startswith("WanCore")}


@pytest.fixture(scope="session")
def workflows() -> dict[str, dict[str, Any]]:
    """The bundled workflows by title."""
    files = sorted((ROOT / "workflows").glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


@pytest.fixture(scope="session")
def defaults(object_info: dict[str, Any]) -> Defaults:
    return Defaults(object_info)


class Defaults:
    """Writes nodes of an API prompt with every widget at its default, as a freshly placed node has them."""

    def __init__(self, object_info: dict[str, Any]) -> None:
        self._object_info = object_info

    def __call__(self, node_type: str, **inputs: Any) -> dict[str, Any]:
        """One node: the default of every widget, and `inputs` over them."""
        kinds = self._object_info[node_type]["input"]
        filled = {}
        for name, (kind, *options) in {**kinds.get("required", {}), **kinds.get("optional", {})}.items():
            settings = options[0] if options else {}
            if isinstance(kind, list):
                filled[name] = settings.get("default", kind[0] if kind else "")
            elif kind == "COMBO":
                choices = settings.get("options") or [""]
                filled[name] = settings.get("default", choices[0])
            elif "default" in settings:
                filled[name] = settings["default"]
        unknown = inputs.keys() - {*kinds.get("required", {}), *kinds.get("optional", {})}
        assert not unknown, f"{node_type} has no input {unknown}"
        return {"class_type": node_type, "inputs": {**filled, **inputs}}


def strip_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)
