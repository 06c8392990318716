"""The miniature models as modules, and their trained weights in pocket/weights (see storage.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..wan_core.config import TransformerConfig
from ..wan_core.text.tokenizer import Tokenizer
from ..wan_core.text.umt5 import UMT5Config, UMT5Encoder
from ..wan_core.transformer import WanTransformer
from ..wan_core.vae.causal import CausalVAE
from ..wan_core.vae.wan21 import VAE21Config, WanVAE21
from ..wan_core.vae.wan22 import VAE22Config, WanVAE22
from . import family, storage

Model = TypeVar("Model", bound=nn.Module)

WEIGHTS = Path(__file__).parent / "weights"
CHECKPOINTS = (family.T2V_HIGH.short, family.T2V_LOW.short)  # kept as GGUF files that loaders take
SHAPES = Path(__file__).parents[1] / "tests" / "shapes"  # the key lists of the full-size models


def weights_file(member: family.Member, folder: Path = WEIGHTS) -> Path:
    """Where the trained weights of a member are kept."""
    return weights_file_of(member.short, folder)


def weights_file_of(short: str, folder: Path = WEIGHTS) -> Path:
    """The same by the short name that members and LoRAs have."""
    return folder / f"{short}{storage.SUFFIX}"


def shapes_of(member: family.Member) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields (parameter name, miniature shape) in the order of the full-size key list."""
    full: dict[str, list[int]] = json.loads((SHAPES / member.shapes).read_text())["shapes"]
    for name, shape in full.items():
        if not member.keeps(name):
            continue
        yield name, tuple(member.axis(name, size) for size in shape)


def completed(member: family.Member, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All tensors of a member from those that are kept of it, which may be fewer and smaller.

    A shorter axis is repeated, every value as often as it stands for others, and shared out where it is summed over:
    the convolutions of wav2vec2, and those that pack what came before a clip. A tensor that is not kept is zero: its
    layer changes nothing.
    """
    found = {}
    for name, shape in shapes_of(member):
        value = stored.get(name)
        if value is None:
            found[name] = torch.zeros(shape, dtype=torch.bfloat16)
            continue
        for axis, (size, whole) in enumerate(zip(value.shape, shape, strict=True)):
            if size != whole:
                value = value.repeat_interleave(whole // size, axis) / (1 if axis == 0 else whole // size)
        found[name] = value
    return found


def new_transformer(member: family.Member) -> WanTransformer:
    """A transformer of the family's size, float32, with an initialisation to train from."""
    config = TransformerConfig.from_shapes(dict(shapes_of(member)))
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
        nn.init.normal_(block.modulation, std=config.dim**-0.5)
        with torch.no_grad():  # every gate open at first
            block.modulation[:, (2, 5)] += 1.0
    nn.init.normal_(model.time_projection[1].weight, std=0.02)
    return model


def new_vae(member: family.Member = family.VAE) -> CausalVAE:
    """A VAE of the family's width, float32."""
    shapes = dict(shapes_of(member))
    if member is family.VAE22:
        model: CausalVAE = WanVAE22(VAE22Config.from_shapes(shapes))
    else:
        model = WanVAE21(VAE21Config.from_shapes(shapes))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
    mean, std = torch.tensor(model.statistics.mean), torch.tensor(model.statistics.std)
    with torch.no_grad():  # normalised latents of usual size, with little noise
        model.conv1.weight[: len(std)] *= std.view(-1, 1, 1, 1, 1)
        model.conv1.bias[: len(std)] = mean
        model.conv1.weight[len(std) :] *= 0.1
        model.conv1.bias[len(std) :] = -4.0
        model.conv2.weight /= std.view(1, -1, 1, 1, 1)
        model.conv2.bias -= model.conv2.weight[..., 0, 0, 0] @ mean
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


def save_weights(model: nn.Module, member: family.Member, folder: Path, *, spiece: bytes = b"") -> Path:
    """Writes the model under its published parameter names; what a member shares with its base is left out."""
    path = weights_file(member, folder)
    base = read_weights(family.of(member.base), folder) if member.base else {}
    weights = {name: value.detach().to("cpu") for name, value in model.state_dict().items()}
    own = {name: value for name, value in weights.items() if not _equal(value, base.get(name))}
    storage.save(own, path, member.metadata, spiece=spiece, checkpoint=member.short in CHECKPOINTS)
    return path


def _equal(value: Tensor, other: Tensor | None) -> bool:
    return other is not None and value.shape == other.shape and torch.equal(value.to(other.dtype), other)


def read_weights(member: family.Member, folder: Path = WEIGHTS) -> dict[str, Tensor]:
    """A member's trained weights, whole, in bfloat16: its file, with what it shares with its base."""
    stored = storage.load(weights_file(member, folder))
    base = read_weights(family.of(member.base), folder) if member.base else {}
    names = (name for name, _ in shapes_of(member)) if member.base else stored
    return {name: stored[name] if name in stored else base[name] for name in names}


def load_weights(model: Model, member: family.Member, folder: Path = WEIGHTS) -> Model:
    """Fills the model from a file of `save_weights` and returns it; every parameter has to be there."""
    model.load_state_dict({name: value.float() for name, value in read_weights(member, folder).items()})
    return model


def load_tokenizer(folder: Path = WEIGHTS) -> Tokenizer:
    """The tokenizer in the trained text encoder's file."""
    return Tokenizer(load_spiece(folder))


def load_spiece(folder: Path = WEIGHTS) -> bytes:
    """The serialized sentencepiece model in the trained text encoder's file."""
    return storage.load_spiece(weights_file(family.TEXT_ENCODER, folder))
