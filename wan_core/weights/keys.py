"""The spellings in which files write the official parameter names.

A new spelling is one row in `SPELLINGS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

TRANSFORMER_MARK = "head.modulation"  # in every Wan transformer


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


# diffusers -> official, on whole parts of a name. Source: key names of the published *-Diffusers checkpoints against
# the official ones (diffusers scripts/convert_wan_to_diffusers.py names the same pairs).
DIFFUSERS = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
    ("proj_out", "head.head"),
    ("scale_shift_table", "head.modulation"),
)
DIFFUSERS_BLOCK = (
    ("attn1", "self_attn"),
    ("attn2", "cross_attn"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "o"),
    ("to_out", "o"),
    ("add_k_proj", "k_img"),
    ("add_v_proj", "v_img"),
    ("norm_added_k", "norm_k_img"),
    ("ffn.net.0.proj", "ffn.0"),
    ("ffn.net.2", "ffn.2"),
    ("norm2", "norm3"),  # the one with weights; the two names are swapped
    ("scale_shift_table", "modulation"),
    ("proj_in", "before_proj"),
    ("proj_out", "after_proj"),
)


def diffusers_module(module: str) -> str:
    """The official name of a module or tensor in the diffusers spelling; official names come back as they are."""
    rows = DIFFUSERS_BLOCK if module.startswith(("blocks.", "vace_blocks.")) else DIFFUSERS
    for theirs, ours in rows:
        module = f".{module}.".replace(f".{theirs}.", f".{ours}.")[1:-1]
    return module


def _diffusers(name: str) -> str | None:
    module, dot, leaf = name.rpartition(".")
    if leaf in ("scale_shift_table", "pos_embed"):
        return diffusers_module(name)
    return f"{diffusers_module(module)}{dot}{leaf}"


def _prefixed(prefix: str) -> Spelling:
    def official(name: str) -> str | None:
        return name[len(prefix) :] if name.startswith(prefix) else None

    return Spelling(prefix or "official", prefix + TRANSFORMER_MARK, official, prefix)


PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "model.", "transformer.", "module.")
SPELLINGS = (
    *map(_prefixed, PREFIXES),
    Spelling("diffusers", "condition_embedder.time_embedder.linear_1.weight", _diffusers),
)


def spelling_of(names: Collection[str]) -> Spelling | None:
    """Returns the spelling of the transformer among these names; None if there is none."""
    return next((spelling for spelling in SPELLINGS if spelling.mark in names), None)
