"""Text to image on the real server: the workflow and what its picture carries; one model alone makes one, too."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from graphs import T2V_LOW, TEXT_ENCODER, VAE, Nodes
from PIL import Image
from setup.client import Client
from wancore.pocket import family
from workflow_api import to_prompt


@pytest.mark.slow
def test_text_to_image_saves_a_picture(client: Client, workflows: dict[str, Any], object_info: dict[str, Any]) -> None:
    workflow = workflows["Wan 2.2 Text to Image"]
    result = client.run(to_prompt(workflow, object_info), workflow=workflow)
    (saved,) = result.files()
    image = Image.open(io.BytesIO(client.view(saved)))
    assert (image.format, image.size, image.mode) == ("PNG", (1024, 1024), "RGB")
    assert json.loads(image.info["workflow"]) == workflow
    low, high = image.convert("L").getextrema()
    assert high > low, "the picture is flat"


@pytest.mark.parametrize(
    ("model", "vae"), [(T2V_LOW, VAE), (family.TI2V.name, family.VAE22.name)], ids=["low expert alone", "5B"]
)
def test_one_model_makes_a_picture(client: Client, nodes: Nodes, model: str, vae: str) -> None:
    prompt = {
        "models": nodes("WanCoreLoadModels", model=model, low_model="none", text_encoder=TEXT_ENCODER, vae=vae),
        "text": nodes("WanCoreTextEncode", clip=["models", 2], prompt="a red circle"),
        "size": nodes("WanCoreTextToImage", vae=["models", 3], size="custom", width=96, height=64),
        "sampler": nodes(
            "WanCoreKSampler",
            high=["models", 0],
            positive=["text", 0],
            negative=["text", 1],
            latent=["size", 0],
            seed=1,
            steps=4,
        ),
        "decode": nodes("WanCoreVAEDecode", latent=["sampler", 0], vae=["models", 3]),
        "save": nodes("SaveImage", images=["decode", 1], filename_prefix="picture"),
    }
    (saved,) = client.run(prompt).files()
    image = Image.open(io.BytesIO(client.view(saved)))
    low, high = image.convert("L").getextrema()
    assert image.size == (96, 64) and high > low
