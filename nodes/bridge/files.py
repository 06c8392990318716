"""The user's model folders, as ComfyUI lists them."""

from __future__ import annotations

import os

import folder_paths

from ...wan_core.errors import WeightsFileError


def choices(folder: str) -> list[str]:
    """File names of a models folder ("diffusion_models", "text_encoders", "vae", "loras"...), with sub-folders."""
    return list(folder_paths.get_filename_list(folder))


def path_of(folder: str, name: str) -> str:
    """Returns the absolute path of a listed file.

    Raises:
        WeightsFileError: there is no such file in that folder.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise WeightsFileError(
            "The file is not there",
            where=repr(name),
            found="no file of this name",
            expected=f"one in {' or '.join(folder_paths.get_folder_paths(folder))}",
            remedy="Put it there, then press R in ComfyUI to refresh the lists",
        )
    return os.path.abspath(path)
