"""What ComfyUI is running here: its version, and which of its features exist."""

from __future__ import annotations


def missing_requirement() -> str | None:
    """Returns one line that names what is too old, found and needed; None when everything fits."""
    return None
