"""tools/demo.py as a newcomer runs it: makes a clip, can be stopped and run again, changes no installation."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import av
import psutil
import pytest
from setup.places import ROOT

SMALL = ("--size", "64x64", "--seconds", "0.5", "--cpu")


def bare_python() -> str:
    """The Python that the environment was made with: nothing is installed in it."""
    return str(Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else "bin/python3"))


def command(output: Path, *more: str) -> list[str]:
    return [bare_python(), str(ROOT / "tools" / "demo.py"), "a red circle", *SMALL, "--output", str(output), *more]


def variables() -> dict[str, str]:
    """The environment without what the test command set for the tests."""
    return {name: value for name, value in os.environ.items() if name not in ("COMFYUI_PATH", "PYTHONPATH")}


def start(output: Path, *more: str) -> subprocess.Popen[str]:
    """The demo, deaf to no signal: a shell's background jobs, which a CI may be, inherit an ignored SIGINT."""
    return subprocess.Popen(
        command(output, *more),
        cwd=output,
        env=variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.default_int_handler)) if os.name == "posix" else None,
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Reads the output up to the first line that matches; the whole of it."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    pytest.fail(f"{pattern!r} never came:\n{''.join(lines)}")


def servers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children(recursive=True) if child.is_running()]


def files_of(folder: Path) -> Mapping[str, str]:
    """{path: checksum} of everything in a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.slow
def test_makes_a_clip_and_changes_nothing_in_the_installation(comfyui: Path, tmp_path: Path) -> None:
    before = files_of(comfyui)
    run = subprocess.run(
        command(tmp_path, "--comfyui", str(comfyui), "--seed", "3"), env=variables(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    path = Path(re.search(r"^Clip: (.+)$", run.stdout, re.MULTILINE)[1])
    assert path.is_relative_to(tmp_path) and path.suffix == ".mp4"
    with av.open(str(path)) as video:
        frames = sum(1 for _ in video.decode(video=0))
    assert f"64x64, {frames} frames at 16 per second" in run.stdout
    for stage in ("Wan Load Models", r"Wan KSampler \(Dual Expert\)"):
        assert re.search(rf"^  {stage} +[\d.]+ s$", run.stdout, re.MULTILINE), run.stdout
    for expert in ("high", "low"):
        assert re.search(rf"step \d+ of 4, {expert} expert, .* left", run.stdout), run.stdout
    assert files_of(comfyui) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stops_with_its_server_and_runs_again(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path)
    said = read_until(process, "at http://127.0.0.1")
    servers = servers_of(process)
    assert servers, said
    process.send_signal(number)
    rest = process.communicate(timeout=60)[0]
    if number != signal.SIGKILL:
        assert process.returncode == 130 and rest.rstrip().endswith("Stopped.")
        assert "Traceback" not in rest
    _, alive = psutil.wait_procs(servers, timeout=30)
    assert alive == [], "the server outlived the demo"
    assert list(tmp_path.rglob("*.mp4")) == []


@pytest.mark.slow
def test_serves_until_it_is_stopped(tmp_path: Path) -> None:
    process = start(tmp_path, "--serve")
    try:
        said = read_until(process, "ComfyUI stays at")
        assert "Clip: " in said
        assert re.search(r"ComfyUI stays at http://127\.0\.0\.1:\d+", said)
        time.sleep(1)
        assert process.poll() is None
        servers = servers_of(process)
        assert servers
    finally:
        process.send_signal(signal.SIGINT if os.name == "posix" else signal.CTRL_BREAK_EVENT)
        rest = process.communicate(timeout=60)[0]
    if os.name == "posix":
        assert process.returncode == 130 and rest.rstrip().endswith("Stopped.")
        assert "Traceback" not in rest
    _, alive = psutil.wait_procs(servers, timeout=30)
    assert alive == [], "the server outlived the demo"


def test_a_wrong_folder_is_one_line(tmp_path: Path) -> None:
    run = subprocess.run(command(tmp_path, "--comfyui", str(tmp_path)), env=variables(), capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1 and "No ComfyUI in" in run.stderr and str(tmp_path) in run.stderr
