"""The graph that is running: which outputs of a node somebody reads."""

from __future__ import annotations

from typing import Any

from comfy_execution.utils import get_executing_context


def is_output_linked(node_id: str | None, output: int) -> bool:
    """Tells whether an input of the running prompt reads output number `output` of a node; True when unknown.

    ComfyUI asks a node for its fingerprint without showing it the prompt, so it is looked up in the queue, there and
    in execute alike: a cached result must not lack an output that a new link asks for. A node inside an expanded
    graph is not in the queue's prompt, and counts as linked.
    """
    prompt = _running_prompt()
    if prompt is None or node_id not in prompt:
        return True
    wanted = [node_id, output]
    return any(value == wanted for node in prompt.values() for value in node.get("inputs", {}).values())


def _running_prompt() -> dict[str, Any] | None:
    """Returns {node id: node} of the prompt that calls us; None outside of a server."""
    from server import PromptServer  # only inside a running ComfyUI; importing it early would start its routes

    context, server = get_executing_context(), getattr(PromptServer, "instance", None)
    if context is None or server is None:
        return None
    running, _ = server.prompt_queue.get_current_queue_volatile()
    return next((item[2] for item in running if item[1] == context.prompt_id), None)
