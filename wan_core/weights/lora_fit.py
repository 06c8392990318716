"""Whether a LoRA fits a model, layer by layer: by names and shapes alone, so that it is known before a tensor is read.

ComfyUI says of a layer of another size that it failed in its log alone, and goes on without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

from ..errors import WrongModelError
from .lora import PREFIX, module_of, why_unknown

Shape = Sequence[int]
SHOWN = 3  # names of a kind in a report
INPUT_LAYER = f"{PREFIX}patch_embedding"  # the layer that a control LoRA widens, by more channels beside the noise
WIDENS = "reshape_weight"  # its part that says so: the widened shape
FOLDED = 4  # numbers of an input channel in a row of that layer: patches of 1x2x2

Parts = Mapping[str, Shape]  # of one layer: {part as ComfyUI reads it: shape}


def strangers(
    shapes: Mapping[str, Shape], weight_of: Callable[[str], Shape | None]
) -> tuple[list[str], set[str], set[str]]:
    """Returns modules that the model does not have, layers that do not fit it, and layers that do.

    `shapes`: {name as ComfyUI reads it: shape} of a LoRA; `weight_of`: the shape of a layer's weight in the model, by
    its name there. A layer does not fit if a shape is another, or if its parts do not belong together. The input may
    be widened; what other layers are to be widened to is left out of account.
    """
    unknown: dict[str, None] = {}
    layers: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        layer = layer_of(name, lambda layer: weight_of(layer) is not None)
        if layer is None:
            unknown[module_of(name)] = None
        else:
            part = name[len(layer) + 1 :]
            layers.setdefault(layer, {}).update({part: shape} if part != WIDENS or layer == INPUT_LAYER else {})
    misfit = {layer for layer, parts in layers.items() if not fits(parts, weight_of(layer) or ())}
    return list(unknown), misfit, layers.keys() - misfit


def mismatches(unknown: Collection[str], misfit: Collection[str]) -> str:
    """What did not match, behind a count of what did: each kind with its reason and a few names, or nothing."""
    text = ""
    for what, layers in (("unknown", unknown), ("of another shape", misfit)):
        by_reason: dict[str, list[str]] = {}
        for layer in layers:
            by_reason.setdefault(why_unknown(layer), []).append(layer.removeprefix(PREFIX))
        for reason, named in by_reason.items():
            harmless = f", harmless ({reason})" if reason else ""
            more = ", ..." if len(named) > SHOWN else ""
            text += f"; {len(named)} {what}{harmless}: {', '.join(named[:SHOWN])}{more}"
    return text


def layer_of(name: str, knows: Callable[[str], object]) -> str | None:
    """The longest part of a tensor's name that the model knows; None: it knows none."""
    layer = name
    while "." in layer:
        layer = layer.rpartition(".")[0]
        if knows(layer):
            return layer
    return None


def fits(parts: Parts, weight: Shape) -> bool:
    """True if what a LoRA has for one layer makes a difference of this weight's shape, with nothing missing."""
    rules = [rule for mark, rule in RULES.items() if any(part.startswith(mark) for part in parts)]
    try:
        return bool(rules) and all(rule(parts, weight) for rule in rules)
    except (KeyError, IndexError, ValueError):  # a part that is missing, or has too few axes
        return False


def _low_rank(parts: Parts, weight: Shape) -> bool:
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    joins = up[1] == down[0] or "lora_mid.weight" in parts
    fills = _count(down) == _count(weight) or _widens(parts, weight)
    return joins and up[0] == weight[0] and fills


def _widens(parts: Parts, weight: Shape) -> bool:
    """True for the input of a control LoRA that has more channels than the weight."""
    channels, rest = divmod(_count(parts["lora_down.weight"]), math.prod(weight[2:]))
    return WIDENS in parts and channels > weight[1] and not rest


def control_input(shapes: Mapping[str, Shape]) -> tuple[int, int] | None:
    """Width and channels of the input that a control LoRA makes, by names as ComfyUI reads them; None: it is none."""
    down, up = (shapes.get(f"{INPUT_LAYER}.lora_{part}.weight") for part in ("down", "up"))
    if f"{INPUT_LAYER}.{WIDENS}" not in shapes or not down or not up:
        return None
    return up[0], _count(down) // FOLDED


def check_control(where: str, shapes: Mapping[str, Shape], misfit: Collection[str], weight: Shape) -> None:
    """Makes sure that the input of a control LoRA fits: without it the rest would follow no control video.

    `weight` is the shape of the model's input.

    Raises:
        WrongModelError: it is a control LoRA for another model.
    """
    widened = control_input(shapes)
    if widened is None or INPUT_LAYER not in misfit:
        return
    raise WrongModelError(
        "This control LoRA does not fit the model",
        where=where,
        found=f"an input of width {widened[0]} with {widened[1]} channels",
        expected=f"width {weight[0]}, and more channels than the model's {weight[1]}",
        remedy="Load the model that this LoRA was made for",
    )


def _loha(parts: Parts, weight: Shape) -> bool:
    return all(
        _product(parts[f"{half}_a"], parts[f"{half}_b"], parts.get(f"hada_t{number}")) == _flat(weight)
        for number, half in ((1, "hada_w1"), (2, "hada_w2"))
    )


def _lokr(parts: Parts, weight: Shape) -> bool:
    first, second = (
        _flat(parts[half])
        if half in parts
        else _product(parts[f"{half}_a"], parts[f"{half}_b"], parts.get("lokr_t2") if half == "lokr_w2" else None)
        for half in ("lokr_w1", "lokr_w2")
    )
    return (first[0] * second[0], first[1] * second[1]) == _flat(weight)


def _oft(parts: Parts, weight: Shape) -> bool:
    """Blocks [n, b, b] of a rotation; of BOFT [m, n, b, b], whose stages mix rows ever further apart."""
    *stages, blocks, size, width = parts["oft_blocks"]
    mixes = not stages or (size % 2 == 0 and weight[0] % (size << (stages[0] - 1)) == 0)
    return size == width and blocks * size == weight[0] and mixes


def _glora(parts: Parts, weight: Shape) -> bool:
    return all(f"{part}.weight" in parts for part in ("a1", "a2", "b1", "b2"))


def _whole(part: str) -> Callable[[Parts, Shape], bool]:
    return lambda parts, weight: part not in parts or tuple(parts[part]) == tuple(weight)


def _rows(part: str) -> Callable[[Parts, Shape], bool]:
    return lambda parts, weight: parts[part][0] == weight[0]


def _dora(parts: Parts, weight: Shape) -> bool:
    return math.prod(parts["dora_scale"]) in _flat(weight)


RULES: Mapping[str, Callable[[Parts, Shape], bool]] = {  # how the name of a part begins: what has to hold
    "lora_": _low_rank,
    "hada_": _loha,
    "lokr_": _lokr,
    "oft_": _oft,
    "rescale": _rows("rescale"),
    "a1.": _glora,
    "diff": _whole("diff"),
    "set_weight": _whole("set_weight"),
    "w_norm": _whole("w_norm"),
    "diff_b": _rows("diff_b"),
    "b_norm": _rows("b_norm"),
    "dora_scale": _dora,
}


def _product(first: Shape, second: Shape, core: Shape | None) -> tuple[int, int]:
    """Rows and columns of first @ second; with a core between them, as of convolutions, both are turned round."""
    if core is not None:
        return first[1], second[1] * math.prod(core[2:])
    if first[1] != second[0]:
        raise ValueError("ranks")
    return first[0], _count(second)


def _flat(shape: Shape) -> tuple[int, int]:
    return shape[0], _count(shape)


def _count(shape: Shape) -> int:
    """Numbers in one row."""
    return math.prod(shape[1:])
