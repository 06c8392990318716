"""ComfyUI inside this process, with its Dynamic VRAM, as its main.py starts it."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import sys
from typing import Any


def start() -> None:
    """Puts the ComfyUI of COMFYUI_PATH on sys.path and starts what its models need; before the first `import torch`."""
    folder = os.environ["COMFYUI_PATH"]
    if folder not in sys.path:
        sys.path.insert(0, folder)
    has_gpu = _has_gpu()
    argv, sys.argv = sys.argv, ["bench", *([] if has_gpu else ["--cpu"])]
    importlib.import_module("comfy.options").enable_args_parsing()
    aimdo = importlib.import_module("comfy_aimdo.control") if has_gpu else None
    if aimdo is not None:
        aimdo.init()  # before torch
    management = importlib.import_module("comfy.model_management")
    sys.argv = argv
    logging.getLogger().setLevel(logging.WARNING)
    if aimdo is None:
        return
    devices = [device.index for device in management.get_all_torch_devices()]
    if aimdo.init_devices(devices):
        aimdo.set_log_warning()
        patching: Any = importlib.import_module("comfy.model_patcher")
        patching.CoreModelPatcher = patching.ModelPatcherDynamic
        memory: Any = importlib.import_module("comfy.memory_management")
        memory.aimdo_enabled = True


def unload() -> None:
    """Takes every model off the GPU."""
    management = importlib.import_module("comfy.model_management")
    management.unload_all_models()
    gc.collect()
    management.soft_empty_cache()


def _has_gpu() -> bool:
    """True with an NVIDIA driver; asked without torch, which has to wait for comfy-aimdo."""
    from ctypes import CDLL

    try:
        CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True
