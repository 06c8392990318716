"""Text to UMT5 token ids, with the sentencepiece model that comes in the checkpoint or lies beside it.

Source: Wan-Video/Wan2.2 wan/modules/tokenizers.py and wan/modules/t5.py at 42bf4cf (google/umt5-xxl, 512 tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sentencepiece
import torch
from torch import Tensor

from ..errors import WeightsFileError
from .clean import clean

if TYPE_CHECKING:
    from typing_extensions import Self

END = 1  # </s>, after every text
PAD = 0
TEXT_TOKENS = 512  # longest text, its end token included


class Tokenizer:
    """Official tokens of cleaned text."""

    def __init__(self, model: bytes, *, where: str = "") -> None:
        """`model` is a serialised sentencepiece model; `where` names its file in errors.

        Raises:
            WeightsFileError: the bytes are no sentencepiece model.
        """
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise WeightsFileError(
                "The tokenizer cannot be read",
                where=where,
                found=f"{len(model)} bytes that are no sentencepiece model",
                remedy="Download the text encoder again; it carries its tokenizer as the tensor spiece_model",
            ) from error

    @classmethod
    def from_tensor(cls, model: Tensor, *, where: str = "") -> Self:
        """Reads the uint8 tensor `spiece_model` of a checkpoint."""
        return cls(model.to(torch.uint8).cpu().numpy().tobytes(), where=where)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Reads a `spiece.model`."""
        return cls(path.read_bytes(), where=str(path.absolute()))

    def pieces(self, text: str) -> list[int]:
        """Token ids of text as it stands: not cleaned, not cut, without the end token."""
        return self._pieces.encode(text)

    def encode(self, text: str, *, tokens: int = TEXT_TOKENS) -> list[int]:
        """Token ids of the cleaned text, cut so that with the end token there are at most `tokens`."""
        return [*self.pieces(clean(text))[: tokens - 1], END]

    def batch(self, texts: Sequence[str], *, tokens: int = TEXT_TOKENS) -> tuple[Tensor, Tensor]:
        """Texts -> ids and mask, both int64 [B, tokens]; the mask is 1 on tokens and 0 on padding."""
        rows = [self.encode(text, tokens=tokens) for text in texts]
        ids = torch.tensor([row + [PAD] * (tokens - len(row)) for row in rows], dtype=torch.long)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(tokens) < lengths[:, None]).long()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; end and padding leave nothing."""
        return self._pieces.decode(list(ids))

    def vocabulary(self) -> dict[str, int]:
        """{piece: id}; the encoder's table can have more rows."""
        return {self._pieces.id_to_piece(index): index for index in range(self._pieces.get_piece_size())}

    def to_tensor(self) -> Tensor:
        """The model as checkpoints carry it, in the uint8 tensor `spiece_model`."""
        return torch.frombuffer(bytearray(self._pieces.serialized_model_proto()), dtype=torch.uint8)
