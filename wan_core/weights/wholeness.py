"""Whether a file holds the tensors of the model that it looks like: names, shapes and types, by its header alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from ..errors import WrongModelError
from .families import DIFFUSION_MODEL, KIND_TITLES, NATIVE_LOADERS, Shapes
from .ggml_types import BLOCK_TYPES

SCALES = (
    "scale_weight",
    "scale_input",
    "weight_scale",
    "weight_scale_2",
    "input_scale",
    "pre_quant_scale",
    "comfy_quant",
    "weight_global_scale",
    "input_absmax",
    "input_global_scale",
    "alpha",
)
SHOWN = 5  # names in an error
MOST_FOUND = 120  # characters of another library's error
BLOCK = re.compile(r"(?P<stack>blocks|vace_blocks|encoder\.block|enc\.blk)\.(?P<number>0|[1-9]\d{0,2})\.")
AROUND = tuple(
    f"{layer}.{leaf}"
    for layer in ("patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
                  "time_projection.1", "head.head")
    for leaf in ("weight", "bias")
)  # fmt: skip
FLOATING = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
# Types of whole numbers that the matrices of a quantised file may have, where scales beside them say what they mean;
# the keys are those of `Checkpoint.quantised`.
WHOLE: Mapping[str, Collection[str]] = {
    "comfy_quant": ("I8", "U8"),
    "unmarked": ("I8", "U8"),
    "one scale": ("I8",),
    "lightx2v_nvfp4": ("U8",),
}

Config = TypeVar("Config", covariant=True)


class Sizes(Protocol[Config]):
    """The configuration of a network, which is read from the shapes of its tensors."""

    def from_shapes(self, shapes: Shapes, /) -> Config: ...


def sizes_of(sizes: Sizes[Config], shapes: Shapes, where: str, kind: str) -> Config:
    """The configuration by the shapes of a file of this kind.

    Raises:
        WrongModelError: tensors that say the sizes are missing, or no network has such ones.
    """
    try:
        return sizes.from_shapes(shapes)
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError) as error:
        raise WrongModelError(
            f"This {KIND_TITLES[kind]} lacks tensors that say how large it is",
            where=where,
            found=f"no usable {error}",
            remedy=_remedy(kind),
        ) from None


@contextmanager
def network_of(where: str, kind: str) -> Iterator[None]:
    """Around building a network without weights, from sizes that a header says.

    Raises:
        WrongModelError: no network has such sizes.
    """
    try:
        yield
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise WrongModelError(
            f"This {KIND_TITLES[kind]} has sizes that no network has",
            where=where,
            found=str(error)[:MOST_FOUND],
            remedy=_remedy(kind),
        ) from None


def check_tensors(where: str, kind: str, found: Shapes, expected: Shapes, *, packed: bool = False) -> None:
    """Compares the tensors of a file with those of the model, by official name and shape.

    `packed`: matrices of 4-bit files hold two values in one byte, so that their last axis may be half as long.

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
        _refuse(where, kind, what, names)


def check_blocks(
    where: str, kind: str, found: Shapes, types: Mapping[str, str], *, quantised: str = "", packed: bool = False
) -> None:
    """Checks that the blocks of a network hold the same tensors, and a transformer what is around them.

    Knows no network, so that it takes no time; what all blocks lack, `check_tensors` finds.

    Raises:
        WrongModelError: a block lacks a tensor, or one is of another shape or type than in the others.
    """
    blocks: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {}
    for name, shape in found.items():
        block = BLOCK.match(name)
        if block is not None and name.rpartition(".")[2] not in SCALES:
            # 4-bit files may have blocks of 16 bits among theirs: their rows are as many
            alike = shape[:1] if packed and len(shape) == 2 else shape
            blocks.setdefault(block["stack"], {}).setdefault(block["number"], {})[name[block.end() :]] = alike
    expected = {name: found.get(name, ()) for name in AROUND} if kind == DIFFUSION_MODEL else {}
    here: dict[str, tuple[int, ...]] = {name: found[name] for name in expected if name in found}
    for stack, numbered in blocks.items():
        items = Counter(item for tensors in numbered.values() for item in tensors.items())
        usual = dict(item for item, count in items.items() if 2 * count > len(numbered))
        one = dict(list(usual.items())[:1])  # stands for a block that is gone: a header's number must not make more
        for number in map(str, range(1 + max(map(int, numbered)))):
            wanted, there = usual if number in numbered else one, numbered.get(number, {})
            expected |= {f"{stack}.{number}.{name}": shape for name, shape in wanted.items()}
            here |= {f"{stack}.{number}.{name}": shape for name, shape in there.items()}
    check_tensors(where, kind, {name: here[name] for name in expected if name in here}, expected)
    check_types(where, kind, types, {name: found[name] for name in expected}, quantised=quantised)


def check_types(where: str, kind: str, found: Mapping[str, str], expected: Shapes, *, quantised: str = "") -> None:
    """Checks that what the model computes with is stored as numbers that it can read; `found` are types by name.

    `quantised`: as in Checkpoint; matrices may be whole numbers where the layout has such.

    Raises:
        WrongModelError: tensors are of another type; names up to five.
    """
    known, whole = FLOATING | BLOCK_TYPES, WHOLE.get(quantised, ())
    wrong = [
        f"{name} {found[name]}"
        for name, shape in expected.items()
        if name in found and found[name] not in known and not (len(shape) == 2 and found[name] in whole)
    ]
    _refuse(where, kind, "of another type", wrong)


def _refuse(where: str, kind: str, what: str, names: Sequence[str]) -> None:
    if names:
        raise WrongModelError(
            "The tensors of this file are not those of the model that it looks like",
            where=where,
            found=f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}",
            remedy=_remedy(kind),
        )


def _remedy(kind: str) -> str:
    return f"Take an unchanged file of this model, or open it with ComfyUI's {NATIVE_LOADERS[kind]} node"


def _is_scale(name: str, expected: Collection[str]) -> bool:
    layer, _, leaf = name.rpartition(".")
    return name == "scaled_fp8" or (leaf in SCALES and f"{layer}.weight" in expected)


def _same(found: Sequence[int], expected: Sequence[int], packed: bool) -> bool:
    if packed and len(expected) == 2 and tuple(found) == (expected[0], expected[1] // 2):
        return True
    return tuple(found) == tuple(expected)
