"""The random files of a benchmark in one folder, under names that say all they depend on; written when first needed."""

from __future__ import annotations

from pathlib import Path

import torch

from . import weights, workloads

LORAS = 2


def loras_beside(transformer: Path) -> list[Path]:
    """The LoRAs of a transformer's file: of the same shapes, layers and sizes."""
    return sorted(transformer.parent.glob(f"{transformer.name.split('.')[0]}.lora*.safetensors"))


class Kept:
    """What earlier runs wrote into the folder is taken as it is."""

    def __init__(self, folder: Path, device: torch.device, *, smoke: bool) -> None:
        self.folder, self.device, self.smoke = folder, device, smoke

    def path(self, shapes: str, layers: int | None, what: str, suffix: str = "safetensors") -> Path:
        """Of one file: SHAPES_LAYERS[_smoke].WHAT.SUFFIX."""
        size = f"{layers or 'all'}{'_smoke' if self.smoke else ''}"
        return self.folder / f"{shapes}_{size}.{what.replace(' ', '_')}.{suffix}"

    def transformer(self, shapes: str, kind: str, layers: int | None, *, outliers: bool = False) -> Path:
        """One of a kind of run.py, with outliers in some channels or without."""
        in_gguf = kind in weights.GGUF
        suffix = "gguf" if in_gguf else "safetensors"
        path = self.path(shapes, layers, f"{kind}{'_outliers' if outliers else ''}", suffix)
        if not path.is_file():
            named = self._shapes(shapes, layers)
            if in_gguf:
                return weights.write_gguf(named, kind, self.device, path)
            tensors = weights.transformer(named, self.device, outliers=outliers)
            weights.write(tensors if kind == "bf16" else weights.in_float8(tensors), path)
        return path

    def write_loras(self, shapes: str, layers: int | None) -> None:
        """Those that `loras_beside` finds."""
        for number in range(LORAS):
            path = self.path(shapes, layers, f"lora{number}")
            if not path.is_file():
                weights.write(weights.low_rank(self._shapes(shapes, layers), self.device, number), path)

    def vae(self, shapes: str) -> Path:
        """A VAE in bfloat16."""
        path = self.path(shapes, None, "bf16")
        if not path.is_file():
            found = weights.shapes_of(shapes, sizes=workloads.SMOKE_VAE_SIZES if self.smoke else None)
            weights.write(weights.autoencoder(found, self.device), path)
        return path

    def _shapes(self, shapes: str, layers: int | None) -> dict[str, tuple[int, ...]]:
        return weights.shapes_of(shapes, layers, workloads.SMOKE_SIZES if self.smoke else None)
