"""A file that changes while its bytes are mapped is noticed before they are touched."""

from __future__ import annotations

import os

import pytest
from wancore.wan_core.errors import WeightsFileError
from wancore.wan_core.weights.mapped import MappedFile, check_all


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "wan.safetensors"
    path.write_bytes(bytes(1000))
    return path, MappedFile.of(path)


def test_a_file_that_is_cut_off_or_written_over_is_refused(file):
    path, mapped = file
    check_all([mapped])
    os.truncate(path, 400)
    with pytest.raises(WeightsFileError, match="cut off") as error:
        check_all([mapped])
    assert error.value.found == "400 bytes of 1000" and str(path) in error.value.where
    path.write_bytes(bytes(1000))
    os.utime(path, ns=(0, mapped.changed + 10**9))
    with pytest.raises(WeightsFileError, match="written over"):
        mapped.check()


def test_a_file_that_is_replaced_or_deleted_keeps_its_content(file):
    path, mapped = file
    (path.parent / "new").write_bytes(b"short")
    os.replace(path.parent / "new", path)
    mapped.check()
    path.unlink()
    mapped.check()
