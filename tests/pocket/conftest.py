"""The miniatures that a drawing leads, opened as users open them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from comfy_host import import_comfy

import_comfy()

from make_pocket import build, write
from studio import Studio
from wancore.pocket import family


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Studio]:
    folder = tmp_path_factory.mktemp("led")

    def written(member: family.Member) -> Path:
        path = folder / member.name
        if not path.is_file():
            write(build(member, fp8=False), path, member.metadata)
        return path

    def open_studio(high: family.Member, low: family.Member | None = None) -> Studio:
        pair = written(high), written(low) if low else None
        return Studio.open(*pair, written(family.TEXT_ENCODER), written(family.VAE))

    return open_studio


@pytest.fixture(scope="module")
def vace_studio(opened: Callable[..., Studio]) -> Studio:
    return opened(family.VACE_HIGH, family.VACE_LOW)


@pytest.fixture(scope="module")
def animate_studio(opened: Callable[..., Studio]) -> Studio:
    return opened(family.ANIMATE)
