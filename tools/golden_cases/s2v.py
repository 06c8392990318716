"""Sound to video: the transformer with and without motion frames, and the sound features of the frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor
from wancore.wan_core.audio.buckets import buckets, resampled
from wancore.wan_core.audio.conditioning import SoundInputs, sound_conditioning
from wancore.wan_core.config import TransformerConfig
from wancore.wan_core.hooks import Block, Hooks, ReplaceBlock
from wancore.wan_core.stream import Stream
from wancore.wan_core.transformer import WanTransformer

from . import INPUT, Golden, Result

TOLERANCE = 2e-5
FEATURES = 1e-6


def model(golden: Golden) -> WanTransformer:
    """The transformer of the file; heads and the blocks that take sound cannot be read from the tensors."""
    config = TransformerConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in golden.weights.items()})
    given = {name: golden.config[name] for name in ("num_heads", "text_len", "eps") if name in golden.config}
    config = replace(config, **given, audio_blocks=tuple(golden.config.get("inject", config.audio_blocks)))
    transformer = WanTransformer(config).eval().requires_grad_(False)
    transformer.load_state_dict(dict(golden.weights))
    return transformer


@torch.inference_mode()
def s2v(golden: Golden) -> Iterator[Result]:
    """One forward for each case; a case whose name begins with drop leaves the motion frames out."""
    transformer = model(golden)
    for case in golden.cases():
        given = golden.of(INPUT, case)
        inputs = SoundInputs(
            sound=given["audio_input"],
            reference=given["ref_latents"],
            motion=None if case.startswith("drop") else given["motion_latents"],
            pose=given["cond_states"],
        )
        video = given["x"][None]
        conditioning = sound_conditioning(transformer, video, given["context"][None], inputs)
        ours, hooks = watch(transformer, inputs)
        ours["out.x"] = transformer(video, given["t"], conditioning, hooks)[0]
        yield golden.check(case, {name: ours[name] for name in ours if wanted(golden, case, name)}, TOLERANCE)


def wanted(golden: Golden, case: str, name: str) -> bool:
    kind, _, what = name.partition(".")
    return what in golden.of(kind, case)


def watch(transformer: WanTransformer, inputs: SoundInputs) -> tuple[dict[str, Tensor], Hooks]:
    """Intermediate values by their name in the file; those of the blocks appear while the model runs."""
    seen: dict[str, Tensor] = {}
    if inputs.motion is not None:
        tokens, _ = transformer.get_submodule("frame_packer")(inputs.motion)
        seen["mid.motion_tokens"] = tokens

    def before(index: int) -> ReplaceBlock:
        def look(tokens: Tensor, stream: Stream, block: Block) -> Tensor:
            seen[f"mid.block{index}_in"] = tokens
            seen["mid.rope_all"] = torch.view_as_real(stream.rotation[0, :, 0])
            if inputs.motion is not None:
                seen["mid.motion_rope"] = seen["mid.rope_all"][-seen["mid.motion_tokens"].shape[1] :]
            out = block(tokens, stream)
            seen[f"mid.block{index}_before_audio"] = out
            return out

        return look

    return seen, Hooks(replace_block={index: before(index) for index in range(transformer.num_layers)})


@torch.inference_mode()
def audio(golden: Golden) -> Iterator[Result]:
    """From 50 features per second to those of each frame."""
    for case in golden.cases():
        given = golden.of(INPUT, case)
        frame_rate, clip_frames, neighbours = given["fps_batch_m"].tolist()
        features = resampled(given["hidden_states_50hz"])
        found = buckets(features, clip_frames, frame_rate=frame_rate, neighbours=neighbours)
        ours = {
            "out.feat_30hz": features,
            "out.bucket": found.features,
            "out.num_repeat": torch.tensor(found.clips),
            "out.indices": found.indices,
        }
        yield golden.check(case, ours, FEATURES)


FAMILIES = {"wan_s2v": s2v, "audio": audio}
