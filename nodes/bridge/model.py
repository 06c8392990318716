"""Our transformer as a native MODEL: ComfyUI's conditioning, sampling, patching and memory management around it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ...wan_core.config import TransformerConfig
from ...wan_core.errors import WrongModelError
from ...wan_core.transformer import WanTransformer
from ...wan_core.weights import Checkpoint, inspect, mapped, require
from ...wan_core.weights.families import DIFFUSION_MODEL, Shapes
from ...wan_core.weights.wholeness import check_tensors, check_types, network_of
from . import compiling, host, leftovers, lora_table, residency, soundness, texts
from .branches import has_quantised, keep_quantised
from .hosted import HostedTransformer
from .latents import LATENT_FORMATS
from .quantised import UNMARKED, native_form
from .reading import files_of, read_tensors


class WanModel(comfy.model_base.WAN21):
    """Native Wan with our transformer inside, loaded strictly; latents of VAE 2.1."""

    is_quantised = False  # some of its weights, as they were loaded

    def __init__(self, model_config: Any, image_to_video: bool = False, device: Any = None) -> None:
        skipped = super(comfy.model_base.WAN21, self)  # its constructor would build the native transformer
        flow = comfy.model_base.ModelType.FLOW
        skipped.__init__(model_config, flow, device=device, unet_model=HostedTransformer)
        self.image_to_video = image_to_video

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The native call, in which the layers add what the run's table of LoRAs says."""
        options = {} if transformer_options is None else transformer_options
        step = lora_table.step_of(options)
        options = residency.settled(self, options, x)  # before texts are remembered in what is free then
        options = texts.remembering(self, options, x, step)
        native = super()._apply_model

        def answered() -> Tensor:  # asked anew, as a second try is to spare memory
            return native(x, t, c_concat, c_crossattn, control, residency.settled(self, options, x), **kwargs)

        eager = compiling.left_out(self)
        with eager, lora_table.running(self, options, step), leftovers.cleared_on_failure(self):
            answer = residency.apart(self, partial(residency.recovery_of(self).attempt, answered))
        if soundness.is_first(self, step):
            where = repr(self.model_config.path)
            soundness.check_answer(answer, self.diffusion_model, where, latent=x, conditioning=c_crossattn)
        return answer

    def memory_required(self, input_shape: Sequence[int], *args: Any, **kwargs: Any) -> float:
        """Bytes for a batch of latents of this shape; where it fits, ComfyUI computes both prompts as one batch.

        Its estimate is far more than this transformer takes, so that small cards would fetch every block twice: once
        for each prompt. It is asked for before a run loads the model: the last moment before weights are touched.
        """
        mapped.check_all(self.diffusion_model.files)
        whole = super().memory_required(input_shape, *args, **kwargs)
        return max(whole / input_shape[0], TAKEN * whole)

    def load_model_weights(self, sd: dict[str, Tensor], unet_prefix: str = "", assign: bool = False) -> Any:
        """Takes the tensors under the prefix out of `sd`.

        Raises:
            WrongModelError: tensors are missing or left over.
        """
        names = [name for name in sd if name.startswith(unet_prefix)]
        weights = {name[len(unet_prefix) :]: sd.pop(name) for name in names}
        result = self.diffusion_model.load_state_dict(weights, strict=False, assign=assign)
        missing = [name for name in result.missing_keys if name not in dict(self.diffusion_model.named_buffers())]
        for what, keys in (("missing", missing), ("left over", result.unexpected_keys)):
            if keys:
                raise WrongModelError(
                    "The tensors of this file are not those of the model that it looks like",
                    where=repr(self.model_config.path),
                    found=f"{len(keys)} {what}: {', '.join(keys[:5])}",
                    remedy="Take an unchanged file of this model",
                )
        return self


class WanModel5B(WanModel, comfy.model_base.WAN22):
    """TI2V-5B: latents of VAE 2.2, one timestep per latent frame where a mask keeps frames."""


class WanModelS2V(WanModel, comfy.model_base.WAN22_S2V):
    """S2V: sound, a reference picture, motion frames and poses, by the names of ComfyUI's conditioning."""

    def __init__(self, model_config: Any, image_to_video: bool = False, device: Any = None) -> None:
        super().__init__(model_config, image_to_video, device)
        # Conditions that take memory like frames of the latent; 19 motion latents are packed into 1.5 frames of tokens.
        self.memory_usage_factor_conds = ("reference_latent", "reference_motion")
        self.memory_usage_shape_process = {
            "reference_motion": lambda shape: [shape[0], shape[1], 1.5, shape[-2], shape[-1]]
        }


class WanModelAnimate(WanModel, comfy.model_base.WAN22_Animate):
    """Animate: latents of a pose video, pictures of a face, by the names of ComfyUI's conditioning."""


class WanModelVace(WanModel, comfy.model_base.WAN21_Vace):
    """VACE: control clips with masks, any number of them."""


class WanModelCamera(WanModel, comfy.model_base.WAN21_Camera):
    """Fun Camera: the rays of a camera path."""


class WanModelCamera5B(WanModel5B, WanModelCamera):
    """Fun Camera of the 5B, which ComfyUI does not have."""


FIRST = "blocks.0."
TAKEN = 0.5  # of what ComfyUI estimates; measured: 0.3 to 0.4
VACE_MEMORY = 1.2  # of a plain model's, as ComfyUI estimates it


class WanConfig(comfy.supported_models.WAN21_T2V):
    """What ComfyUI wants to know of a model before it is built."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config, task = checkpoint.config, checkpoint.task
        assert config is not None and task is not None
        model_type = "i2v" if config.image_dim else "t2v"
        super().__init__({"image_model": "wan2.1", "model_type": model_type, **asdict(config)})
        self.path = str(checkpoint.path)
        self.memory_usage_factor *= VACE_MEMORY if config.vace_dim else 1.0
        self.latent_format = LATENT_FORMATS[config.out_dim]()
        self.sampling_settings = {"shift": task.shift}
        # The float type of the file; bfloat16 for quantised and float32 files. A bfloat16 file is never run in
        # float16, whose range is too small for it. ComfyUI's flags and devices without these types still decide.
        half = [torch.float16, torch.bfloat16] if checkpoint.precision == "fp16" else [torch.bfloat16]
        self.supported_inference_dtypes = [*half, torch.float32]

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> Any:
        """Builds the model without weights."""
        sizes = self.unet_config
        model = WanModel5B if isinstance(self.latent_format, comfy.latent_formats.Wan22) else WanModel
        if sizes["vace_dim"]:
            model = WanModelVace
        elif sizes["camera_dim"]:
            model = WanModelCamera5B if model is WanModel5B else WanModelCamera
        elif sizes["audio_dim"]:
            model = WanModelS2V
        elif sizes["pose_dim"]:
            model = WanModelAnimate
        pictured = sizes["model_type"] == "i2v" and sizes["in_dim"] == 36 and model is not WanModelAnimate
        return model(self, image_to_video=pictured or issubclass(model, WanModel5B), device=device)


def load_model(path: str, *, dtype: torch.dtype | None = None, disable_dynamic: bool = False) -> Any:
    """Returns the patcher of a Wan diffusion model; `dtype` of the weights, None: as WanConfig says.

    Everything that the header can tell is checked before a tensor is read.

    Raises:
        WeightsFileError: the file cannot be read as weights, or its scales, biases or norms are no numbers.
        WrongModelError: it is no Wan model that the pack runs, or its tensors are not the model's.
    """
    checkpoint = inspect(path)
    check_model_file(checkpoint)
    files = files_of(checkpoint)
    tensors, metadata = read_tensors(checkpoint)
    soundness.check_small(tensors, repr(path))
    sd = _official(tensors, metadata, checkpoint)
    config = WanConfig(checkpoint)
    config.quant_config = comfy.utils.detect_layer_quantization(sd, "")
    _set_dtypes(config, sd, dtype)
    model = config.get_model(sd)
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:  # ComfyUI replaces CoreModelPatcher at its start: never bind it at import
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    offload_device = comfy.model_management.unet_offload_device()
    patcher = patcher_class(model, load_device=comfy.model_management.get_torch_device(), offload_device=offload_device)
    if not comfy.model_management.is_device_cpu(offload_device):
        model.to(offload_device)
    has_types = checkpoint.in_blocks or checkpoint.quantised in UNMARKED
    # Mapped from the file where ComfyUI maps. Blocks cannot be copied into plain tensors, and copying plain float8
    # would store the biases and embeddings, which such files keep in higher precision, in float8 too.
    in_eight_bits = model.get_dtype().itemsize < 2
    assign = has_types or in_eight_bits or patcher.is_dynamic()
    model.load_model_weights(sd, "", assign=assign)
    model.diffusion_model.files = files if assign else ()
    if in_eight_bits:
        keep_types(model)
    model.is_quantised = has_quantised(model)
    keep_quantised(patcher)
    texts.remember(patcher)
    soundness.watch(patcher)
    residency.watch(patcher)
    patcher.cached_patcher_init = (partial(load_model, dtype=dtype), (str(path),))
    logging.info("Wan: %s loaded as %s", checkpoint.name, checkpoint.family.title)
    return patcher


def keep_types(model: torch.nn.Module) -> None:
    """Tells ComfyUI's Dynamic VRAM, which casts to the type that a layer was built with, the types that were loaded."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if hasattr(module, f"{name}_comfy_model_dtype"):
                setattr(module, f"{name}_comfy_model_dtype", parameter.dtype)


def check_model_file(checkpoint: Checkpoint) -> None:
    """Checks by the header that the file is a model of the pack, whole, and of known layout.

    Raises:
        WrongModelError: it is not.
    """
    require(checkpoint, DIFFUSION_MODEL)
    assert checkpoint.config is not None
    where = repr(str(checkpoint.path))
    with network_of(where, DIFFUSION_MODEL):
        expected, known = _expected_shapes(checkpoint.config)
    check_tensors(where, DIFFUSION_MODEL, {**known, **checkpoint.shapes}, expected, packed=checkpoint.is_packed)
    check_types(where, DIFFUSION_MODEL, checkpoint.types, expected, quantised=checkpoint.quantised)


@lru_cache(maxsize=8)
def _expected_shapes(config: TransformerConfig) -> tuple[Shapes, Shapes]:
    """All tensors of the model, and those that it knows without the file: some publishers leave them out."""
    model = WanTransformer(replace(config, num_layers=1), device="meta")  # building all of them takes 0.2 s
    weights = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    of_a_block = {name.removeprefix(FIRST): weights.pop(name) for name in list(weights) if name.startswith(FIRST)}
    for index in range(config.num_layers):
        weights |= {f"blocks.{index}.{name}": shape for name, shape in of_a_block.items()}
    return weights, {name: weights[name] for name, _ in model.named_buffers()}


def _official(sd: dict[str, Tensor], metadata: Any, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Official names, without the tensors of other models; old scaled fp8 in ComfyUI's present form."""
    prefix = checkpoint.prefix
    if not prefix:
        sd = {checkpoint.names[name]: tensor for name, tensor in sd.items() if name in checkpoint.names}
    own = {name.removeprefix(prefix): tensor for name, tensor in sd.items() if name.startswith(prefix)}
    return native_form(own, metadata, checkpoint, prefix)


def _set_dtypes(config: WanConfig, sd: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Types of storage and of computing, by ComfyUI's rules for the device, from the types that are allowed."""
    management, device = comfy.model_management, comfy.model_management.get_torch_device()
    quantised = config.quant_config is not None
    has_scales = any(isinstance(tensor, QuantizedTensor) for tensor in sd.values())
    if dtype is not None:
        config.supported_inference_dtypes = [dtype, torch.float32]
    storage = dtype or management.unet_dtype(
        model_params=comfy.utils.calculate_parameters(sd),
        supported_dtypes=config.supported_inference_dtypes,
        weight_dtype=None if quantised or has_scales else comfy.utils.weight_dtype(sd),
    )
    compute = management.unet_manual_cast(None if quantised else storage, device, config.supported_inference_dtypes)
    host.set_inference_dtype(config, storage, compute, device)
