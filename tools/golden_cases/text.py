"""UMT5: encoder outputs with and without a mask, their cut rows, and the position tables."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from wancore.wan_core.text.keys import encoder_names
from wancore.wan_core.text.umt5 import SelfAttention, UMT5Config, UMT5Encoder, contexts, position_buckets

from . import INPUT, OUTPUT, Golden, Result

TOLERANCE = 2e-5  # float32 on CPU; another attention kernel, same formulas


@torch.inference_mode()
def t5(golden: Golden) -> Iterator[Result]:
    """Weights come under the official names."""
    names = encoder_names(golden.weights)
    weights = {target: golden.weights[name] for name, target in names.items()}
    encoder = UMT5Encoder(UMT5Config.from_shapes({name: tensor.shape for name, tensor in weights.items()}))
    encoder.load_state_dict(weights)
    for case in golden.cases():
        given = golden.of(INPUT, case)
        hidden = encoder(given["ids"], given.get("mask"))
        mask = given.get("mask", torch.ones_like(given["ids"]))
        ours = {"out.hidden": hidden}
        for name, expected in golden.of(OUTPUT, case).items():
            if name.startswith("trim"):
                ours[f"out.{name}"] = contexts(hidden, mask)[int(name.removeprefix("trim"))]
            elif name.startswith("bias"):
                ours[f"out.{name}"] = bias(encoder, int(name.removeprefix("bias")), hidden, expected.shape[2])
        yield golden.check(case, ours, TOLERANCE)


def bias(encoder: UMT5Encoder, layer: int, hidden: Tensor, queries: int) -> Tensor:
    """Rows of the first `queries` tokens in what layer `layer` adds to its scores: [1, H, queries, L]."""
    attention = encoder.get_submodule(f"encoder.block.{layer}.layer.0.SelfAttention")
    assert isinstance(attention, SelfAttention)
    return attention.bias(position_buckets(hidden.shape[1], encoder.config.num_buckets), hidden)[:, :, :queries]


FAMILIES = {"t5": t5}
