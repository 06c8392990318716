"""Runs pip in an environment and turns its failures into one line that says what to do."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .console import Console, SetupError
from .places import ROOT, cache_folder

NETWORK = re.compile(
    r"Temporary failure in name resolution|Name or service not known|nodename nor servname|getaddrinfo failed"
    r"|NewConnectionError|NameResolutionError|ConnectTimeout|Connection refused|Network is unreachable"
    r"|Read timed out|ReadTimeoutError|ProxyError|ConnectionResetError|IncompleteRead|RemoteDisconnected"
    r"|SSLError|CERTIFICATE_VERIFY_FAILED|Cannot connect to proxy|ProtocolError"
)
ACTIVITY = re.compile(r"^\s*(Collecting|Downloading|Using cached|Building|Installing|Preparing|Created)\b.*")


def run_pip(python: Path, arguments: Sequence[str], log: Path, console: Console) -> None:
    """Runs `python -m pip` with `arguments`; its whole output goes to `log`.

    Raises:
        SetupError: pip failed; the line says whether network, disk or a package is the reason.
    """
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2", *arguments]
    with log.open("a", encoding="utf-8") as record:
        record.write(f"\n$ {' '.join(command)}\n")
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        ) as process:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                record.write(line)
                lines.append(line.rstrip())
                if ACTIVITY.match(line):
                    console.activity(line.strip())
    if process.returncode:
        raise SetupError(reason("\n".join(lines), log))


def reason(output: str, log: Path) -> str:
    """The one line that a failed pip run comes to."""
    if "No space left on device" in output or "not enough space on the disk" in output:
        return f"The disk is full ({free_space()}). Set-up takes about 6 GB: make room and run this again."
    if "externally-managed-environment" in output or "Permission denied" in output:
        return f"No permission to write to the Python environment: make it writable and run this again (log: {log})."
    network = NETWORK.search(output)
    if network:
        return (
            f"The package index cannot be reached ({network.group()}). "
            "Check network and proxy, then run this again: what is done already is kept."
        )
    missing = re.findall(r"No matching distribution found for (\S+)", output)
    if missing:
        return f"No package {missing[-1]} for this Python and system: use Python 3.10 to 3.14 (log: {log})."
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in output:
        return f"A download is not what was published: its checksum differs. Try again later (log: {log})."
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")]
    return f"pip failed: {(errors or ['no message'])[-1].removeprefix('ERROR: ')} (log: {log})"


def free_space() -> str:
    """Free space of the disks that set-up writes to, in words."""
    places = {"this checkout": ROOT, "the cache": cache_folder(), "temporary files": Path(tempfile.gettempdir())}
    return ", ".join(f"{shutil.disk_usage(place).free / 1e9:.1f} GB free for {name}" for name, place in places.items())


def remove_half_installed(site_packages: Path) -> list[str]:
    """Takes away the records of packages whose installation was killed, so that pip installs them again.

    pip writes RECORD and INSTALLER last: a `.dist-info` folder without them belongs to a package that is not whole,
    which pip would nevertheless take for installed. Returns the names of the folders.
    """
    removed = []
    for folder in site_packages.glob("*.dist-info"):
        if not (folder / "RECORD").is_file() or not (folder / "INSTALLER").is_file():
            shutil.rmtree(folder)
            removed.append(folder.name)
    return removed
