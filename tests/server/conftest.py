"""A real ComfyUI server with this pack and the miniature weights, started once for all tests of this folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs import Nodes
from pocket_files import copy_pocket
from setup.client import Client
from setup.comfyui import DEFAULT_VERSION
from setup.places import ROOT, cache_folder
from setup.server import Launch, Server, link_pack, serve


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
    copy_pocket(folder / "models")
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
def nodes(object_info: dict[str, Any]) -> Nodes:
    """Writes nodes of prompts for the server."""
    return Nodes(object_info)
