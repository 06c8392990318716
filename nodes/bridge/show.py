"""Text on a node while and after it runs."""

from __future__ import annotations

import logging


def show_on_node(node_id: str | None, text: str) -> None:
    """Writes `text` under the node's widgets in every open browser, and to the log."""
    send_text(node_id, text)
    logging.info("Wan: %s", text.replace("\n", "; "))


def send_text(node_id: str | None, text: str) -> None:
    """Writes `text` under the node's widgets in every open browser; without a server, nowhere."""
    try:
        from server import PromptServer
    except ImportError:  # a test or script without the server
        PromptServer = None  # noqa: N806
    server = getattr(PromptServer, "instance", None)
    if node_id is not None and server is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)
