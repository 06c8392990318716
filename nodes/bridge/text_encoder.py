"""Our UMT5 as ComfyUI's CLIP object, so that prompt weights, embeddings, hooks, LoRA and saving are the native ones.

Native classes do all but two things: the encoder is ours, and the text goes the official way into it (tokens.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy import sd1_clip
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ...wan_core.text.clean import HAS_FTFY
from ...wan_core.text.keys import encoder_names
from ...wan_core.text.pieces import tokenizer_of
from ...wan_core.text.tokenizer import END, PAD, Tokenizer
from ...wan_core.text.umt5 import UMT5Config, UMT5Encoder
from ...wan_core.weights.families import TEXT_ENCODER
from ...wan_core.weights.inspect import Checkpoint, inspect
from ...wan_core.weights.mapped import MappedFile, check_all
from ...wan_core.weights.pairing import require
from ...wan_core.weights.vocabulary import TENSOR, tokenizer_file, weights_file
from ...wan_core.weights.wholeness import check_tensors, check_types, network_of, sizes_of
from .branches import keep_quantised
from .leftovers import cleared_on_failure
from .ops import wan_operations
from .pins import in_free_ram_only, size_of
from .quantised import UNMARKED, native_form
from .reading import LOGICAL_DTYPE, files_of, read_tensors
from .soundness import check_answer, check_small
from .tokens import NAME, WanTokenizer

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
PARAMETERS = ("shared.", "encoder.")


class HostedUMT5(UMT5Encoder):
    """The encoder as the native SDClipModel builds and calls it."""

    def __init__(self, config_dict: Mapping[str, Any], dtype: torch.dtype, device: Any, operations: type) -> None:
        super().__init__(UMT5Config(**config_dict), ops=wan_operations(operations), device=device, dtype=dtype)
        self.num_layers = self.config.num_layers
        self.dtype = dtype
        self.where = ""  # the file, for errors
        self.files: tuple[MappedFile, ...] = ()  # that weights are read from while it runs

    def get_input_embeddings(self) -> torch.nn.Module:
        """The token table."""
        return self.shared

    def set_input_embeddings(self, embeddings: torch.nn.Module) -> None:
        """Replaces the token table."""
        self.shared = embeddings

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (the host's signature)
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        embeds: Tensor | None = None,
        num_tokens: Sequence[int] | None = None,  # the mask says it too
        intermediate_output: int | None = None,
        final_layer_norm_intermediate: bool = True,
        dtype: torch.dtype = torch.float32,
        **_unused: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Token ids [B, L] or their embeddings [B, L, D] -> context [B, L, D] and one layer's output, if asked for."""
        check_all(self.files)
        x = embeds if input_ids is None else self.shared(input_ids, out_dtype=dtype)
        assert x is not None
        if self.dtype not in FLOATS:  # plain fp8 tables can hold NaN
            x = torch.nan_to_num(x)
        layer = intermediate_output
        if layer is not None and layer < 0:
            layer += self.num_layers
        with in_free_ram_only(size_of(self.encoder)), cleared_on_failure(self):
            hidden, kept = self.encode(x, attention_mask, layer=layer)
        check_answer(hidden, self, self.where, tokens=embeds)
        if kept is not None and final_layer_norm_intermediate:
            kept = self.encoder.final_layer_norm(kept)
        return hidden, kept


class WanTextModel(sd1_clip.SDClipModel):
    """Tokens with weights to contexts: native but for the encoder."""

    def __init__(self, *, config: UMT5Config, in_blocks: bool = False, **native: Any) -> None:
        self.in_blocks = in_blocks
        super().__init__(
            textmodel_json_config=asdict(config),
            model_class=HostedUMT5,
            special_tokens={"end": END, "pad": PAD},
            enable_attention_masks=True,
            zero_out_masked=True,
            **native,
        )

    def load_sd(self, sd: dict[str, Tensor]) -> Any:
        """Blocks cannot be copied into plain tensors: they take their places."""
        assign = self.in_blocks or getattr(self, "can_assign_sd", False)
        return self.transformer.load_state_dict(sd, strict=False, assign=assign)


class WanTextEncoder(sd1_clip.SD1ClipModel):
    """What a CLIP object holds."""

    def __init__(
        self,
        *,
        config: UMT5Config,
        weights_dtype: torch.dtype,
        quantisation: Mapping[str, Any] | None,
        model_options: Mapping[str, Any],
        in_blocks: bool = False,
        dtype: torch.dtype | None = None,  # native code's choice for the device; the file's own goes before it
        **native: Any,
    ) -> None:
        options = dict(model_options)
        if quantisation is not None:
            options["quantization_metadata"] = quantisation
        super().__init__(
            dtype=weights_dtype,
            model_options=options,
            name=NAME,
            clip_model=partial(WanTextModel, config=config, in_blocks=in_blocks),
            **native,
        )

    def memory_estimation_function(self, _tokens: Any, device: torch.device | None = None) -> int:
        """Bytes to keep free for tokens, natively none. Asked for before weights are loaded, which reads small ones.

        Raises:
            WeightsFileError: the file was cut off or written over since.
        """
        check_all(getattr(self, NAME).transformer.files)
        return 0


@dataclass(frozen=True)
class Target:
    """What the native CLIP constructor builds from."""

    params: dict[str, Any]
    clip: type = WanTextEncoder
    tokenizer: type = WanTokenizer


def load_text_encoder(path: str | Path, *, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """Loads a UMT5 file of any size and publisher, in the precision that it is stored in.

    Raises:
        WeightsFileError: the file cannot be read as weights, or there is no tokenizer in it or beside it.
        WrongModelError: it is no UMT5 encoder.
    """
    checkpoint = inspect(path)
    require(checkpoint, TEXT_ENCODER)
    path = str(checkpoint.path)
    config = check_text_encoder_file(checkpoint)
    files = files_of(checkpoint)
    tensors, metadata = read_tensors(checkpoint)
    check_small(tensors, repr(path))
    tokenizer = _tokenizer_model(tensors, checkpoint)
    own = {own: tensors[name] for name, own in checkpoint.names.items()}
    own = native_form(own, metadata, checkpoint)
    weights = {new: own[old] for old, new in encoder_names(own).items() if new.startswith(PARAMETERS)}
    if checkpoint.is_gguf:
        weights = _looked_up(weights)
    if not HAS_FTFY:
        logging.warning("WanCore: the package ftfy is missing; broken characters in prompts are not repaired.")
    clip = comfy.sd.CLIP(
        Target(
            {
                "config": config,
                "weights_dtype": _float_type(checkpoint, weights),
                "in_blocks": checkpoint.in_blocks or checkpoint.quantised in UNMARKED,
                "quantisation": comfy.utils.detect_layer_quantization(weights, ""),
            }
        ),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        tokenizer_data={"spiece_model": tokenizer, "embedding_size": config.dim},
        parameters=comfy.utils.calculate_parameters(weights),
        state_dict=[weights],
        disable_dynamic=disable_dynamic,
    )
    keep_quantised(clip.patcher)
    encoder = getattr(clip.cond_stage_model, NAME)
    encoder.transformer.where = repr(path)
    encoder.transformer.files = files if encoder.in_blocks or clip.patcher.is_dynamic() else ()
    clip.patcher.cached_patcher_init = (_patcher, (path,))
    return clip


def _patcher(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """Reads the text encoder again for another device or another kind of patcher."""
    return load_text_encoder(path, disable_dynamic=disable_dynamic).patcher


def check_text_encoder_file(checkpoint: Checkpoint) -> UMT5Config:
    """Sizes of the encoder, once every tensor is there in its right shape and type.

    Raises:
        WrongModelError: one is not.
    """
    where, named = repr(str(checkpoint.path)), checkpoint.names.items()
    new = {old: new for old, new in encoder_names(checkpoint.shapes).items() if new.startswith(PARAMETERS)}
    tensors = {new[old]: checkpoint.header.tensors[name] for name, old in named if old in new}
    shapes = {name: entry.shape for name, entry in tensors.items()}
    types = {name: entry.dtype for name, entry in tensors.items()}
    config = sizes_of(UMT5Config, shapes, where, TEXT_ENCODER)
    with network_of(where, TEXT_ENCODER):
        whole = UMT5Encoder(config, device=torch.device("meta")).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    check_tensors(
        where, TEXT_ENCODER, shapes, expected, packed=checkpoint.is_packed or checkpoint.precision == "packed"
    )
    check_types(where, TEXT_ENCODER, types, expected, quantised=checkpoint.quantised)
    return config


def _looked_up(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tables are looked up row by row, so they are decoded, and norms are small; matrices stay in their blocks."""
    out = dict(weights)
    for name, tensor in weights.items():
        if name.endswith(("shared.weight", "relative_attention_bias.weight")) or tensor.ndim == 1:
            whole = tensor.dequantize() if isinstance(tensor, QuantizedTensor) else tensor
            out[name] = whole.to(LOGICAL_DTYPE)
    return out


def _float_type(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> torch.dtype:
    """The type of what is not quantised; GGUF keeps its norms in float32, which says nothing of the rest."""
    return LOGICAL_DTYPE if checkpoint.is_gguf else weights["encoder.final_layer_norm.weight"].dtype


def _tokenizer_model(tensors: Mapping[str, Tensor], checkpoint: Checkpoint) -> Tensor:
    """The sentencepiece model of the file, or of one beside it, known to be readable."""
    path = checkpoint.path
    if checkpoint.is_gguf:
        return Tokenizer(tokenizer_of(path), where=repr(str(path))).to_tensor()
    inside = next((tensor for name, tensor in tensors.items() if name.rpartition(".")[2] == TENSOR), None)
    if inside is not None:
        return Tokenizer.from_tensor(inside, where=repr(str(path))).to_tensor()
    beside = tokenizer_file(weights_file(checkpoint))
    assert beside is not None  # or the file would have been refused
    return Tokenizer.from_file(beside).to_tensor()
