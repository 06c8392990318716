"""The picture encoder as ComfyUI's CLIP_VISION, in any size, from native and official files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from torch import Tensor

from ...wan_core.errors import InputError, WrongModelError
from ...wan_core.image_conditioning import cover
from ...wan_core.vision.clip import HEAD_DIM, Features, VisionConfig, VisionEncoder, prepared
from ...wan_core.vision.keys import official
from ...wan_core.weights.families import CLIP_VISION
from ...wan_core.weights.inspect import Checkpoint, inspect
from ...wan_core.weights.pairing import place, require
from ...wan_core.weights.wholeness import check_tensors, check_types
from .images import with_conditions
from .leftovers import cleared_on_failure
from .ops import wan_operations
from .soundness import check_answer, check_small

CLIP_OUTPUT = "clip_vision_output"  # in a CONDITIONING
COUNTS = "position_ids"  # whole numbers that transformers' files carry and nobody reads


class ClipVision:
    """What native nodes ask of a CLIP_VISION: `encode_image`, and the encoder under a native patcher."""

    where = ""  # the file, for errors

    def __init__(self, config: VisionConfig) -> None:
        management = comfy.model_management
        self.load_device = management.text_encoder_device()
        offload_device = management.text_encoder_offload_device()
        self.dtype = management.text_encoder_dtype(self.load_device)
        self.image_size = config.image_size
        operations = wan_operations(comfy.ops.manual_cast)
        self.model = VisionEncoder(config, ops=operations, device=offload_device, dtype=self.dtype).eval()
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.patcher = patcher(self.model, load_device=self.load_device, offload_device=offload_device)

    def get_sd(self) -> dict[str, Tensor]:
        """The weights under the official names."""
        return self.model.state_dict()

    @torch.inference_mode()
    def encode_image(self, image: Tensor, crop: bool = True) -> Any:
        """IMAGE [n, H, W, C] to a CLIP_VISION_OUTPUT. Official is the whole picture, stretched to a square; `crop`
        takes the square in its middle."""
        comfy.model_management.load_model_gpu(self.patcher)
        colours = image[..., :3].expand(-1, -1, -1, 3)  # grey is three equal ones
        pictures = colours.movedim(-1, 1).to(self.load_device).float() * 2 - 1
        if crop:
            side = min(pictures.shape[2:])
            pictures = cover(pictures, (side, side))
        with cleared_on_failure(self.model):
            features = self.model(prepared(pictures, self.image_size))
        check_answer(features.penultimate, self.model, self.where, picture=pictures)
        return _output(features, self.image_size)


def load_clip_vision(path: str | Path) -> ClipVision:
    """Returns the encoder of a file.

    Raises:
        WeightsFileError: the file cannot be read as weights.
        WrongModelError: it is another picture encoder than Wan's, or tensors are missing.
    """
    checkpoint = inspect(path)
    require(checkpoint, CLIP_VISION)
    where = repr(str(checkpoint.path))
    config, names = _checked(checkpoint, where)
    tensors = comfy.utils.load_torch_file(str(checkpoint.path), safe_load=True)
    check_small(tensors, where)
    weights = official(tensors)
    encoder = ClipVision(config)
    encoder.model.load_state_dict({name: weights[name] for name in names})
    encoder.where = where
    return encoder


def _checked(checkpoint: Checkpoint, where: str) -> tuple[VisionConfig, Collection[str]]:
    """Sizes of the encoder and the names of its tensors, once all are there; files may hold more than the encoder."""
    shapes = checkpoint.shapes
    types = {name: kind for name, kind in checkpoint.types.items() if not name.endswith(COUNTS)}
    check_types(where, CLIP_VISION, types, shapes)
    try:
        hollow = official({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        found = {name: tuple(tensor.shape) for name, tensor in hollow.items()}
        config = VisionConfig.from_shapes(found)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:  # the last: parts that cannot be joined
        raise _another(where, f"no usable tensor {error}") from None
    if config.dim % HEAD_DIM:
        raise _another(where, f"features of width {config.dim}")
    whole = VisionEncoder(config, device="meta")  # under Dynamic VRAM layers have no tensors before they are loaded
    expected = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    check_tensors(where, CLIP_VISION, {name: shape for name, shape in found.items() if name in expected}, expected)
    return config, expected.keys()


def _another(where: str, found: str) -> WrongModelError:
    return WrongModelError(
        "This CLIP vision model is not the one of Wan",
        where=where,
        found=found,
        expected="CLIP ViT-H",
        remedy=place(CLIP_VISION),
    )


def features_for(clip_vision: Any | None, clip_vision_output: Any | None, picture: Tensor) -> Any | None:
    """The CLIP_VISION_OUTPUT of a picture [1, 3, H, W] in -1..1, or the one that is given.

    Raises:
        InputError: both are given.
    """
    if clip_vision is not None and clip_vision_output is not None:
        raise InputError(
            "The CLIP features are given twice",
            where="clip_vision_output",
            found="clip_vision and clip_vision_output",
            remedy="Disconnect one of the two; clip_vision encodes the reference as the official code does",
        )
    if clip_vision is None:
        return clip_vision_output
    return clip_vision.encode_image((picture.movedim(1, -1) + 1) / 2, crop=False)


def with_features(conditionings: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
    """The conditionings with the features of one picture or of a first and a last one, one after the other."""
    if not outputs:
        return list(conditionings)
    joined = outputs[0]
    if len(outputs) > 1:
        joined = comfy.clip_vision.Output()
        states = [output.penultimate_hidden_states[:1] for output in outputs]  # the first of several pictures
        joined["penultimate_hidden_states"] = torch.cat(states, dim=1)
    return with_conditions(conditionings, {CLIP_OUTPUT: joined})


def _output(features: Features, size: int) -> Any:
    """Under the names that native nodes and models read."""
    device, output = comfy.model_management.intermediate_device(), comfy.clip_vision.Output()
    output["last_hidden_state"] = features.last.to(device)
    output["penultimate_hidden_states"] = features.penultimate.to(device)
    output["image_embeds"] = features.embedding.to(device)
    output["image_sizes"] = [torch.Size((3, size, size))] * len(features.last)
    output["mm_projected"] = None
    return output
