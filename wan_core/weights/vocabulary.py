"""Where the tokenizer of a text encoder is: in its file or beside it, told by the header alone."""

from __future__ import annotations

from pathlib import Path

from ..errors import WeightsFileError
from .downloads import with_address
from .inspect import Checkpoint

TENSOR = "spiece_model"  # that holds a sentencepiece file, as ComfyUI's files have it
GGUF_KEY = "tokenizer.ggml."  # of the metadata

# Where it lies beside weights without one, most specific first: relative to their folder.
FILES = ("{stem}.model", "spiece.model", "google/umt5-xxl/spiece.model", "umt5-xxl/spiece.model", "tokenizer.model",
         "../tokenizer/spiece.model")  # fmt: skip
CARRIER, GGUF_CARRIER = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "umt5-xxl-encoder-Q8_0.gguf"


def tokenizer_file(weights: Path) -> Path | None:
    """The sentencepiece file that belongs to text encoder weights without one; None when there is none."""
    names = (name.format(stem=weights.stem) for name in FILES)
    return next((path for path in (weights.parent / name for name in names) if path.is_file()), None)


def weights_file(checkpoint: Checkpoint) -> Path:
    """The file beside which a tokenizer may lie; of a folder its first."""
    return checkpoint.header.files[0] if checkpoint.header.files else checkpoint.path


def require_tokenizer(checkpoint: Checkpoint) -> None:
    """Raises:
    WeightsFileError: a text encoder has no tokenizer, neither in its file nor beside it.
    """
    if checkpoint.is_gguf:
        if GGUF_KEY + "tokens" in checkpoint.metadata:
            return
        raise WeightsFileError(
            "This text encoder has no tokenizer",
            where=repr(str(checkpoint.path)),
            found=f"no {GGUF_KEY}tokens in its metadata",
            remedy=f"Take {with_address(GGUF_CARRIER)}, which carries it",
        )
    inside = any(name.rpartition(".")[2] == TENSOR for name in checkpoint.header.tensors)
    if inside or tokenizer_file(weights_file(checkpoint)) is not None:
        return
    raise WeightsFileError(
        "This text encoder has no tokenizer",
        where=repr(str(checkpoint.path)),
        found=f"no tensor {TENSOR} in the file",
        expected=f"it, or beside the file one of {', '.join(FILES).format(stem=checkpoint.path.stem)}",
        remedy=f"Take {with_address(CARRIER)}, which carries it",
    )
