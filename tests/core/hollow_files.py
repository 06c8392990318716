"""Full-size weights files that hold nothing: a header, and a hole of the right length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wancore.tools.benchmark.memory import files

NAMES = {"t2v_A14B_expert": "wan2.2_t2v_high_noise_14B", "i2v_A14B_expert": "wan2.2_i2v_high_noise_14B"}


class Nothing(files.Random):
    """Leaves a hole where numbers would be."""

    def write(self, file: Any, kind: str, count: int) -> None:
        file.seek(count, 1)
        file.truncate(file.tell())


def transformer(folder: Path, shapes: str, precision: str) -> Path:
    suffix = "gguf" if precision in files.GGUF else "safetensors"
    path = folder / f"{NAMES.get(shapes, shapes)}_{precision}.{suffix}"
    return files.transformer(path, shapes, precision, numbers=Nothing(0))


def text_encoder(folder: Path, shapes: str, precision: str) -> Path:
    return files.text_encoder(folder / f"{shapes}_{precision}.safetensors", b"", numbers=Nothing(0))


def vae(folder: Path, shapes: str, precision: str) -> Path:
    return files.vae(folder / f"{shapes}.safetensors", shapes, numbers=Nothing(0))
