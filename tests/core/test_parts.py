"""Parts of a model in several files, and the folders above them: what to give instead is said."""

from __future__ import annotations

from pathlib import Path

import pytest
from wancore.wan_core.errors import WeightsFileError
from wancore.wan_core.weights import inspect

from .test_detection import by_blocks, sharded

SHAPES = "t2v_1.3B"


def refused(path: Path) -> WeightsFileError:
    with pytest.raises(WeightsFileError) as caught:
        inspect(path)
    assert str(path) in caught.value.where
    return caught.value


@pytest.mark.parametrize("write", [sharded, by_blocks], ids=lambda write: write.__name__)
def test_a_part_names_its_folder(write, tmp_path):
    folder = write(tmp_path, SHAPES)
    parts = sorted(folder.glob("*.safetensors"))
    for part in parts:
        error = refused(part)
        assert error.found == f"one of {len(parts)} files" and error.remedy == f"Give their folder, {str(folder)!r}"
    assert inspect(folder).family.id == "t2v-1.3B"


def test_a_part_without_its_index_says_what_is_missing(tmp_path):
    folder = sharded(tmp_path, SHAPES)
    (folder / "diffusion_pytorch_model.safetensors.index.json").unlink()
    for part in sorted(folder.glob("*.safetensors")):
        assert "the other parts and their index" in refused(part).remedy
    for part in sorted(folder.glob("*.safetensors"))[1:]:
        part.unlink()
    with pytest.raises(WeightsFileError, match="one of 3 files"):
        inspect(folder)


def test_a_model_of_one_part_is_no_part(tmp_path):
    folder = sharded(tmp_path, SHAPES, count=1)
    assert inspect(next(folder.glob("*.safetensors"))).family.id == inspect(folder).family.id == "t2v-1.3B"


def test_the_folder_above_names_those_with_models(tmp_path):
    for name in ("low_noise_model", "high_noise_model"):
        sharded(tmp_path / "Wan2.2-T2V-A14B", SHAPES, model=name)
    error = refused(tmp_path / "Wan2.2-T2V-A14B")
    assert error.remedy == "Give one of the folders in it: high_noise_model, low_noise_model"


def test_an_index_sends_to_its_folder(tmp_path):
    assert "the folder if this is the index" in refused(next(sharded(tmp_path, SHAPES).glob("*.json"))).remedy
