"""What is said where ComfyUI or torch is too old, and that the question itself needs neither."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wancore
from wancore.nodes.bridge import host

from ..comfy_host import import_comfy

import_comfy()

import comfy.cli_args
import comfy.model_management

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("version", "numbers"),
    [
        ("0.30.0", (0, 30, 0)),
        ("2.11.0+cu130", (2, 11, 0)),
        ("2.9", (2, 9, 0)),
        ("0.24.0rc1", (0, 24, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_version_numbers(version, numbers):
    assert host.version_numbers(version) == numbers


def test_this_installation_fits():
    assert host.missing_requirement() is None
    assert host.comfyui_version().count(".") == 2


def test_too_old_is_one_line_with_found_and_needed(monkeypatch):
    monkeypatch.setattr(host, "comfyui_version", lambda: "0.18.2")
    line = host.missing_requirement()
    assert line == "ComfyUI 0.18.2 is too old, 0.24.0 or newer is needed: update ComfyUI"
    monkeypatch.setattr(host, "comfyui_version", lambda: "")
    assert "unknown version" in host.missing_requirement()
    monkeypatch.setattr(host, "comfyui_version", lambda: "1.0.0")
    monkeypatch.setattr(host, "TORCH", (99, 0, 0))
    assert host.missing_requirement().startswith("PyTorch ")


def test_an_old_comfyui_gets_a_warning_and_no_nodes(monkeypatch, caplog):
    monkeypatch.setattr(host, "COMFYUI", (99, 0, 0))
    with caplog.at_level(logging.WARNING):
        extension = asyncio.run(wancore.comfy_entrypoint())
    assert asyncio.run(extension.get_node_list()) == []
    assert [record.getMessage() for record in caplog.records] == [
        f"WanCore: ComfyUI {host.comfyui_version()} is too old, 99.0.0 or newer is needed: update ComfyUI"
    ]


def test_the_entry_gives_every_node():
    nodes = asyncio.run(asyncio.run(wancore.comfy_entrypoint()).get_node_list())
    ids = [node.GET_SCHEMA().node_id for node in nodes]
    assert len(set(ids)) == len(ids) and all(name.startswith("WanCore") for name in ids)
    assert {"WanCoreLoadModels", "WanCoreLoraPair"} <= set(ids)


def test_asking_imports_no_node_and_nothing_of_comfyui(tmp_path):
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.18.2"\n')
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT / 'tools')!r}, {str(tmp_path)!r}]\n"
        "import pack; pack.import_pack()\n"
        "from wancore.nodes.bridge.host import missing_requirement\n"
        "print(missing_requirement())\n"
        "assert not [name for name in sys.modules if name.startswith(('comfy.', 'comfy_api', 'wancore.nodes.load'))]\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.startswith("ComfyUI 0.18.2 is too old")


@pytest.mark.parametrize(
    ("flag", "chosen"),
    [
        (None, False),
        ("use_pytorch_cross_attention", False),
        ("use_sage_attention", True),
        ("use_quad_cross_attention", True),
        ("use_ck_attention", True),  # of later versions
        ("force_upcast_attention", False),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_flag_chooses_the_attention(device: str, flag: str | None, chosen: bool, monkeypatch) -> None:
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device(device))
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_enabled", lambda: device == "cuda")
    if flag is not None:
        monkeypatch.setattr(comfy.cli_args.args, flag, True, raising=False)
    assert host.attention_is_chosen() == chosen


def test_another_attention_that_the_device_gets_is_kept(monkeypatch) -> None:
    """xformers where it is installed; split attention where PyTorch's is off."""
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("cuda"))
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_enabled", lambda: False)
    assert host.attention_is_chosen()
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_enabled", lambda: True)
    assert not host.attention_is_chosen()
    monkeypatch.setattr(comfy.model_management, "xformers_enabled", lambda: True)
    assert host.attention_is_chosen()
