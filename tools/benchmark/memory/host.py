"""ComfyUI inside this process, as its main.py starts it, with a queue of one: prompts in API format run in it."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

EXTRAS = (
    "nodes_wan",
    "nodes_hunyuan",
    "nodes_video",
    "nodes_audio",
    "nodes_model_advanced",
)  # of comfy_extras, for native graphs


def start(base: Path, *, cpu: bool) -> None:
    """In main.py's order: options, comfy-aimdo, PyTorch's allocator, then everything else; before `import torch`."""
    folder = os.environ["COMFYUI_PATH"]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    options = ["--base-directory", str(base), *(["--cpu"] if cpu else [])]
    argv, sys.argv = sys.argv, ["main.py", *options]
    importlib.import_module("comfy.options").enable_args_parsing()
    cli: Any = importlib.import_module("comfy.cli_args")
    importlib.import_module("utils")  # before ComfyUI's other folder of that name comes first on sys.path
    aimdo = importlib.import_module("comfy_aimdo.control")
    if cli.enables_dynamic_vram():
        aimdo.init(nvml_pressure=not cli.args.disable_nvml_pressure)
    importlib.import_module("cuda_malloc")
    management = importlib.import_module("comfy.model_management")
    sys.argv = argv
    logging.getLogger().setLevel(logging.INFO)
    if cpu:
        return
    devices = [(device.index, int(cli.args.vram_headroom * 2**30)) for device in management.get_all_torch_devices()]
    if not aimdo.init_devices(devices):
        raise RuntimeError("comfy-aimdo does not work here: no Dynamic VRAM")
    aimdo.set_log_warning()
    patching: Any = importlib.import_module("comfy.model_patcher")
    patching.CoreModelPatcher = patching.ModelPatcherDynamic
    memory: Any = importlib.import_module("comfy.memory_management")
    memory.aimdo_enabled = True


class Listener:
    """What the executor takes for its server: hears which node runs."""

    def __init__(self, heard: Callable[[str, dict[str, Any]], None]) -> None:
        self.heard = heard
        self.client_id: str | None = "bench"
        self.last_node_id: str | None = None
        self.last_prompt_id: str | None = None
        self.sockets_metadata: dict[str, Any] = {}

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        if isinstance(event, str) and isinstance(data, dict):
            self.heard(event, data)


class Executor:
    """Runs prompts as the server's worker does."""

    def __init__(self, pack: Path, heard: Callable[[str, dict[str, Any]], None]) -> None:
        import comfy.model_management as management
        import execution

        nodes = cast("Any", importlib.import_module("nodes"))  # ComfyUI's

        async def load() -> None:
            extras = Path(nodes.__file__).parent / "comfy_extras"
            for name in EXTRAS:
                if not await nodes.load_custom_node(str(extras / f"{name}.py"), module_parent="comfy_extras"):
                    raise RuntimeError(f"{name} was not loaded")
            if not await nodes.load_custom_node(str(pack), set(), module_parent="custom_nodes"):
                raise RuntimeError("the pack was not loaded")

        asyncio.run(load())
        ram = min(10.0, max(2.0, management.total_ram * 0.10 / 1024.0))
        sizes = {"lru": 0, "ram": ram, "ram_inactive": min(128.0, management.total_ram / 1024.0)}
        self.listener = Listener(heard)
        self.executor = execution.PromptExecutor(
            self.listener, cache_type=execution.CacheType.RAM_PRESSURE, cache_args=sizes
        )
        self.validate, self.number = execution.validate_prompt, 0

    def forget(self) -> None:
        """What the server does when it is asked to free its memory."""
        import comfy.model_management as management

        management.unload_all_models()
        self.executor.reset()
        gc.collect()
        management.soft_empty_cache()

    def run(self, prompt: dict[str, Any]) -> tuple[float, str]:
        """Seconds of the whole prompt, and what went wrong; empty where nothing did."""
        self.number += 1
        name = f"bench-{self.number}"
        self.listener.last_prompt_id = name
        valid, error, outputs, node_errors = asyncio.run(self.validate(name, prompt, None))
        if not valid:
            return 0.0, f"{error}: {node_errors}"
        start = time.perf_counter()
        self.executor.execute(prompt, name, {"client_id": "bench"}, outputs)
        seconds = time.perf_counter() - start
        if self.executor.success:
            return seconds, ""
        found = [data for event, data in self.executor.status_messages if event == "execution_error"]
        if not found:
            return seconds, "stopped"
        text = str(found[-1]["exception_message"]).strip().splitlines()
        return seconds, f"{found[-1]['node_type']}: {text[0] if text else found[-1]['exception_type']}"
