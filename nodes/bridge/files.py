"""The user's model folders, as ComfyUI lists them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import folder_paths

from ...wan_core.errors import WeightsFileError
from ...wan_core.weights.container import PART
from ...wan_core.weights.downloads import address_of

GGUF = ".gguf"
WORDS = ("auto", "none")  # of widgets that need no file
MODEL_FOLDERS = ("diffusion_models", "text_encoders", "vae", "loras", "clip_vision", "audio_encoders", "checkpoints")
WITH_GGUF = ("diffusion_models", "text_encoders")  # folders whose GGUF files the pack's loaders take

Stamp = tuple[tuple[int, int], ...]  # time of change in nanoseconds and bytes, of each file of a model


def choices(folder: str) -> list[str]:
    """File names of a models folder ("diffusion_models", "text_encoders", "vae", "loras"...), with sub-folders.

    A model in several files, with an index, is listed once, by its folder.
    """
    names = folder_paths.get_filename_list(_listed(folder))
    return list(dict.fromkeys(map(_whole, names)))


def _whole(name: str) -> str:
    """A part's folder in the place of the part; other names as they are."""
    parent = os.path.dirname(name)
    return parent if parent and PART.search(name) else name


def _listed(folder: str) -> str:
    """The name under which ComfyUI lists the folder for us.

    ComfyUI lists no GGUF, and its own loaders cannot read it: a second entry over the same paths lists it for the
    pack alone. The list of paths is shared, so that paths added later count here too.
    """
    if folder not in WITH_GGUF:
        return folder
    name = f"wancore_{folder}"
    paths, extensions = folder_paths.folder_names_and_paths[folder]
    known = folder_paths.folder_names_and_paths.get(name)
    if known is None or known[0] is not paths:
        folder_paths.folder_names_and_paths[name] = (paths, {*extensions, GGUF})
    return name


def _folder(folder: str, name: str) -> str | None:
    """The path of a listed folder, which ComfyUI's own look-up passes by; None if no such folder was listed."""
    if name not in choices(folder):
        return None
    roots = folder_paths.get_folder_paths(folder)
    return next((path for root in roots if os.path.isdir(path := os.path.join(root, name))), None)


def listed(folder: str, name: str) -> str | None:
    """The name as it is in the list, also where another system's slashes are in it; None: it is not in the list."""
    plain = name.replace("\\", "/")
    names = choices(folder)
    return name if name in names else next((other for other in names if other.replace("\\", "/") == plain), None)


def unlisted(widgets: Mapping[str, tuple[str, str | None]]) -> bool | str:
    """What validation says of {widget: (folder, value)}: True, or which files are not there. None is a linked input."""
    missing = [
        f"{widget}: there is no {name!r} in models/{folder}. {_remedy(folder, name)}"
        for widget, (folder, name) in widgets.items()
        if name is not None and name not in WORDS and listed(folder, name) is None
    ]
    return f"{'. '.join(missing)}. Then press R to refresh the lists" if missing else True


def _remedy(folder: str, name: str) -> str:
    """What to do about a file that is not in the folder: it may lie below it, or in that of another kind of model."""
    for other in (folder, *MODEL_FOLDERS):
        found = next((found for found in choices(other) if _base(found) == _base(name)), None)
        if found is not None:
            return f"Choose {found!r}" if other == folder else f"Move it there from models/{other}, where {found!r} is"
    address = address_of(name)
    return f"Download it there from {address}" if address else "Put it there"


def _base(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def path_of(folder: str, name: str) -> str:
    """Returns the absolute path of a listed file, with either slash between its folders.

    Raises:
        WeightsFileError: there is no such file in that folder.
    """
    name = listed(folder, name) or name
    path = folder_paths.get_full_path(_listed(folder), name) or _folder(folder, name)
    if path is None:
        raise WeightsFileError(
            "The file is not there",
            where=repr(name),
            found="no file of this name",
            expected=f"one in {' or '.join(folder_paths.get_folder_paths(folder))}",
            remedy=f"{_remedy(folder, name)}, then press R in ComfyUI to refresh the lists",
        )
    return os.path.abspath(path)


def stamp_of(path: str) -> Stamp:
    """What a file is like now, or all files of a folder: one written over in its place leaves the folder as it was.

    Empty where the system refuses to say; reading the file then tells why.
    """
    try:
        files = [path] if os.path.isfile(path) else sorted(entry.path for entry in os.scandir(path) if entry.is_file())
        return tuple((status.st_mtime_ns, status.st_size) for status in map(os.stat, files))
    except OSError:
        return ()
