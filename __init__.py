"""WanCore: a ComfyUI node pack for Wan 2.2. ComfyUI imports this file and asks it for the nodes."""

from __future__ import annotations

import logging
from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Returns the extension that ComfyUI registers; without nodes where ComfyUI or torch is too old for them."""
    from .nodes.bridge.host import missing_requirement

    problem = missing_requirement()
    if problem:
        logging.warning("WanCore: %s", problem)
        from comfy_api.latest import ComfyExtension

        class Empty(ComfyExtension):
            async def get_node_list(self) -> list[type]:
                return []

        return Empty()
    from .nodes.extension import WanExtension

    return WanExtension()
