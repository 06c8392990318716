"""VACE, Fun Control, Fun Camera and Fun inpainting: native conditioning nodes feed our MODEL as they feed ComfyUI's.

The same tiny random files are loaded on both sides; the conditions come out of the native nodes, through a VAE whose
latents are made up, so that sizes and names are the nodes' own.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.ldm.wan.model
import comfy.model_management as management
import comfy.sd
import comfy.utils
from comfy_extras import nodes_camera_trajectory, nodes_wan
from wancore.nodes.bridge.facts import model_facts
from wancore.nodes.bridge.model import load_model
from wancore.pocket.family import TRANSFORMER_METADATA
from wancore.wan_core.errors import InputError

from .tiny_models import text, tiny_weights

CLOSE = 1e-5  # relative, float32
WIDTH, HEIGHT, LENGTH = 64, 32, 9
SIGMA = torch.tensor([0.83])
NATIVE_HAS_BLOCK_PATCHES = '"double_block" in patches' in inspect.getsource(comfy.ldm.wan.model.WanModel.forward_orig)


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


class Vae:
    """Latents that depend on every pixel, in the shape of the Wan VAEs'."""

    def __init__(self, channels: int = 16, stride: int = 8) -> None:
        self.latent_channels, self.stride = channels, stride

    def spacial_compression_encode(self) -> int:
        return self.stride

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        frames = 1 + (len(pixels) - 1) // 4
        rows, columns = pixels.shape[1] // self.stride, pixels.shape[2] // self.stride
        generator = torch.Generator().manual_seed(int(1e9 * float(pixels.double().mean())))
        return torch.randn(1, self.latent_channels, frames, rows, columns, generator=generator)


def wider(weights: dict, seed: int, **channels: int) -> dict:
    """The same file with another number of channels into the named layers."""
    generator = torch.Generator().manual_seed(seed)
    for name, count in channels.items():
        shape = list(weights[f"{name}.weight"].shape)
        shape[1] = count
        fan_in = count * 4
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
    return weights


def fun_5b() -> dict:
    weights = wider(tiny_weights("ti2v_5B"), 1, patch_embedding=148)
    generator = torch.Generator().manual_seed(2)
    weights["ref_conv.weight"] = torch.randn(256, 48, 2, 2, generator=generator) / 192**0.5
    weights["ref_conv.bias"] = 0.1 * torch.randn(256, generator=generator)
    return weights


def camera_21() -> dict:
    weights = wider(tiny_weights("wan21_i2v_14B"), 3, patch_embedding=32)
    camera = tiny_weights("fun_camera_A14B")
    return weights | {name: weight for name, weight in camera.items() if name.startswith("control_adapter.")}


FILES = {  # file name: weights, task
    "wan2.1_vace_14B": (lambda: tiny_weights("vace_14B"), "vace-2.1"),
    "wan2.2_fun_vace_high_noise_14B": (lambda: tiny_weights("vace_14B"), "vace-fun-A14B"),
    "wan2.2_fun_control_high_noise_14B": (lambda: tiny_weights("fun_control_A14B"), "fun-A14B"),
    "wan2.2_fun_camera_low_noise_14B": (lambda: tiny_weights("fun_camera_A14B"), "fun-A14B"),
    "wan2.2_fun_inpaint_high_noise_14B": (lambda: tiny_weights("i2v_A14B_expert"), "i2v-A14B"),
    "wan2.2_fun_control_5B": (fun_5b, "fun-5B"),
    "wan2.1_fun_control": (lambda: wider(tiny_weights("wan21_i2v_14B"), 4, patch_embedding=48), "fun-2.1"),
    "wan2.1_fun_camera": (camera_21, "fun-2.1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def pairs(folder):
    """Our MODEL and ComfyUI's by file name, loaded once."""
    loaded: dict[str, tuple] = {}

    def pair(name: str):
        if name not in loaded:
            path = str(folder / f"{name}.safetensors")
            with torch.inference_mode():
                save_file(FILES[name][0](), path, metadata=TRANSFORMER_METADATA)
                loaded[name] = load_model(path), comfy.sd.load_diffusion_model(path)
        return loaded[name]

    return pair


def pixels(frames: int, seed: int) -> torch.Tensor:
    return torch.rand(frames, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(seed))


def positive() -> list:
    return [[text(1), {}]]


class Vision:
    """CLIP features of a picture. Without any, ComfyUI's 2.1 models attend to the text a second time; ours do not."""

    penultimate_hidden_states = torch.randn(1, 257, 1280, generator=torch.Generator().manual_seed(6))


def execute(node, **inputs):
    return node.execute(positive(), positive(), inputs.pop("vae", Vae()), WIDTH, HEIGHT, LENGTH, 1, **inputs).args


def predict(patcher, conditioning, samples, **extra):
    """One call of the model as the sampler makes it, with the conditions that ComfyUI's model class makes of them."""
    management.load_models_gpu([patcher])
    samples = torch.randn(samples.shape, generator=torch.Generator().manual_seed(8))
    values = dict(conditioning[0][1])
    conds = patcher.model.extra_conds(
        noise=samples, device=torch.device("cpu"), cross_attn=conditioning[0][0], **values, **extra
    )
    conds = {name: cond.process_cond(batch_size=1, area=None).cond for name, cond in conds.items()}
    options = comfy.utils.deepcopy_list_dict(patcher.model_options["transformer_options"])
    return patcher.model.apply_model(samples, SIGMA, transformer_options=options, **conds)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def assert_equal(pair, conditioning, latent, **extra):
    ours, native = (predict(patcher, conditioning, latent["samples"], **extra) for patcher in pair)
    assert difference(ours, native) < CLOSE
    return ours


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_known(pairs, name):
    ours, native = pairs(name)
    assert set(ours.model.state_dict()) == set(native.model.state_dict())
    assert [model_facts(patcher).task.id for patcher in (ours, native)] == [FILES[name][1]] * 2
    assert ours.model.memory_usage_factor == pytest.approx(native.model.memory_usage_factor)
    assert ours.model.image_to_video == native.model.image_to_video
    assert type(ours.model.latent_format) is type(native.model.latent_format)


@pytest.mark.parametrize("name", ["wan2.1_vace_14B", "wan2.2_fun_vace_high_noise_14B"])
def test_vace(pairs, name):
    pair = pairs(name)
    mask = (torch.rand(LENGTH, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(4)) > 0.5).float()
    inputs = {"control_video": pixels(LENGTH, 1), "control_masks": mask}
    given, _, latent, trim = execute(nodes_wan.WanVaceToVideo, strength=0.75, **inputs)
    controlled = assert_equal(pair, given, latent)
    full, *_ = execute(nodes_wan.WanVaceToVideo, strength=1.0, **inputs)
    assert trim == 0 and difference(assert_equal(pair, full, latent), controlled) > 1e-3
    nothing = assert_equal(pair, positive(), latent)  # ComfyUI gives empty frames to a VACE model without any
    assert difference(nothing, controlled) > 1e-3


def test_vace_with_a_reference_and_a_second_control(pairs):
    pair = pairs("wan2.1_vace_14B")
    one = {"strength": 1.0, "control_video": pixels(LENGTH, 1), "reference_image": pixels(1, 2)}
    given, negative, latent, trim = execute(nodes_wan.WanVaceToVideo, **one)
    assert trim == 1 and latent["samples"].shape[2] == 4
    single = assert_equal(pair, given, latent)
    second = {**one, "strength": 0.5, "control_video": pixels(LENGTH, 3)}
    both = nodes_wan.WanVaceToVideo.execute(given, negative, Vae(), WIDTH, HEIGHT, LENGTH, 1, **second).args[0]
    assert len(both[0][1]["vace_frames"]) == 2
    assert difference(assert_equal(pair, both, latent), single) > 1e-3


def test_vace_without_strength_is_the_plain_model(pairs):
    """ComfyUI computes the hints and multiplies them by zero; ours leaves them out."""
    pair = pairs("wan2.1_vace_14B")
    given, _, latent, _ = execute(nodes_wan.WanVaceToVideo, strength=0.0, control_video=pixels(LENGTH, 1))
    assert_equal(pair, given, latent)


def test_vace_of_another_length_is_refused(pairs):
    ours, _ = pairs("wan2.1_vace_14B")
    given, _, latent, _ = execute(nodes_wan.WanVaceToVideo, strength=1.0, reference_image=pixels(1, 2))
    with pytest.raises(InputError, match="VACE"):
        predict(ours, given, latent["samples"][:, :, 1:])


@pytest.mark.skipif(not NATIVE_HAS_BLOCK_PATCHES, reason="this ComfyUI's Wan has no double_block patches")
def test_vace_with_patches_of_the_ecosystem(pairs):
    """Attention, attention output and block patches reach the VACE blocks in the same way."""
    results = []
    for patcher in pairs("wan2.1_vace_14B"):
        calls: list[tuple] = []
        changed = patcher.clone()

        def attention(function, *args, calls=calls, **kwargs):
            calls.append(("attention", kwargs["transformer_options"]["block_index"]))
            return function(*args, **kwargs)

        def block(args):
            args["img"] = args["img"] * 1.01
            return args

        changed.model_options["transformer_options"]["optimized_attention_override"] = attention
        changed.set_model_attn1_patch(lambda args: args["x"] * 0.9)
        changed.set_model_patch(block, "double_block")
        given, _, latent, _ = execute(nodes_wan.WanVaceToVideo, strength=1.0, control_video=pixels(LENGTH, 1))
        results.append((predict(changed, given, latent["samples"]), calls))
    assert difference(results[0][0], results[1][0]) < CLOSE
    assert results[0][1] == results[1][1] and len(results[0][1]) > 4


@pytest.mark.parametrize("picture", [False, True])
def test_fun_control(pairs, picture):
    """Without a reference picture ComfyUI adds no tokens, where VideoX-Fun adds those of a blank one; as ComfyUI."""
    inputs = {"control_video": pixels(LENGTH, 1)} | ({"ref_image": pixels(1, 2)} if picture else {})
    given, _, latent = execute(nodes_wan.Wan22FunControlToVideo, **inputs)
    assert ("reference_latents" in given[0][1]) is picture
    controlled = assert_equal(pairs("wan2.2_fun_control_high_noise_14B"), given, latent)
    plain, *_ = execute(nodes_wan.Wan22FunControlToVideo, control_video=pixels(LENGTH, 5))
    other = assert_equal(pairs("wan2.2_fun_control_high_noise_14B"), plain, latent)
    assert difference(other, controlled) > 1e-3


def test_fun_control_with_stretched_positions(pairs):
    from comfy_extras.nodes_rope import ScaleROPE

    given, _, latent = execute(
        nodes_wan.Wan22FunControlToVideo, control_video=pixels(LENGTH, 1), ref_image=pixels(1, 2)
    )
    pair = pairs("wan2.2_fun_control_high_noise_14B")
    scaled = tuple(ScaleROPE.execute(patcher, 1.5, 1.0, 2.0, 0.5, 0.75, 3.0).args[0] for patcher in pair)
    assert difference(assert_equal(scaled, given, latent), assert_equal(pair, given, latent)) > 1e-4


def test_fun_control_5b(pairs):
    vae = Vae(48, 16)
    given, _, latent = execute(
        nodes_wan.Wan22FunControlToVideo, vae=vae, control_video=pixels(LENGTH, 1), ref_image=pixels(1, 2)
    )
    assert_equal(pairs("wan2.2_fun_control_5B"), given, latent)


def test_fun_control_21_with_clip_vision(pairs):
    given, _, latent = execute(
        nodes_wan.WanFunControlToVideo,
        control_video=pixels(LENGTH, 1),
        start_image=pixels(1, 2),
        clip_vision_output=Vision(),
    )
    assert_equal(pairs("wan2.1_fun_control"), given, latent)


def camera(pose: str, **size: int):
    given = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, **size}
    return nodes_camera_trajectory.WanCameraEmbedding.execute(pose, **given).args[0]


@pytest.mark.parametrize("name", ["wan2.2_fun_camera_low_noise_14B", "wan2.1_fun_camera"])
def test_fun_camera(pairs, name):
    pair, results = pairs(name), []
    vision = Vision() if "2.1" in name else None
    for pose in ("Pan Left", "Zoom In"):
        inputs = {"start_image": pixels(1, 2), "camera_conditions": camera(pose)}
        inputs["clip_vision_output"] = vision
        given, _, latent = execute(nodes_wan.WanCameraImageToVideo, **inputs)
        results.append(assert_equal(pair, given, latent))
    still, *_ = execute(nodes_wan.WanCameraImageToVideo, start_image=pixels(1, 2), clip_vision_output=vision)
    results.append(assert_equal(pair, still, latent))
    assert difference(results[0], results[1]) > 1e-4 and difference(results[0], results[2]) > 1e-4


def test_a_camera_path_of_another_size_is_refused(pairs):
    ours, _ = pairs("wan2.2_fun_camera_low_noise_14B")
    given, _, latent = execute(nodes_wan.WanCameraImageToVideo, camera_conditions=camera("Pan Up", width=96))
    with pytest.raises(InputError, match="camera") as caught:
        predict(ours, given, latent["samples"])
    assert (caught.value.found, caught.value.expected) == ("3 latent frames of 96x32 pixels", "3 of 64x32")


def test_fun_inpainting(pairs):
    given, _, latent = execute(nodes_wan.WanFunInpaintToVideo, start_image=pixels(1, 1), end_image=pixels(1, 2))
    assert_equal(pairs("wan2.2_fun_inpaint_high_noise_14B"), given, latent)
