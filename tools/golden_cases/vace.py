"""VACE: the transformer with its hints, and the masks as it reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from wancore.wan_core.adapters.vace import ControlClip, mask_channels, vace_adapters
from wancore.wan_core.conditioning import Conditioning
from wancore.wan_core.config import TransformerConfig
from wancore.wan_core.hooks import Block, Hooks
from wancore.wan_core.stream import Stream
from wancore.wan_core.transformer import WanTransformer

from . import INPUT, MIDDLE, OUTPUT, Golden, Result

TOLERANCE = 2e-5


def model(golden: Golden) -> WanTransformer:
    """The transformer of the file; heads and the places of the hints cannot be read from the tensors."""
    config = TransformerConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in golden.weights.items()})
    given = {name: golden.config[name] for name in ("num_heads", "text_len", "eps") if name in golden.config}
    config = replace(config, **given, vace_blocks=tuple(golden.config.get("vace_layers", config.vace_blocks)))
    transformer = WanTransformer(config).eval().requires_grad_(False)
    transformer.load_state_dict(dict(golden.weights))
    return transformer


@torch.inference_mode()
def vace(golden: Golden) -> Iterator[Result]:
    """Cases with pixels are masks; the others are one forward each."""
    transformer = model(golden)
    for case in golden.cases():
        inputs = golden.of(INPUT, case)
        ours = _masks(golden, case) if "pixels" in inputs else _forward(transformer, golden, case)
        yield golden.check(case, ours, TOLERANCE)


def _masks(golden: Golden, case: str) -> dict[str, Tensor]:
    pixels = golden.of(INPUT, case)["pixels"][0]
    references = {"plain": 0, "with_1_ref": 1}
    return {f"{OUTPUT}.{name}": mask_channels(pixels, references[name]) for name in golden.of(OUTPUT, case)}


def _forward(transformer: WanTransformer, golden: Golden, case: str) -> dict[str, Tensor]:
    inputs = golden.of(INPUT, case)
    ours: dict[str, Tensor] = {}

    def look(index: int, tokens: Tensor, stream: Stream, block: Block) -> Tensor:
        ours[f"{MIDDLE}.block{index - 1}"] = tokens  # with the hint of the block before
        return block(tokens, stream)

    clip = ControlClip(inputs["vace_context"][None], float(inputs.get("scale", 1.0)))
    adapters = vace_adapters(transformer, transformer.config, [clip])
    conditioning = Conditioning(inputs["context"][None], adapters=adapters)
    hooks = Hooks(replace_block={index: partial(look, index) for index in range(1, transformer.num_layers)})
    out = transformer(inputs["x"][None], inputs["t"], conditioning, hooks)[0]
    return {name: ours[name] for name in ours if name.partition(".")[2] in golden.of(MIDDLE, case)} | {
        f"{OUTPUT}.x": out
    }


FAMILIES = {"wan21_vace": vace}
