"""Files of wav2vec2 as ComfyUI's AUDIO_ENCODER, in any size: its own loader only knows the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.audio_encoders.audio_encoders
import comfy.model_patcher  # which the encoders use without importing it
import comfy.ops
import comfy.utils
import torch
from comfy.audio_encoders.wav2vec2 import Wav2Vec2Model
from torch import Tensor

from ...wan_core.audio.buckets import resampled
from ...wan_core.errors import InputError, WrongModelError
from ...wan_core.weights.families import AUDIO_ENCODER
from ...wan_core.weights.inspect import Checkpoint, inspect
from ...wan_core.weights.pairing import place, require
from ...wan_core.weights.wholeness import check_tensors, check_types
from .soundness import check_answer, check_small

HEAD = 64  # values of a head in every wav2vec2
PREFIX = "wav2vec2."
OLD_NAMES = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def load_audio_encoder(path: str | Path) -> Any:
    """Returns the native audio encoder of a wav2vec2 file.

    Raises:
        WeightsFileError: the file cannot be read as weights.
        WrongModelError: it is no wav2vec2, or its tensors are not that one's.
    """
    checkpoint = inspect(path)
    require(checkpoint, AUDIO_ENCODER)
    where = repr(str(checkpoint.path))
    config = _checked(checkpoint, where)
    tensors = comfy.utils.load_torch_file(str(checkpoint.path), safe_load=True)
    check_small(tensors, where)
    encoder = comfy.audio_encoders.audio_encoders.AudioEncoderModel({"model_type": "wav2vec2", **config})
    encoder.load_sd({name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    encoder.where = where  # for errors
    return encoder


def _checked(checkpoint: Checkpoint, where: str) -> dict[str, Any]:
    """What the native class is built with, once all tensors are there; files may hold more than the encoder."""
    shapes = {_present(name): shape for name, shape in checkpoint.shapes.items()}
    types = {_present(name): kind for name, kind in checkpoint.types.items()}
    large = "feature_extractor.conv_layers.1.layer_norm.weight" in shapes
    width = next(iter(shapes.get("encoder.layer_norm.bias", ())), 0)
    if not width or width % HEAD:
        raise WrongModelError(
            "This audio encoder is not the one of Wan S2V",
            where=where,
            found=f"features of width {width}",
            expected=f"a multiple of {HEAD}",
            remedy=place(AUDIO_ENCODER),
        )
    config = {
        "embed_dim": width,
        "num_heads": width // HEAD,
        "num_layers": len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}),
        **dict.fromkeys(("conv_norm", "conv_bias", "do_normalize", "do_stable_layer_norm"), large),
    }
    whole = Wav2Vec2Model(**config, dtype=None, device="meta", operations=comfy.ops.disable_weight_init)
    expected = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    check_tensors(where, AUDIO_ENCODER, {name: shapes[name] for name in expected if name in shapes}, expected)
    check_types(where, AUDIO_ENCODER, types, expected)
    return config


def _present(name: str) -> str:
    """A tensor's name in the native class, which takes the older names of weight normalisation as well."""
    module, dot, leaf = name.removeprefix(PREFIX).rpartition(".")
    return f"{module}{dot}{OLD_NAMES.get(leaf, leaf)}"


def sound_features(audio_encoder: Any, audio: dict[str, Any], lead_in: float) -> Tensor:
    """Features [layers, n, S] of a sound at 30 per second, `lead_in` seconds of silence before it.

    Raises:
        InputError: the encoder is none of speech (the layers of its features are not given), or the sound no numbers.
        WeightsFileError: weights of the encoder's file are no numbers.
    """
    waveform, rate = audio["waveform"][:1].float(), int(audio["sample_rate"])
    silence = waveform.new_zeros(*waveform.shape[:2], round(lead_in * rate))
    encoded = audio_encoder.encode_audio(torch.cat([silence, waveform], dim=2), rate)
    layers = encoded.get("encoded_audio_all_layers")
    if layers is None or layers[0].ndim != 3:
        raise InputError(
            "This audio encoder gives no features of its layers",
            where="audio_encoder",
            found=type(audio_encoder.model).__name__,
            expected="wav2vec2",
            remedy="Load wav2vec2_large_english_fp16.safetensors from models/audio_encoders",
        )
    features = torch.cat([layer[:1].float().cpu() for layer in layers])
    check_answer(features, audio_encoder.model, getattr(audio_encoder, "where", "audio_encoder"), audio=waveform)
    return resampled(features)
