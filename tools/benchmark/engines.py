"""The engines: ours, and ComfyUI's own Wan as it comes and with cuDNN's attention put first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.ops
import comfy.sd
import torch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from torch import Tensor
from torch.nn.attention import SDPBackend

from ...nodes.bridge.eight_bits import ATTENTION, LAYERS
from ...nodes.bridge.lora import apply_lora
from ...nodes.bridge.model import load_model
from . import diffusers
from .kept import loras_beside
from .workloads import Forward

Given = tuple[Tensor, Tensor, Tensor]  # latent, sigma, text
Call = Callable[[], Tensor]
PLAIN = ("bf16", "fp8 scaled")  # kinds of files, see run.py
KINDS = (*PLAIN, "Q8_0", "Q4_K")


@dataclass(frozen=True)
class Engine:
    """A way to run a file."""

    name: str
    ready: Callable[[Path, torch.dtype | None, Given], Call]  # file, dtype of weights and computing (None: the file's)
    kinds: tuple[str, ...] = PLAIN
    cudnn_first: bool = False
    by_name_only: bool = False  # left out where no engines are named


def _load_native(path: Path, dtype: torch.dtype | None) -> Any:
    return comfy.sd.load_diffusion_model(str(path), model_options={} if dtype is None else {"dtype": dtype})


def _native(path: Path, dtype: torch.dtype | None, given: Given) -> Call:
    return forward(_load_native(path, dtype), given)


def _native_half(path: Path, dtype: torch.dtype | None, given: Given) -> Call:
    return forward(_load_native(path, torch.float16), given)


def _ours(path: Path, dtype: torch.dtype | None, given: Given) -> Call:
    return forward(load_model(str(path), dtype=dtype), given)


def _in_8_bits(path: Path, dtype: torch.dtype | None, given: Given) -> Call:
    return forward(ATTENTION.put_on(load_model(str(path), dtype=dtype)), given)


def _all_in_8_bits(path: Path, dtype: torch.dtype | None, given: Given) -> Call:
    return forward(LAYERS.put_on(ATTENTION.put_on(load_model(str(path), dtype=dtype))), given)


def _with_loras(path: Path, dtype: torch.dtype | None, given: Given) -> Call:
    model = load_model(str(path), dtype=dtype)
    for lora in loras_beside(path):
        model, match = apply_lora(model, str(lora), lora.name, 0.5, merge=False)
        assert match is not None
    return forward(model, given)


def _compiled(path: Path, dtype: torch.dtype | None, given: Given) -> Call:
    compiled = TorchCompileModel.execute(load_model(str(path), dtype=dtype), "inductor")
    return forward(compiled.args[0], given)


OURS = Engine("WanCore", _ours, KINDS)
IN_8_BITS = Engine("WanCore, 8-bit attention", _in_8_bits)
ALL_IN_8_BITS = Engine("WanCore, 8-bit layers and attention", _all_in_8_bits, KINDS, by_name_only=True)
NATIVE = Engine("ComfyUI as shipped", _native)
ENGINES = (
    NATIVE,
    Engine("ComfyUI, cuDNN first", _native, cudnn_first=True),
    Engine("ComfyUI in fp16", _native_half, ("bf16",)),
    Engine("diffusers", diffusers.ready, ("bf16",)),
    Engine("diffusers, cuDNN", diffusers.ready_with_cudnn, ("bf16",)),
    OURS,
    IN_8_BITS,
    ALL_IN_8_BITS,
    Engine("WanCore, TorchCompileModel", _compiled, by_name_only=True),
    Engine("WanCore, two LoRAs beside", _with_loras, KINDS),
)


@contextmanager
def running(engine: Engine) -> Iterator[None]:
    """Inside the context ComfyUI's attention is as the engine wants it."""
    order = getattr(comfy.ops, "SDPA_BACKEND_PRIORITY", None)
    if not engine.cudnn_first or order is None:
        yield
        return
    before = list(order)
    order.sort(key=lambda backend: backend is not SDPBackend.CUDNN_ATTENTION)
    try:
        yield
    finally:
        order[:] = before


def inputs(workload: Forward, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Latent, sigma and text, the same for every engine."""
    generator = torch.Generator(device).manual_seed(5)
    latent = torch.randn(workload.latent, device=device, generator=generator)
    return latent, torch.tensor([0.7], device=device), torch.randn(1, 512, 4096, device=device, generator=generator)


def forward(patcher: Any, given: tuple[Tensor, Tensor, Tensor]) -> Callable[[], Tensor]:
    """A call of the model as ComfyUI's samplers make it, once it is loaded."""
    latent, sigma, text = given
    management.load_models_gpu([patcher, *patcher.get_nested_additional_models()])  # those are LoRAs
    patcher.pre_run()  # a later call is a later step of one run
    options = {**patcher.model_options.get("transformer_options", {}), "sample_sigmas": torch.tensor([1.0, 0.7, 0.0])}
    options["wrappers"] = patcher.wrappers
    return lambda: patcher.model.apply_model(latent, sigma, c_crossattn=text, transformer_options=dict(options))
