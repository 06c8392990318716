"""Miniatures of published models that no bundled workflow names: Wan 2.1 with CLIP, Fun 2.1 and 5B, VACE 2.1."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from make_pocket import draw, write
from torch import Tensor
from wancore.pocket import family
from wancore.pocket.models import shapes_of

LAYERS = 2
OLD_WIDTHS = {**family.TRANSFORMER, 1280: family.SIGHT_DIM}  # of models that see pictures through CLIP


@dataclass(frozen=True)
class Variant:
    """A file of the shapes of another one: with other channels into the patches, and modules of a third."""

    name: str
    shapes: str
    widths: dict[int, int]
    channels: int
    camera: bool = False
    reference: bool = False  # a layer for the latent of a reference picture


VARIANTS = (
    Variant("wan2.1_i2v_480p_14B_fp16.safetensors", "wan21_i2v_14B.json", OLD_WIDTHS, 36),
    Variant("wan2.1_flf2v_720p_14B_fp16.safetensors", "wan21_flf2v_14B.json", OLD_WIDTHS, 36),
    Variant("wan2.1_fun_control_1.3B_bf16.safetensors", "wan21_i2v_14B.json", OLD_WIDTHS, 48),
    Variant("wan2.1_fun_inp_1.3B_bf16.safetensors", "wan21_i2v_14B.json", OLD_WIDTHS, 36),
    Variant("wan2.1_fun_camera_v1.1_1.3B_bf16.safetensors", "wan21_i2v_14B.json", OLD_WIDTHS, 32, camera=True),
    Variant("wan2.1_vace_14B_fp16.safetensors", "vace_14B.json", family.TRANSFORMER, 16),
    Variant("wan2.2_fun_control_5B_bf16.safetensors", "ti2v_5B.json", family.TI2V.widths, 148, reference=True),
    Variant("wan2.2_fun_inpaint_5B_bf16.safetensors", "ti2v_5B.json", family.TI2V.widths, 100),
)


def build_variant(variant: Variant) -> dict[str, Tensor]:
    """Random bfloat16 weights, the same on every machine."""
    one_hint = {"vace_blocks": 1}
    like = replace(
        family.TI2V,
        shapes=variant.shapes,
        widths=variant.widths,
        layers=LAYERS,
        lists=one_hint,
        seed=40,
        base="",
    )
    shapes = dict(shapes_of(like))
    width, _, *patch = shapes["patch_embedding.weight"]
    shapes["patch_embedding.weight"] = (width, variant.channels, *patch)
    if variant.reference:
        shapes |= {"ref_conv.weight": (width, 48, *patch[1:]), "ref_conv.bias": (width,)}
    if variant.camera:
        adapter = replace(family.CAMERA_HIGH, widths=variant.widths)
        shapes |= {name: shape for name, shape in shapes_of(adapter) if name.startswith("control_adapter.")}
    return {name: draw(name, shape, like.seed).to(torch.bfloat16) for name, shape in shapes.items()}


def write_variants(models: Path) -> None:
    """Writes all of them into the folder of diffusion models."""
    for variant in VARIANTS:
        write(build_variant(variant), models / "diffusion_models" / variant.name, family.TRANSFORMER_METADATA)
