"""The Python environment of the demo and the tests: `.venv` in the checkout, made once, resumed when interrupted.

A stamp file names the parts that are installed, each with a hash of what it was installed from. When every hash still
holds nothing is run, so that a second start takes no time and needs no network. A ComfyUI of another version has other
requirements: it gets a thin environment in the cache that sees the packages of `.venv` and adds what differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .comfyui import DEFAULT_VERSION, obtain, version_of
from .console import Console, SetupError
from .pip import remove_half_installed, run_pip
from .places import ENVIRONMENT, ROOT, cache_folder, lock, make_folder

MINIMUM_PYTHON = (3, 10)
DISK_FOR_TORCH = 6_000_000_000  # bytes; the CUDA build of torch with its libraries, unpacked
DISK_FOR_LAYER = 500_000_000  # bytes; front end, templates and kernels of another ComfyUI
TORCH_PACKAGES = ("torch", "torchvision", "torchaudio")
# On Linux the three versions that are built for each other; elsewhere what the platform's index offers.
TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0") if sys.platform == "linux" else TORCH_PACKAGES
STAMP = "wancore.json"
PROBE = "import json, sys, sysconfig; print(json.dumps([sys.version.split()[0], sysconfig.get_path('purelib')]))"


@dataclass(frozen=True)
class Part:
    """What one pip call installs: its name in the stamp, what the terminal says, packages and requirement files."""

    name: str
    title: str
    packages: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()  # requirement files; their content counts, not their place
    disk: int = 0  # bytes that must be free

    def key(self, python_version: str) -> str:
        """A hash of everything that decides what is installed."""
        digest = hashlib.sha256("\0".join((python_version, *self.packages)).encode())
        for file in self.files:
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def arguments(self) -> tuple[str, ...]:
        """What follows `pip install`."""
        return (*self.packages, *(argument for file in self.files for argument in ("-r", str(file))))


@dataclass(frozen=True)
class Prepared:
    """What set-up leaves: a Python that runs ComfyUI and the tests, and the ComfyUI folder."""

    python: Path
    comfyui: Path


class Environment:
    """One environment folder with its stamp."""

    def __init__(self, folder: Path, console: Console, below: Environment | None = None) -> None:
        self.folder, self.below, self._console = folder, below, console
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def ensure(self, parts: Sequence[Part]) -> None:
        """Installs the parts that are not there yet; one process at a time.

        Raises:
            SetupError: disk, network or a package is missing.
        """
        if not self._has(parts):
            with lock(cache_folder() / f"{_short_hash(self.folder)}.lock", self._console.say):
                self._install(parts)

    def _has(self, parts: Sequence[Part]) -> bool:
        """Whether every part is installed as it would be installed now. Needs no network."""
        stamp = self._stamp()
        probed = self._probe() if stamp and "busy" not in stamp else None
        return bool(probed) and all(stamp.get(part.name) == part.key(probed[0]) for part in parts)

    def _install(self, parts: Sequence[Part]) -> None:
        """Makes the environment if there is none and installs the missing parts, in their order."""
        version, site_packages = self._make()
        stamp = self._stamp()
        if "busy" in stamp:
            remove_half_installed(site_packages)
        for part in parts:
            key = part.key(version)
            if stamp.get(part.name) == key:
                continue
            need_disk(self.folder, part.disk)
            with self._console.step(part.title):
                stamp["busy"] = part.name
                self._write_stamp(stamp)
                log = self.folder / "wancore-setup.log"
                # Byte code of what is imported is written when it is (see bytecode_in_cache); of all it takes 30 s.
                arguments = ("install", "--no-compile", *self._constraints(), *part.arguments())
                run_pip(self.python, arguments, log, self._console)
                stamp[part.name] = key
                del stamp["busy"]
                self._write_stamp(stamp)

    def _make(self) -> tuple[str, Path]:
        """Python version and site-packages folder of the environment, made or mended if need be."""
        probed = self._probe()
        if not probed or not self._works("-m", "pip", "--version"):
            with self._console.step(f"Python {sys.version.split()[0]} environment in {self.folder}"):
                if (self.folder / STAMP).is_file() and not probed and os.path.lexists(self.python):
                    shutil.rmtree(self.folder)  # ours, but its Python is gone: nothing in it runs any more
                make_folder(self.folder)
                self._write_stamp(self._stamp())
                _make_venv(self.folder)
            probed = self._probe()
        if not probed:
            raise SetupError(
                f"The Python environment in {self.folder} does not start: delete that folder and run this again."
            )
        if self.below is not None:
            # Python reads this file in the encoding of the system: letters beyond ASCII are escaped.
            line = f"import sys; sys.path.append({str(self.below.site_packages())!a})\n"
            (probed[1] / "wancore-below.pth").write_text(line, encoding="ascii")
        return probed

    def site_packages(self) -> Path:
        """Where the packages of this environment are."""
        probed = self._probe()
        assert probed is not None, f"{self.folder} is used before it is made"
        return probed[1]

    def _constraints(self) -> tuple[str, ...]:
        """Arguments that keep pip from moving torch once it is installed."""
        home = self.below or self
        listing = "import importlib.metadata as m\n" + "".join(
            f"print('{n}==' + m.version('{n}'))\n" for n in TORCH_PACKAGES
        )
        found = subprocess.run([str(home.python), "-c", listing], capture_output=True, text=True, check=False)
        if found.returncode:
            return ()
        file = self.folder / "wancore-constraints.txt"
        file.write_text(found.stdout, encoding="utf-8")
        return ("--constraint", str(file))

    def _probe(self) -> tuple[str, Path] | None:
        try:
            found = subprocess.run([str(self.python), "-c", PROBE], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        version, site_packages = json.loads(found.stdout)  # in ASCII, whatever letters the folder has
        return version, Path(site_packages)

    def _works(self, *arguments: str) -> bool:
        return subprocess.run([str(self.python), *arguments], capture_output=True, check=False).returncode == 0

    def _stamp(self) -> dict[str, str]:
        try:
            return json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _write_stamp(self, stamp: dict[str, str]) -> None:
        partial = self.folder / f"{STAMP}.{os.getpid()}"
        partial.write_text(json.dumps(stamp, indent=1), encoding="utf-8")
        partial.replace(self.folder / STAMP)


def prepare(
    console: Console, *, version: str = DEFAULT_VERSION, comfyui: Path | None = None, tests: bool = False
) -> Prepared:
    """Environment and ComfyUI, made or found. `comfyui` is an installation of the user's: it is used and not changed.

    An installation that has its own Python keeps it (see `own_python`); the tests use ours, where their tools are.

    Raises:
        SetupError: Python, disk or network is not enough, or there is no ComfyUI in `comfyui`.
    """
    check_python()
    if comfyui is not None:
        version_of(comfyui)  # refuses a folder that holds no ComfyUI before anything is installed
        python = None if tests else own_python(comfyui)
        if python is not None:
            return Prepared(python, comfyui)
    main = Environment(ENVIRONMENT, console)
    torch = Part("torch", f"{' '.join(TORCH)} (2.7 GB to download, the longest step)", TORCH, disk=DISK_FOR_TORCH)
    main.ensure([torch])
    folder = comfyui or obtain(version, main.python, console)
    return Prepared(_complete(main, folder, tests, console).python, folder)


def with_front_end(prepared: Prepared, version: str, console: Console) -> Prepared:
    """The ComfyUI of `prepared` with another front end than the one that it asks for: users update it by itself.

    Raises:
        SetupError: there is no front end of this version, or no network.
    """
    name = f"front-end-{version}-{_short_hash(ENVIRONMENT)}"
    layer = Environment(cache_folder() / name, console, below=Environment(ENVIRONMENT, console))
    package = f"comfyui-frontend-package=={version}"
    layer.ensure([Part("front end", f"Front end {version}", (package,), disk=DISK_FOR_LAYER)])
    return Prepared(layer.python, prepared.comfyui)


def _complete(main: Environment, comfyui: Path, tests: bool, console: Console) -> Environment:
    """The environment with the requirements of this ComfyUI, of the pack, and of the tests."""
    requirements = _files_part("comfyui", f"Packages of ComfyUI {version_of(comfyui)} and of this pack", [
        comfyui / "requirements.txt", ROOT / "requirements.txt",
    ])  # fmt: skip
    tools = [_files_part("tests", "Tools of the tests", [ROOT / "requirements-dev.txt"])] if tests else []
    if version_of(comfyui) == DEFAULT_VERSION:
        wanted = [(main, [requirements, *tools])]
    else:
        name = f"environment-{version_of(comfyui)}-{_short_hash(ENVIRONMENT)}"
        wanted = [(main, tools), (Environment(cache_folder() / name, console, below=main), [requirements])]
    for environment, parts in wanted:
        environment.ensure(parts)
    return wanted[-1][0]


def _short_hash(folder: Path) -> str:
    return hashlib.sha256(str(folder).encode()).hexdigest()[:8]


def _files_part(name: str, title: str, files: Sequence[Path]) -> Part:
    return Part(name, title, files=tuple(files), disk=DISK_FOR_LAYER)


def own_python(comfyui: Path) -> Path | None:
    """The Python that belongs to an installation: COMFYUI_PYTHON, its venv, the portable download's; else None.

    It already has torch for the user's card and every requirement; nothing is installed into it.

    Raises:
        SetupError: COMFYUI_PYTHON names no file.
    """
    if os.environ.get("COMFYUI_PYTHON"):
        python = Path(os.environ["COMFYUI_PYTHON"]).expanduser().absolute()
        if not python.is_file():
            raise SetupError(f"COMFYUI_PYTHON names {python}, which is no file: name the Python that runs ComfyUI.")
        return python
    executable = Path("Scripts/python.exe") if os.name == "nt" else Path("bin/python")
    places = [comfyui / ".venv" / executable, comfyui / "venv" / executable]
    places += [comfyui.parent / name / "python.exe" for name in ("python_embeded", "python_embedded")]
    return next((place for place in places if place.is_file()), None)


def check_python() -> None:
    """Refuses a Python that is too old, in one line."""
    if sys.version_info < MINIMUM_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python {found} is too old: run this with Python 3.10 or newer, for example python3.12.")


def need_disk(folder: Path, bytes_needed: int) -> None:
    """Refuses to begin what the disk cannot hold."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < bytes_needed:
        raise SetupError(
            f"Not enough room in {place}: {free / 1e9:.1f} GB free, {bytes_needed / 1e9:.1f} GB needed. "
            "Make room, or move the checkout to a larger disk."
        )


def _make_venv(folder: Path) -> None:
    try:
        import ensurepip  # noqa: F401  (some Linux distributions leave it out of their Python)
    except ImportError:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        raise SetupError(f"This Python cannot make environments: install the system's package {package}.") from None
    try:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(f"Cannot make the Python environment {folder}: {error}.") from None
