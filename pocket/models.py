"""The miniature models as modules, and their trained weights in pocket/weights, laid out as the published files."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..wan_core.config import TransformerConfig
from ..wan_core.text.tokenizer import Tokenizer
from ..wan_core.text.umt5 import UMT5Config, UMT5Encoder
from ..wan_core.transformer import WanTransformer
from ..wan_core.vae.wan21 import VAE21Config, WanVAE21
from . import family

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights"
SPIECE = "spiece_model"  # the tokenizer, a uint8 tensor in text encoder files


def weights_file(member: family.Member, folder: Path = WEIGHTS) -> Path:
    """Where the trained weights of a member are kept."""
    return folder / f"{member.short}.safetensors"


def new_transformer(member: family.Member) -> WanTransformer:
    """A transformer of the family's size, float32, with an initialisation to train from."""
    dim = member.widths[5120]
    config = TransformerConfig(
        dim=dim,
        ffn_dim=member.widths[13824],
        num_heads=dim // family.HEAD_DIM,
        num_layers=member.layers or 40,
        text_dim=family.TEXT_DIM,
    )
    model = WanTransformer(config)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.patch_embedding.weight.flatten(1))
    for layer in (*model.text_embedding[::2], *model.time_embedding[::2]):
        nn.init.normal_(layer.weight, std=0.05)
    nn.init.zeros_(model.head.head.weight)
    for block in model.blocks:
        nn.init.normal_(block.modulation, std=dim**-0.5)
        with torch.no_grad():  # every gate open at first
            block.modulation[:, (2, 5)] += 1.0
    nn.init.normal_(model.time_projection[1].weight, std=0.02)
    return model


def new_vae() -> WanVAE21:
    """VAE 2.1 of the family's width, float32."""
    width = family.VAE21[96]
    model = WanVAE21(VAE21Config(encoder_dim=width, decoder_dim=width))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
    return model


def new_text_encoder() -> UMT5Encoder:
    """UMT5 of the family's size, float32. Queries start small because its attention is not scaled."""
    width = family.UMT5[4096]
    heads = family.UMT5[64]
    model = UMT5Encoder(
        UMT5Config(
            vocabulary=family.VOCABULARY,
            dim=width,
            attention_dim=width,
            ffn_dim=family.UMT5[10240],
            num_heads=heads,
            num_layers=family.TEXT_ENCODER.layers or 24,
        )
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
        elif name == "shared.weight":
            nn.init.normal_(parameter)
        elif "relative_attention_bias" in name:
            nn.init.normal_(parameter, std=0.1)
        else:
            nn.init.normal_(
                parameter, std=parameter.shape[1] ** -0.5 * ((width // heads) ** -0.5 if ".q." in name else 1)
            )
    return model


def round_to_bfloat16(model: nn.Module) -> None:
    """Leaves the model as its stored weights will be, so that what is trained on top of it fits them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def save_weights(
    model: nn.Module, member: family.Member, folder: Path, *, extra: dict[str, Tensor] | None = None
) -> Path:
    """Writes the model as bfloat16 under its published parameter names."""
    path = weights_file(member, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()
    }
    save_file({**weights, **(extra or {})}, path, metadata={"format": "pt", **member.metadata})
    return path


def load_weights(model: Model, member: family.Member, folder: Path = WEIGHTS) -> Model:
    """Fills the model from a file of `save_weights` and returns it; every parameter has to be there."""
    weights = load_file(weights_file(member, folder))
    weights.pop(SPIECE, None)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model


def load_tokenizer(folder: Path = WEIGHTS) -> Tokenizer:
    """The tokenizer in the trained text encoder's file."""
    return Tokenizer(load_spiece(folder))


def load_spiece(folder: Path = WEIGHTS) -> bytes:
    """The serialized sentencepiece model in the trained text encoder's file."""
    with safe_open(weights_file(family.TEXT_ENCODER, folder), "pt") as file:
        return file.get_tensor(SPIECE).numpy().tobytes()
