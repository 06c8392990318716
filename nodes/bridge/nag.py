"""Normalised attention guidance on a MODEL: an option that our transformer reads, object patches on a native one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from comfy.ldm.wan.model import WanT2VCrossAttention
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...wan_core.errors import InputError
from ...wan_core.guidance import Against, NormalizedGuidance
from .facts import model_facts

OPTION = "wan_core_nag"  # in transformer_options: an Against with the text as the text encoder gave it
EMBEDDED = "wan_core_nag_embedded"  # the same with the text embedded, while a native transformer runs
POSITIVE = 0  # ComfyUI's mark of the positive prompt's rows in a batch


def with_nag(model: Any, negative: Any, guidance: NormalizedGuidance) -> Any:
    """A clone of MODEL that moves away from the one prompt of `negative`; the MODEL itself where that does nothing.

    Raises:
        WrongModelError: not Wan.
        InputError: several prompts, or a batch of them; a native model whose cross-attention also reads a picture.
    """
    facts = model_facts(model)
    if guidance.scale == 1 or guidance.alpha == 0:
        return model
    prompts = sum(len(text) for text, _ in negative)
    if prompts != 1:
        raise InputError(
            "NAG takes one negative prompt",
            where="negative",
            found=f"{prompts} together",
            remedy="Connect a single text encode node",
        )
    clone = model.clone()
    clone.model_options["transformer_options"][OPTION] = Against(negative[0][0], guidance)
    if facts.is_native:
        _patch_native(clone)
    return clone


def against_of(options: dict[str, Any], batch: int) -> Against | None:
    """What one forward call of `batch` rows moves away from: in the positive prompt's rows only."""
    against: Against | None = options.get(OPTION)
    prompts = options.get("cond_or_uncond")
    if against is None or not prompts:
        return against
    share = batch // len(prompts)
    rows = tuple(row for row in range(batch) if prompts[row // share] == POSITIVE)
    return replace(against, rows=rows)


def _patch_native(clone: Any) -> None:
    for index, block in enumerate(clone.model.diffusion_model.blocks):
        if type(block.cross_attn) is not WanT2VCrossAttention:
            raise InputError(
                "ComfyUI's model of this task cannot take NAG",
                where="model",
                found=type(block.cross_attn).__name__,
                remedy="Load it with Wan Load Diffusion Model",
            )
        name = f"diffusion_model.blocks.{index}.cross_attn.forward"
        clone.add_object_patch(name, partial(_attend_to_both, block.cross_attn))
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, OPTION, _embed)


def _embed(
    executor: Any,
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    clip_fea: Tensor | None = None,
    time_dim_concat: Tensor | None = None,
    transformer_options: dict[str, Any] | None = None,
    **conds: Any,
) -> Tensor:
    """Around the native transformer: embeds the negative text once per call."""
    options = transformer_options or {}
    against = against_of(options, len(x))
    if against is not None:
        text = executor.class_obj.text_embedding(against.text.to(context))
        options = {**options, EMBEDDED: replace(against, text=text)}
    return executor(x, timestep, context, clip_fea, time_dim_concat, options, **conds)


def _attend_to_both(
    layer: Any, x: Tensor, context: Tensor, transformer_options: dict[str, Any] | None = None, **_: Any
) -> Tensor:
    """The native cross-attention with the guidance before its last projection."""
    options = transformer_options or {}
    attend: Callable[..., Tensor] = partial(optimized_attention, heads=layer.num_heads, transformer_options=options)
    q = layer.norm_q(layer.q(x))
    out = attend(q, layer.norm_k(layer.k(context)), layer.v(context))
    against: Against | None = options.get(EMBEDDED)
    if against is not None:
        out = against.steer(out, q, layer.norm_k(layer.k(against.text)), layer.v(against.text), attend)
    return layer.o(out)
