"""The spellings in which files write the official parameter names, and the check that none is missing or left over.

A new spelling is one row in `SPELLINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ..errors import WrongModelError

TRANSFORMER_MARK = "head.modulation"  # in every Wan transformer
SCALES = (
    "scale_weight",
    "scale_input",
    "weight_scale",
    "weight_scale_2",
    "input_scale",
    "pre_quant_scale",
    "comfy_quant",
)
SHOWN = 5  # names in an error


@dataclass(frozen=True)
class Spelling:
    """One way to write the official names.

    `mark` is a name that every transformer in this spelling has; `official` turns a file's name into the official
    one, or None where the tensor is not the transformer's.
    """

    name: str
    mark: str
    official: Callable[[str], str | None]
    prefix: str = ""


def _prefixed(prefix: str) -> Spelling:
    def official(name: str) -> str | None:
        return name[len(prefix) :] if name.startswith(prefix) else None

    return Spelling(prefix or "official", prefix + TRANSFORMER_MARK, official, prefix)


SPELLINGS = (_prefixed(""), _prefixed("model.diffusion_model."), _prefixed("diffusion_model."))


def spelling_of(names: Collection[str]) -> Spelling | None:
    """Returns the spelling of the transformer among these names; None if there is none."""
    return next((spelling for spelling in SPELLINGS if spelling.mark in names), None)


def check_tensors(
    where: str, found: Mapping[str, Sequence[int]], expected: Mapping[str, Sequence[int]], *, packed: bool = False
) -> None:
    """Compares the tensors of a file with those of the model, by official name and shape.

    `packed`: matrices of 4-bit files hold two values in one byte, so that their last axis is not compared.

    Raises:
        WrongModelError: tensors are missing, left over or of another shape; names up to five.
    """
    missing = [name for name in expected if name not in found]
    left_over = [name for name in found if name not in expected and not _is_scale(name, expected)]
    wrong = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and not _same(found[name], shape, packed)
    ]
    for what, names in (("missing", missing), ("left over", left_over), ("of another shape", wrong)):
        if names:
            raise WrongModelError(
                "The tensors of this file are not those of the model that it looks like",
                where=where,
                found=f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}",
                remedy="Take an unchanged file of this model, or open it with ComfyUI's Load Diffusion Model node",
            )


def _is_scale(name: str, expected: Mapping[str, Sequence[int]]) -> bool:
    layer, _, leaf = name.rpartition(".")
    return name == "scaled_fp8" or (leaf in SCALES and f"{layer}.weight" in expected)


def _same(found: Sequence[int], expected: Sequence[int], packed: bool) -> bool:
    if packed and len(expected) == 2:
        return tuple(found[:1]) == tuple(expected[:1])
    return tuple(found) == tuple(expected)
