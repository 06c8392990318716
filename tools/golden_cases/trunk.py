"""The transformer alone: text, image, and text and image to video, and the picture branch of Wan 2.1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from wancore.wan_core.conditioning import Conditioning, ContextGroup
from wancore.wan_core.config import TransformerConfig
from wancore.wan_core.transformer import WanTransformer, sinusoid

from . import INPUT, MIDDLE, OUTPUT, Golden, Result

TOLERANCE = 2e-5


def model(golden: Golden, dtype: torch.dtype = torch.float32) -> WanTransformer:
    """The transformer of one file; the head count cannot be read from the tensors."""
    config = TransformerConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in golden.weights.items()})
    given = {name: golden.config[name] for name in ("num_heads", "text_len", "eps") if name in golden.config}
    transformer = WanTransformer(replace(config, **given), dtype=dtype).eval().requires_grad_(False)
    transformer.load_state_dict({name: tensor.to(dtype) for name, tensor in golden.weights.items()})
    return transformer


def trunk(golden: Golden) -> Iterator[Result]:
    """One forward for each sample of a case; a case with x0, x1, ... holds samples of different sizes."""
    transformer = model(golden)
    for case in golden.cases():
        inputs = golden.of(INPUT, case)
        ours: dict[str, Tensor] = {}
        for index, suffix in enumerate(sorted(name[1:] for name in inputs if name[:1] == "x")):
            t = inputs["t"][min(index, len(inputs["t"]) - 1) :][:1]
            seen = _watched(transformer, golden.of(MIDDLE, case))
            video = inputs[f"x{suffix}"][None]
            velocity = transformer(video, timestep(transformer, video, t), conditioning(inputs, suffix))
            ours |= {f"{MIDDLE}.{name}": value for name, value in seen.items()}
            ours |= _time_rows(transformer, t, golden.of(MIDDLE, case))
            ours[f"{OUTPUT}.x{suffix}"] = velocity[0]
        yield _cut(golden, case, ours).check(case, ours, TOLERANCE)


def conditioning(inputs: dict[str, Tensor], suffix: str) -> Conditioning:
    """The inputs of one sample in our form."""
    y, features = inputs.get(f"y{suffix}"), inputs.get(f"clip_fea{suffix}")
    return Conditioning(
        text=inputs[f"context{suffix}"][None],
        concat=None if y is None else y[None],
        contexts=() if features is None else (ContextGroup(features.flatten(0, 1)[None]),),
    )


def timestep(transformer: WanTransformer, video: Tensor, t: Tensor) -> Tensor:
    """[1], or [1, tokens] without the padding that the official code adds behind a shorter sample."""
    sizes = zip(video.shape[2:], transformer.patch_size, strict=True)
    patches = (-(-size // patch) for size, patch in sizes)
    return t if t.ndim == 1 else t[:, : math.prod(patches)]


def _watched(transformer: WanTransformer, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Fills the returned dict with the outputs of the modules that intermediate values are named after."""
    modules: dict[str, nn.Module] = {f"block{i}": block for i, block in enumerate(transformer.blocks)}
    modules |= dict(transformer.named_children())
    seen: dict[str, Tensor] = {}
    for name in wanted.keys() & modules.keys():
        module = modules[name]
        module._forward_hooks.clear()
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    return seen


def _time_rows(transformer: WanTransformer, t: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The modulation of the first and the last timestep of a sample, padding included."""
    rows = transformer.time_projection(
        transformer.time_embedding(sinusoid(t.flatten(), transformer.config.freq_dim).float())
    )
    places = {"time_projection_first": rows[:1], "time_projection_last": rows[-1:]}
    return {f"{MIDDLE}.{name}": value for name, value in places.items() if name in wanted}


def _cut(golden: Golden, case: str, ours: dict[str, Tensor]) -> Golden:
    """Drops the padding tokens behind the block outputs of the official code: nothing reads them."""
    cut = {
        f"{MIDDLE}.{case}.{name}": tensor[:, : ours[f"{MIDDLE}.{name}"].shape[1]]
        for name, tensor in golden.of(MIDDLE, case).items()
        if name.startswith("block") and f"{MIDDLE}.{name}" in ours
    }
    return replace(golden, tensors={**golden.tensors, **cut})


FAMILIES = dict.fromkeys(("wan_t2v", "wan_i2v", "wan_ti2v", "wan21_i2v", "wan21_flf2v"), trunk)
