"""Prompts to the tokens of UMT5, through ComfyUI's tokenizer classes.

The text is cleaned before anything else, and cut after 512 tokens: the models were trained on no more, and natively a
longer prompt makes them attend to positions that they never saw. What was cut is named in a warning. A prompt without
weights so becomes exactly the official tokens; weighted parts are tokenised part by part, as ComfyUI does everywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from comfy import sd1_clip
from torch import Tensor

from ...wan_core.text.clean import clean
from ...wan_core.text.tokenizer import END, PAD, TEXT_TOKENS, Tokenizer

NAME = "umt5xxl"  # what native code calls this encoder in token dictionaries, LoRA keys and embedding files

LITERAL = {
    ord("\uff08"): "\\(",
    ord("\uff09"): "\\)",
}  # full-width brackets, which cleaning makes plain, are no weights

Entries = list[tuple[Any, ...]]  # (token id or embedding [D], weight), with a word number where asked for


class Pieces(Tokenizer):
    """The tokenizer as the native SDTokenizer builds and calls it."""

    @classmethod
    def from_pretrained(cls, model: Tensor, **_unused: Any) -> Pieces:
        return cls.from_tensor(model)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [*self.pieces(text), END]}

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary()

    def decode(self, ids: Sequence[int], **_unused: Any) -> str:
        return super().decode(ids)


class PromptTokenizer(sd1_clip.SDTokenizer):
    """Prompts to weighted tokens: native, after the official cleaning and up to the official length."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] | None = None) -> None:
        data = dict(tokenizer_data or {})
        super().__init__(
            data["spiece_model"],
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=data["embedding_size"],
            embedding_key=NAME,
            tokenizer_class=Pieces,
            has_start_token=False,
            pad_to_max_length=False,
            max_length=99999999,
            min_length=TEXT_TOKENS,
            pad_token=PAD,
            tokenizer_data=data,
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **native: Any) -> list[Entries]:
        """Prompt -> one list of (token or embedding, weight), padded to 512."""
        batches = super().tokenize_with_weights(clean(text.translate(LITERAL)), return_word_ids, **native)
        return [self._cut(batch) for batch in batches]

    def _cut(self, batch: Entries) -> Entries:
        end = next((index for index, entry in enumerate(batch) if _is(entry[0], END)), len(batch))
        if end < TEXT_TOKENS:
            return batch
        lost = [entry[0] for entry in batch[TEXT_TOKENS - 1 : end]]
        words = self.tokenizer.decode([token for token in lost if isinstance(token, int)])
        logging.warning(
            "WanCore: the prompt has %d tokens, Wan reads %d. Left out: %r", end + 1, TEXT_TOKENS, words[:200]
        )
        return batch[: TEXT_TOKENS - 1] + batch[end:]

    def state_dict(self) -> dict[str, Tensor]:
        return {"spiece_model": self.tokenizer.to_tensor()}


class WanTokenizer(sd1_clip.SD1Tokenizer):
    """What a CLIP object tokenises with."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] | None = None) -> None:
        super().__init__(embedding_directory, tokenizer_data or {}, clip_name=NAME, tokenizer=PromptTokenizer)


def _is(token: Any, number: int) -> bool:
    return isinstance(token, int) and token == number
