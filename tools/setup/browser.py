"""The Chromium of the system's packages, which draws pictures of the editor and runs the browser tests."""

from __future__ import annotations

import os
import shutil

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """Path of the one that the variable CHROMIUM names, else of the first one that is installed; None without any."""
    names = [os.environ.get("CHROMIUM", ""), *BROWSERS]
    return next((path for path in map(shutil.which, names) if path), None)
