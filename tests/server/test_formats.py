"""Every quantised form of a model through the real server, each with a LoRA: one short run of one prompt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from graphs import TEXT_ENCODER, VAE, Nodes, text_to_video
from safetensors.torch import save_file
from setup.client import Client

from ..bridge.quantised_files import ALL, is_known, weights, write_format

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
