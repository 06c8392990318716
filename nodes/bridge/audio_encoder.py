"""Files of wav2vec2 as ComfyUI's AUDIO_ENCODER, in any size: its own loader only knows the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.audio_encoders.audio_encoders
import comfy.model_patcher  # which the encoders use without importing it
import comfy.utils
import torch
from torch import Tensor

from ...wan_core.audio.buckets import resampled
from ...wan_core.errors import InputError, WrongModelError
from ...wan_core.weights.families import AUDIO_ENCODER
from ...wan_core.weights.inspect import inspect
from ...wan_core.weights.pairing import require

HEAD = 64  # values of a head in every wav2vec2
PREFIX = "wav2vec2."


def load_audio_encoder(path: str | Path) -> Any:
    """Returns the native audio encoder of a wav2vec2 file.

    Raises:
        WeightsFileError: the file cannot be read as weights.
        WrongModelError: it is no wav2vec2, or tensors are missing.
    """
    checkpoint = inspect(path)
    require(checkpoint, AUDIO_ENCODER)
    names = {name.removeprefix(PREFIX) for name in checkpoint.shapes}
    weights = comfy.utils.load_torch_file(str(checkpoint.path), safe_load=True)
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    width = weights["encoder.layer_norm.bias"].shape[0]
    large = "feature_extractor.conv_layers.1.layer_norm.weight" in names
    encoder = comfy.audio_encoders.audio_encoders.AudioEncoderModel(
        {
            "model_type": "wav2vec2",
            "embed_dim": width,
            "num_heads": width // HEAD,
            "num_layers": len({name.split(".")[2] for name in names if name.startswith("encoder.layers.")}),
            "conv_norm": large,
            "conv_bias": large,
            "do_normalize": large,
            "do_stable_layer_norm": large,
        }
    )
    missing, _ = encoder.load_sd(weights)
    if missing:
        raise WrongModelError(
            "Tensors of the audio encoder are missing",
            where=repr(str(checkpoint.path)),
            found=f"{len(missing)} missing: {', '.join(missing[:5])}",
            remedy="Take wav2vec2_large_english_fp16.safetensors from models/audio_encoders",
        )
    return encoder


def sound_features(audio_encoder: Any, audio: dict[str, Any], lead_in: float) -> Tensor:
    """Features [layers, n, S] of a sound at 30 per second, `lead_in` seconds of silence before it.

    Raises:
        InputError: the encoder is none of speech (the layers of its features are not given).
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
    return resampled(torch.cat([layer[:1].float().cpu() for layer in layers]))
