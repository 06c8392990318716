"""What files are, what they need and what does not fit, in words: by their headers alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import WanError, WeightsFileError, WrongModelError
from ..paths import DECODED, Card, attention_in_8_bits, float8_linear, layers_in_8_bits
from .families import DIFFUSION_MODEL, LORA, TEXT_ENCODER, TINY_VAE, VAE
from .inspect import Checkpoint, inspect
from .lora import DOWN, PREFIX, official_name, why_unknown
from .lora_fit import check_control, control_input, mismatches, strangers
from .names import HIGH, LOW, expert_of, is_distilled
from .pairing import (
    FOLDERS,
    TEXT_ENCODER_FILE,
    VAE_FILES,
    check_pair,
    check_text_encoder,
    check_vae,
    require_known,
    tiny_vae_name,
    title_of,
)

GB = 1e9
NO_CARD = Card(None)
BLACKWELL = (10, 0)  # the first capability that multiplies blocks with scales of their own
LAYOUTS = {
    "": "",
    "scaled_fp8": ", one scale per layer (scaled_fp8)",
    "comfy_quant": ", ComfyUI's quantised layout",
    "lightx2v_nvfp4": ", LightX2V's layout",
    "one scale": ", one scale per layer without a mark",
    "unmarked": ", scales of channels or blocks without a mark",
}


@dataclass(frozen=True)
class Finding:
    """One file: facts as (label, value), and what is wrong with it alone."""

    path: Path
    facts: tuple[tuple[str, str], ...]
    problem: str = ""
    checkpoint: Checkpoint | None = None

    def report(self) -> str:
        lines = [str(self.path), *(f"  {label}: {value}" for label, value in self.facts)]
        return "\n".join([*lines, f"  problem: {self.problem}"] if self.problem else lines)


@dataclass(frozen=True)
class Diagnosis:
    """All files, and what does not fit between them."""

    findings: tuple[Finding, ...]
    conflicts: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()  # of LoRAs with models

    @property
    def usable(self) -> list[Checkpoint]:
        """The files that nothing is wrong with, each alone."""
        return [found.checkpoint for found in self.findings if found.checkpoint is not None and not found.problem]

    @property
    def healthy(self) -> bool:
        return not self.conflicts and not any(finding.problem for finding in self.findings)

    def report(self) -> str:
        parts = [*(finding.report() for finding in self.findings), *self.matches]
        if self.conflicts:
            parts.append("\n".join(("These do not fit together:", *(f"  {line}" for line in self.conflicts))))
        elif len(self.findings) > 1 and self.healthy:
            parts.append("These fit together.")
        return "\n".join(parts)


def diagnose(
    paths: Sequence[str | Path], card: Card = NO_CARD, check: Callable[[Checkpoint], None] = require_known
) -> Diagnosis:
    """Reads the headers; `card` is the GPU that computes. Broken files become findings, not errors.

    `check` raises where something is wrong with a file alone; a host that builds networks can look further.
    """
    alone = Diagnosis(tuple(_finding(Path(path), card, check) for path in paths))
    return replace(alone, conflicts=tuple(_conflicts(alone.usable)), matches=tuple(_matches(alone.usable)))


def _finding(path: Path, card: Card, check: Callable[[Checkpoint], None]) -> Finding:
    try:
        checkpoint = inspect(path)
    except WeightsFileError as error:
        return Finding(path, (), str(error))
    problem = ""
    try:
        check(checkpoint)
    except WanError as error:
        problem = str(error)
    return Finding(path, tuple(_facts(checkpoint, card)), problem, checkpoint)


def _facts(checkpoint: Checkpoint, card: Card) -> Iterator[tuple[str, str]]:
    yield "kind", title_of(checkpoint)
    parameters = sum(entry.count for entry in checkpoint.header.tensors.values())
    size = sum(entry.end - entry.start for entry in checkpoint.header.tensors.values())
    yield "size", f"{parameters / 1e9:.2f} billion numbers in {size / GB:.2f} GB"
    yield "precision", f"{checkpoint.precision}{LAYOUTS[checkpoint.quantised]}"
    config = checkpoint.config
    if config is not None:
        yield "network", f"width {config.dim}, {config.num_layers} layers, {config.in_dim} channels in"
        if checkpoint.task is not None and checkpoint.task.boundary is not None:
            yield "expert", checkpoint.expert or "unknown: neither file nor folder says high or low"
        yield "needs", f"VAE {VAE_FILES.get(config.out_dim, 'of its publisher')}, text encoder {TEXT_ENCODER_FILE}"
        yield "computes", compute_path(checkpoint, card)
        if card.capability is not None:
            path = attention_in_8_bits(card)
            yield "attention", f"with the node Wan 8-bit Attention {path.name}: {path.why}, on {card.describe()}"
            path = layers_in_8_bits(card)
            yield "layers", f"with the node Wan 8-bit Layers {path.name}: {path.why}, on {card.describe()}"
        if is_distilled(checkpoint.name):
            yield "steps", "made for a few steps without guidance, by its name"
    if checkpoint.kind == LORA:
        yield from _lora_facts(checkpoint)
    if checkpoint.kind == TINY_VAE:
        name = tiny_vae_name(checkpoint)
        yield "place", f"{FOLDERS[TINY_VAE]}, where live previews of the method taesd look for a name like {name}"


def compute_path(checkpoint: Checkpoint, card: Card) -> str:
    """Which arithmetic the matrices are multiplied in on this card, and why."""
    half = "float16" if checkpoint.precision == "fp16" else "bfloat16"
    if card.capability is not None and card.capability < (8, 0) and half == "bfloat16":
        half = "float16 or float32"
    decoded = f"{half}; weights are decoded layer by layer"
    precision = checkpoint.precision
    why = f"on {card.describe()}" if card.capability is not None else "without an NVIDIA GPU"
    if checkpoint.in_blocks:
        by = "one Triton kernel" if card.triton and card.capability is not None else "PyTorch"
        return f"{half}; blocks are decoded layer by layer, by {by}, {why}"
    if checkpoint.quantised == "unmarked" and precision != "mxfp8":
        return f"{decoded}, as each channel has its own scale, {why}"
    if precision.startswith("fp8") and not checkpoint.quantised:
        return f"{decoded}, as the file has no scales to round the input by, {why}"
    if precision == "fp8_e5m2":
        return f"{decoded}, as no card multiplies e5m2 by e5m2, {why}"
    if precision.startswith("fp8"):
        path = float8_linear(card)
        return f"{decoded} ({path.why})" if path.name == DECODED else f"float8 ({path.why}), {why}"
    if precision in ("nvfp4", "mxfp8"):
        blackwell = card.capability is not None and card.capability >= BLACKWELL
        if blackwell:
            return f"{precision} by ComfyUI's layers, {why}"
        return f"{decoded}, as only sm_100 and later multiply it, {why}"
    if precision in ("int8", "int4"):
        return f"{precision} by ComfyUI's layers, which round the input as they run, {why}"
    if half not in ("float16", "bfloat16"):
        return f"{half}, as bfloat16 needs sm_80, {why}"
    return f"{half}, the type of the file, {why}" if precision != "fp32" else f"{half}, {why}"


def _lora_facts(checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    ranks = {shape[0] for name, shape in checkpoint.shapes.items() if official_name(name).endswith(DOWN) and shape}
    if ranks:
        yield "rank", " and ".join(map(str, sorted(ranks)[:4]))
    widened = control_input(_official_shapes(checkpoint))
    if widened is not None:
        yield "input", f"{widened[1]} channels: a control LoRA, whose video comes in by InstructPixToPixConditioning"
    if is_distilled(checkpoint.name):
        yield "steps", "made for a few steps without guidance, by its name"


def _conflicts(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    models = [checkpoint for checkpoint in checkpoints if checkpoint.kind == DIFFUSION_MODEL]
    checks = {VAE: check_vae, TEXT_ENCODER: check_text_encoder, LORA: check_lora}
    for model in models:
        for other in checkpoints:
            check = checks.get(other.kind)
            if check is not None:
                yield from _tried(check, model, other)
    if len(models) == 2:
        high, low = models if models[0].expert != "low" else models[::-1]
        yield from _tried(check_pair, high, low)


def _tried(check: Callable[[Checkpoint, Checkpoint], None], first: Checkpoint, second: Checkpoint) -> Iterator[str]:
    try:
        check(first, second)
    except WrongModelError as error:
        yield str(error)


def check_lora(model: Checkpoint, lora: Checkpoint) -> None:
    """Raises:
    WrongModelError: no layer of the LoRA fits a layer of the model, or the input of a control LoRA does not.
    """
    unknown, misfit, fitting = _matched(model, lora)
    check_control(repr(str(lora.path)), _official_shapes(lora), misfit, model.unpacked_shapes["patch_embedding.weight"])
    if fitting:
        return
    serious = [layer for layer in (*sorted(misfit), *unknown) if not why_unknown(layer)]
    assert model.config is not None
    raise WrongModelError(
        "This LoRA does not fit the model",
        where=repr(str(lora.path)),
        found=f"no layer for {model.name}" + (f", but {serious[0].removeprefix(PREFIX)}" if serious else ""),
        expected=f"layers of width {model.config.dim}",
        remedy=f"Take a LoRA made for {model.family.title}",
    )


def _matches(checkpoints: Sequence[Checkpoint]) -> Iterator[str]:
    """How much of each LoRA reaches each model, where something does."""
    for lora in checkpoints:
        for model in checkpoints:
            if (lora.kind, model.kind) != (LORA, DIFFUSION_MODEL):
                continue
            if {expert_of(lora.name), model.expert} == {HIGH, LOW}:
                continue
            unknown, misfit, fitting = _matched(model, lora)
            if fitting:
                total = len(unknown) + len(misfit) + len(fitting)
                rest = mismatches(unknown, sorted(misfit))
                yield f"{lora.name} on {model.name}: {len(fitting)} of {total} layers{rest}"


def _matched(model: Checkpoint, lora: Checkpoint) -> tuple[list[str], set[str], set[str]]:
    """Layers that the model does not have, that do not fit it, and that do."""
    weights = model.unpacked_shapes

    def weight_of(layer: str) -> Sequence[int] | None:
        name = layer.removeprefix(PREFIX)
        return weights.get(f"{name}.weight", weights.get(name))

    return strangers(_official_shapes(lora), weight_of)


def _official_shapes(lora: Checkpoint) -> dict[str, Sequence[int]]:
    return {official_name(name): shape for name, shape in lora.shapes.items()}
