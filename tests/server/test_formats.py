"""Every form of every part through the real server, one short run each: models with a LoRA, text encoders, VAEs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from graphs import T2V_HIGH, TEXT_ENCODER, VAE, Nodes, text_to_video
from make_pocket import build
from pocket_gguf import write_umt5
from safetensors.torch import save_file
from setup.client import Client

from ..bridge.quantised_files import ALL, family, is_known, weights, write_format
from ..bridge.test_containers import diffusers_folder, official_folder, prefixed, text_encoder_by_channels
from ..core.diffusers_vae import diffusers_vae_name

LORA = "formats_high_noise.safetensors"
LAYER = "blocks.1.ffn.0"


@pytest.fixture(scope="module")
def files(base: Path):
    """One model in all forms, and a LoRA that fits it; gone again for the tests after these."""
    folder = base / "models" / "diffusion_models" / "formats"
    folder.mkdir()
    written = {
        kind: Path(write_format(folder / f"wan22_t2v_high_noise_{kind.replace(' ', '_')}", kind))
        for kind in ALL
        if is_known(kind)
    }
    lora = base / "models" / "loras" / LORA
    width, inputs = weights()[f"{LAYER}.weight"].shape
    pair = {"lora_A.weight": torch.ones(2, inputs), "lora_B.weight": 0.01 * torch.ones(width, 2)}
    save_file({f"diffusion_model.{LAYER}.{part}": tensor for part, tensor in pair.items()}, lora)
    yield written
    for path in (*written.values(), lora):
        path.unlink()
    folder.rmdir()


def diffusers_vae(folder: Path) -> Path:
    path, tensors = folder / "diffusion_pytorch_model.safetensors", build(family.VAE, fp8=False)
    save_file({diffusers_vae_name(name, levels=False): tensor for name, tensor in tensors.items()}, path)
    return path


def saved(member: family.Member, prefix: str = "", dtype: torch.dtype | None = None) -> Callable[[Path], Path]:
    """A plain file of a part, every name with a prefix."""

    def write(folder: Path) -> Path:
        tensors = {prefix + name: tensor for name, tensor in build(member, fp8=False).items()}
        tensors = {name: t.to(dtype) if dtype and t.is_floating_point() else t for name, t in tensors.items()}
        save_file(tensors, folder / "plain.safetensors")
        return folder / "plain.safetensors"

    return write


UMT5_INSIDE = "text_encoders.umt5xxl.transformer."
PARTS: dict[str, tuple[str, str, Callable[[Path], Path]]] = {  # models folder, widget, and what writes the file
    "official shards": ("diffusion_models", "model", official_folder),
    "diffusers folder": ("diffusion_models", "model", diffusers_folder),
    "inside a checkpoint": ("diffusion_models", "model", prefixed),
    "UMT5 fp16": ("text_encoders", "text_encoder", saved(family.TEXT_ENCODER, dtype=torch.float16)),
    "UMT5 inside a checkpoint": ("text_encoders", "text_encoder", saved(family.TEXT_ENCODER, UMT5_INSIDE)),
    "UMT5 int8": ("text_encoders", "text_encoder", lambda folder: text_encoder_by_channels(folder, torch.int8)[0]),
    "UMT5 GGUF": ("text_encoders", "text_encoder", lambda folder: write_umt5(folder)[0]),
    "VAE fp32": ("vae", "vae", saved(family.VAE, dtype=torch.float32)),
    "VAE inside a checkpoint": ("vae", "vae", saved(family.VAE, "vae.")),
    "VAE of diffusers": ("vae", "vae", diffusers_vae),
}


@pytest.fixture(scope="module")
def parts(base: Path) -> Iterator[dict[str, tuple[str, str]]]:
    """{what: (widget, name in its list)}, each in a sub-folder; gone again for the tests after these."""
    written, folders = {}, []
    for what, (kind, widget, write) in PARTS.items():
        folder = base / "models" / kind / f"form {what}"
        folder.mkdir()
        folders.append(folder)
        written[what] = widget, str(write(folder).relative_to(base / "models" / kind))
    yield written
    for folder in folders:
        shutil.rmtree(folder)


@pytest.mark.parametrize("what", PARTS)
def test_every_form_of_every_part_makes_a_clip(what: str, parts: dict[str, tuple[str, str]], client: Client) -> None:
    widget, name = parts[what]
    widgets = {"model": T2V_HIGH, "low_model": "none", "text_encoder": TEXT_ENCODER, "vae": VAE, widget: name}
    nodes = Nodes(client.get("/object_info"))
    prompt = text_to_video(nodes, models=nodes("WanCoreLoadModels", **widgets), prefix="formats", steps=1)
    prompt["size"]["inputs"]["length"] = 1
    del prompt["sampler"]["inputs"]["low"]
    assert client.run(prompt).files()


def test_every_format_makes_a_clip(files: dict[str, Path], client: Client) -> None:
    nodes = Nodes(client.get("/object_info"))
    for kind, path in files.items():
        models = nodes(
            "WanCoreLoadModels", model=f"formats/{path.name}", low_model="none", text_encoder=TEXT_ENCODER, vae=VAE
        )
        prompt = text_to_video(nodes, models=models, prefix="formats", steps=1)
        prompt["size"]["inputs"]["length"] = 1
        prompt["lora"] = nodes("WanCoreLoraPair", high=["models", 0], lora_high=LORA, lora_low="none")
        prompt["sampler"]["inputs"]["high"] = ["lora", 0]
        del prompt["sampler"]["inputs"]["low"]
        assert client.run(prompt).files(), kind
