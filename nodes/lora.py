"""LoRAs onto a pair of experts."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan_core.errors import InputError, WrongModelError
from ..wan_core.weights.downloads import with_address
from ..wan_core.weights.names import HIGH, LOW, expert_of, is_distilled, partner_names
from .bridge.files import choices, path_of, unlisted
from .bridge.loading import AUTO, LORAS, NONE, partner_of, stamp
from .bridge.lora import apply_lora
from .bridge.show import show_on_node

NEVER = "never"
MOST = 10.0  # of a strength and of a factor


def low_file(lora_high: str, lora_low: str) -> str | None:
    """The file for the low-noise expert; None: none.

    auto is the partner by name; a LoRA whose name tells no expert was made for both.

    Raises:
        WrongModelError: the two files are swapped, or auto finds no partner.
    """
    if lora_low not in (AUTO, NONE):
        if (expert_of(lora_high), expert_of(lora_low)) == (LOW, HIGH):
            raise WrongModelError(
                "The two LoRA files are swapped",
                where=f"{lora_high!r} as lora_high, {lora_low!r} as lora_low",
                remedy="Choose the high-noise file as lora_high and the low-noise file as lora_low",
            )
        return lora_low
    if lora_low == NONE:
        return None
    expert, partner = expert_of(lora_high), partner_of(LORAS, lora_high)
    if expert is None:
        return lora_high
    if expert == HIGH and partner is not None:
        return partner
    raise WrongModelError(
        "auto finds no LoRA for the low-noise expert",
        where=repr(lora_high),
        found="the low-noise file as lora_high"
        if expert == LOW
        else f"no {with_address(partner_names(lora_high)[0])} in models/{LORAS}",
        remedy="Choose the two files by hand, or set lora_low to none",
    )


def of_steps(widget: str, text: str, strength: float) -> tuple[float, ...]:
    """One strength for each step of the run out of the factors in the text; "" is the same for all.

    Raises:
        InputError: the text holds something other than numbers.
    """
    try:
        factors = [float(word) for word in text.replace(",", " ").split()]
        if not all(abs(factor) <= MOST for factor in factors):  # also false for nan
            raise ValueError(text)
    except ValueError:
        raise InputError(
            "These are no factors for the steps",
            where=widget,
            found=repr(text),
            expected=f"numbers from -{MOST:g} to {MOST:g}",
            remedy='Write one factor for each step, such as "0 0 1 1", or leave it empty',
        ) from None
    return tuple(strength * factor for factor in factors or [1.0])


def _steps(expert: str) -> Any:
    return io.String.Input(
        f"steps_{expert}",
        default="",
        optional=True,
        advanced=True,
        tooltip=f"Factors on strength_{expert} for the steps of the run, counted from its first step; the last one "
        'holds for the rest. "0 0 1": off for two steps, then on. Empty: the same for all steps.',
    )


class WanCoreLoraPair(io.ComfyNode):
    """Puts one LoRA on each of the two experts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        loras = choices(LORAS)
        strength: dict[str, Any] = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05}
        return io.Schema(
            node_id="WanCoreLoraPair",
            display_name="Wan LoRA Pair",
            category="WanCore/loaders",
            description="Puts a LoRA on the high-noise and on the low-noise expert and shows how much of it matched. "
            "With a 4-step LoRA on both, Wan KSampler's preset auto samples in 4 steps.",
            search_aliases=["lora loader", "lightx2v", "lightning", "fastwan", "4 steps"],
            inputs=[
                io.Model.Input("high", tooltip="The high-noise expert, or a model of one expert."),
                io.Model.Input("low", optional=True, tooltip="The low-noise expert; open for a model of one expert."),
                io.Combo.Input(
                    "lora_high", options=loras, tooltip="The LoRA for the high-noise expert, from models/loras."
                ),
                io.Combo.Input(
                    "lora_low",
                    options=[AUTO, NONE, *loras],
                    default=AUTO,
                    tooltip="The LoRA for the low-noise expert. auto: the file whose name says low where the other "
                    "says high; a LoRA whose name says neither goes on both.",
                ),
                io.Float.Input(
                    "strength_high",
                    tooltip="Strength on the high-noise expert, usually 0.5 to 1; 0 is off.",
                    **strength,
                ),
                io.Float.Input(
                    "strength_low",
                    tooltip="Strength on the low-noise expert, usually 0.5 to 1; 0 is off.",
                    **strength,
                ),
                *(_steps(expert) for expert in (HIGH, LOW)),
                io.Combo.Input(
                    "merge",
                    options=[AUTO, NEVER],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="auto: into bf16, fp16 and fp32 weights, beside fp8, int8 and GGUF weights. never: beside "
                    "all weights, so that a change of strength loads nothing again; steps take a few percent longer.",
                ),
            ],
            outputs=[
                io.Model.Output("high", tooltip="The high-noise expert with its LoRA."),
                io.Model.Output("low", tooltip="The low-noise expert with its LoRA; empty if none came in."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, lora_high: str, lora_low: str) -> bool | str:
        return unlisted({"lora_high": (LORAS, lora_high), "lora_low": (LORAS, lora_low)})

    @classmethod
    def fingerprint_inputs(cls, lora_high: str, lora_low: str, **widgets: Any) -> Any:
        second = partner_of(LORAS, lora_high) if lora_low == AUTO and lora_high else lora_low
        return stamp(LORAS, lora_high), stamp(LORAS, second)

    @classmethod
    def execute(
        cls,
        high: Any,
        lora_high: str,
        lora_low: str,
        strength_high: float,
        strength_low: float,
        low: Any = None,
        steps_high: str = "",
        steps_low: str = "",
        merge: str = AUTO,
    ) -> io.NodeOutput:
        second = low_file(lora_high, lora_low) if low is not None else None
        jobs = [
            (HIGH, high, lora_high, of_steps("steps_high", steps_high, strength_high)),
            (LOW, low, second, of_steps("steps_low", steps_low, strength_low)),
        ]
        models, lines = [], []
        for expert, model, name, strength in jobs:
            match = None
            if model is not None and name is not None:
                model, match = apply_lora(model, path_of(LORAS, name), name, strength, merge=merge == AUTO)
            models.append(model)
            lines.append(f"{expert}: {match.report() if match else 'no LoRA'}")
        if is_distilled(lora_high) and strength_high:
            lines.append("made for a few steps: Wan KSampler's preset auto takes it up")
        show_on_node(cls.hidden.unique_id, "\n".join(lines))
        return io.NodeOutput(*models)


NODES = [WanCoreLoraPair]
