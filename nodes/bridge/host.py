"""What ComfyUI is running here: its version, and which of its features exist. The one place that asks."""

from __future__ import annotations

import importlib
import inspect
import re
from types import ModuleType
from typing import Any

COMFYUI = (0, 24, 0)  # first version whose operations, mixed precision and node API the pack needs
TORCH = (2, 4, 0)  # first version with RMS norm
PYTORCHS_OWN = "use_pytorch_cross_attention"  # of the flags that choose an attention, which differ between versions


def missing_requirement() -> str | None:
    """Returns one line that names what is too old, found and needed; None when everything fits."""
    import torch

    for name, found, needed in (("ComfyUI", comfyui_version(), COMFYUI), ("PyTorch", torch.__version__, TORCH)):
        if version_numbers(found) < needed:
            wanted = ".".join(map(str, needed))
            return f"{name} {found or '(unknown version)'} is too old, {wanted} or newer is needed: update {name}"
    return None


def comfyui_version() -> str:
    """The version of the running ComfyUI; empty for those that do not state one."""
    try:
        return importlib.import_module("comfyui_version").__version__
    except (ImportError, AttributeError):
        return ""


def version_numbers(version: str) -> tuple[int, int, int]:
    """The first three numbers: "2.11.0+cu130" -> (2, 11, 0), "" -> (0, 0, 0)."""
    numbers = [int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3]]
    first, second, third = (*numbers, 0, 0, 0)[:3]
    return first, second, third


def set_inference_dtype(config: Any, storage: Any, compute: Any, device: Any) -> None:
    """Tells a native model config its dtypes; ComfyUI before 0.27 does not ask for the device."""
    if "device" in inspect.signature(config.set_inference_dtype).parameters:
        config.set_inference_dtype(storage, compute, device=device)
    else:
        config.set_inference_dtype(storage, compute)


def prefetch_module() -> ModuleType | None:
    """ComfyUI's queue that fetches the next block's weights during the current block's computation, where it exists."""
    try:
        module = importlib.import_module("comfy.model_prefetch")
    except ImportError:
        return None
    needed = ("make_prefetch_queue", "prefetch_queue_pop", "cleanup_prefetched_modules")
    return module if all(hasattr(module, name) for name in needed) else None


def attention_is_chosen() -> bool:
    """True where the user, by a command-line flag, or the device asks for another attention than PyTorch's own.

    On the CPU ComfyUI turns to sub-quadratic attention by itself; PyTorch's is twice as fast there and as frugal.
    """
    import comfy.model_management as management
    from comfy.cli_args import args

    flags = [name for name, given in vars(args).items() if given and re.fullmatch(r"use_\w+_attention", name)]
    if set(flags) - {PYTORCHS_OWN} or management.xformers_enabled():
        return True
    return not (management.is_device_cpu(management.get_torch_device()) or management.pytorch_attention_enabled())
