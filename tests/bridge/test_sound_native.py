"""S2V against ComfyUI's own model and nodes, on the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.ops
import comfy.sample
import comfy.sd
from comfy.ldm.wan.model import WanModel_S2V
from comfy_extras.nodes_wan import WanSoundImageToVideo
from make_pocket import build, write
from wancore.nodes.bridge.facts import model_facts
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.schedule import with_shift
from wancore.nodes.bridge.vae import load_vae
from wancore.pocket import family
from wancore.wan_core.audio.conditioning import SoundInputs, sound_conditioning
from wancore.wan_core.config import TransformerConfig
from wancore.wan_core.tasks import S2V_14B
from wancore.wan_core.transformer import WanTransformer

LIMIT = 1e-5  # relative, float32; ComfyUI's sinusoid is float32 and ours float64
LAYERS, FEATURES, BEFORE, DROPPED = 25, 20, 73, 19


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pair():
    """The same random weights in both."""
    sizes = {"dim": 96, "ffn_dim": 160, "num_heads": 2, "num_layers": 6, "text_dim": 24, "text_len": 8}
    blocks = (0, 4)
    config = TransformerConfig(**sizes, audio_dim=FEATURES, audio_layers=LAYERS, audio_tokens=4, audio_blocks=blocks)
    ours = WanTransformer(config).eval().requires_grad_(False)
    for seed, (name, parameter) in enumerate(ours.named_parameters()):
        if name.endswith("audio_encoder.weights"):
            parameter.copy_(1 + 0.2 * noise(*parameter.shape, seed=seed))
            continue
        spread = 0.3 if "modulation" in name else 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        ones = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
        parameter.copy_(spread * noise(*parameter.shape, seed=seed) + float(ones))
    native = WanModel_S2V(
        **sizes, audio_dim=FEATURES, audio_inject_layers=list(blocks), freq_dim=256, device="cpu",
        dtype=torch.float32, operations=comfy.ops.manual_cast,
    )  # fmt: skip
    native.load_state_dict(ours.state_dict())
    return ours, native.eval().requires_grad_(False)


def inputs() -> SoundInputs:
    return SoundInputs(
        noise(1, LAYERS, FEATURES, 8, seed=3), noise(1, 16, 1, 8, 16, seed=4), None, noise(1, 16, 2, 8, 16, seed=5)
    )


def both(pair, given: SoundInputs) -> float:
    ours, native = pair
    video, text, step = noise(1, 16, 2, 8, 16), noise(1, 8, 24, seed=2), torch.tensor([700.0])
    expected = native(
        video, step, text, audio_embed=given.sound, reference_latent=given.reference,
        reference_motion=given.motion, control_video=given.pose, transformer_options={},
    )  # fmt: skip
    found = ours(video, step, sound_conditioning(ours, video, text, given))
    return float((found - expected).norm() / expected.norm())


def test_equals_native_without_sound(pair):
    assert both(pair, replace(inputs(), sound=None)) < LIMIT


def test_equals_native_once_that_hears_what_came_before(pair, monkeypatch):
    """The one difference without motion frames is the official 73 frames before a clip."""
    given, native = inputs(), pair[1]
    assert both(pair, given) > 1e-3
    encode = native.casual_audio_encoder.forward

    def with_prefix(sound):
        before = sound[..., :1].expand(-1, -1, -1, BEFORE)
        return tuple(part[:, DROPPED:] for part in encode(torch.cat([before, sound], dim=3)))

    monkeypatch.setattr(native.casual_audio_encoder, "forward", with_prefix)
    assert both(pair, given) < LIMIT


def test_motion_frames_differ_by_their_positions_alone(pair, monkeypatch):
    ours = pair[0]
    given = replace(inputs(), sound=None, motion=noise(1, 16, 19, 8, 16, seed=6))
    assert 1e-4 < both(pair, given) < 0.2
    tokens, _ = ours.frame_packer(given.motion)
    theirs, _ = pair[1].frame_packer(given.motion, pair[1])
    assert (tokens - theirs).norm() / theirs.norm() < LIMIT


@pytest.fixture(scope="module")
def pocket(tmp_path_factory) -> dict[str, str]:
    """The miniature S2V model and VAE, as published files would lie there."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for name, member in (("model", family.S2V), ("vae", family.VAE)):
        paths[name] = str(folder / member.name)
        write(build(member, fp8=True), folder / member.name, member.metadata)
    return paths


@torch.inference_mode()
def test_native_nodes_feed_our_model(pocket):
    """WanSoundImageToVideo and KSampler: with a picture, a pose video and no sound both models make the same."""
    vae = load_vae(pocket["vae"])
    picture, poses = (noise(n, 64, 64, 3, seed=n).sigmoid() for n in (1, 9))
    text = [[noise(1, 512, family.TEXT_DIM, seed=8), {}]]
    given = WanSoundImageToVideo.execute(text, text, vae, 64, 64, 9, 1, ref_image=picture, control_video=poses).args
    results = []
    for model in (load_model(pocket["model"]), comfy.sd.load_diffusion_model(pocket["model"])):
        assert model_facts(model).task is S2V_14B
        shifted = with_shift(model, S2V_14B.shift)  # ComfyUI's own default is 8
        args = (shifted, noise(1, 16, 3, 8, 8), 2, 3.0, "euler", "simple", *given[:2], given[2]["samples"])
        results.append(comfy.sample.sample(*args, disable_pbar=True))
    assert (results[0] - results[1]).norm() / results[1].norm() < 1e-3


@torch.inference_mode()
def test_sound_of_native_nodes_is_heard(pocket):
    vae, model = load_vae(pocket["vae"]), load_model(pocket["model"])
    text = [[noise(1, 512, family.TEXT_DIM, seed=8), {}]]
    results = []
    for loudness in (0.0, 1.0):
        heard = {"encoded_audio_all_layers": (loudness * noise(LAYERS, 1, 30, family.SOUND_DIM)).unbind()}
        given = WanSoundImageToVideo.execute(text, text, vae, 64, 64, 9, 1, audio_encoder_output=heard).args
        args = (model, noise(1, 16, 3, 8, 8), 1, 1.0, "euler", "simple", *given[:2], given[2]["samples"])
        results.append(comfy.sample.sample(*args, disable_pbar=True))
    assert (results[0] - results[1]).norm() / results[1].norm() > 1e-3
