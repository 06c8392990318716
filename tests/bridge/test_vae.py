"""Our VAEs in ComfyUI's VAE object: configured and behaving as the native one for the same file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from wancore.tests.comfy_host import import_comfy

import_comfy()

import comfy.ldm.wan.vae2_2
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
from wancore.nodes.bridge import decoding
from wancore.nodes.bridge.decoding import decode_chunks
from wancore.nodes.bridge.images import encode_parts
from wancore.nodes.bridge.vae import load_vae
from wancore.wan_core.errors import WeightsFileError, WrongModelError
from wancore.wan_core.planner import memory
from wancore.wan_core.planner.memory import Working
from wancore.wan_core.vae.wan21 import VAE21Config, WanVAE21
from wancore.wan_core.vae.wan22 import VAE22Config, WanVAE22

from ..core.diffusers_vae import diffusers_vae_name
from ..nodes.native import native_vae_on_meta

WIDTH = 8
SHAPES = ((1, 16, 1, 8, 8), (2, 16, 4, 8, 8), (1, 16, 21, 60, 104), (1, 3, 5, 480, 832))


def native21(path: Path) -> comfy.sd.VAE:
    """What ComfyUI's loader makes of the file."""
    tensors, metadata = comfy.utils.load_torch_file(str(path), return_metadata=True)
    return comfy.sd.VAE(sd=tensors, metadata=metadata)


def native22(path: Path) -> comfy.sd.VAE:
    """The native object of the published file, with a narrow native module in it: ComfyUI fixes its widths."""
    vae = native_vae_on_meta("vae22.json")
    module = comfy.ldm.wan.vae2_2.WanVAE(dim=WIDTH, dec_dim=WIDTH, z_dim=48, temperal_downsample=[False, True, True])
    module.load_state_dict(comfy.utils.load_torch_file(str(path)))
    vae.first_stage_model = module.eval().requires_grad_(False).to(vae.vae_dtype)
    vae.patcher = comfy.model_patcher.CoreModelPatcher(vae.first_stage_model, vae.device, vae.patcher.offload_device)
    vae.size = None
    vae.model_size()
    return vae


@dataclass(frozen=True)
class Kind:
    """One of the two VAEs, narrow."""

    file: str
    model: Callable[[], torch.nn.Module]
    native: Callable[[Path], comfy.sd.VAE]
    channels: int
    compression: int  # pixels per latent row
    size: tuple[int, int]  # of the tests' pictures, rows and columns
    tiled: tuple[int, int]
    levels: bool  # as diffusers_vae_name takes it
    diffusers: tuple[str, ...]  # some of its names there


KINDS = (
    Kind(
        "wan_2.1_vae.safetensors",
        lambda: WanVAE21(VAE21Config(encoder_dim=WIDTH, decoder_dim=WIDTH)),
        native21,
        16,
        8,
        (48, 40),
        (96, 80),
        False,
        ("decoder.up_blocks.0.upsamplers.0.time_conv.weight",),
    ),
    Kind(
        "wan2.2_vae.safetensors",
        lambda: WanVAE22(VAE22Config(encoder_dim=WIDTH, decoder_dim=WIDTH)),
        native22,
        48,
        16,
        (64, 32),
        (96, 96),
        True,
        (
            "encoder.down_blocks.1.downsampler.time_conv.weight",
            "decoder.up_blocks.0.upsampler.resample.1.bias",
        ),
    ),
)


@pytest.fixture(scope="module", params=KINDS, ids=("2.1", "2.2"))
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def weights(kind: Kind) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    out = {}
    for name, parameter in kind.model().requires_grad_(False).state_dict().items():
        noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
        spread = (3 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        out[name] = 1 + 0.2 * noise if name.endswith("gamma") else noise * spread
    out["decoder.head.2.weight"] *= 0.2  # most pixels within 0..1
    return out


@pytest.fixture(scope="module")
def path(kind: Kind, weights: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vae") / kind.file
    save_file(weights, file)
    return file


@pytest.fixture(scope="module")
def native(kind: Kind, path: Path) -> comfy.sd.VAE:
    return kind.native(path)


@pytest.fixture(scope="module")
def ours(path: Path) -> comfy.sd.VAE:
    return load_vae(path)


@pytest.fixture(autouse=True)
def as_in_a_node() -> Iterator[None]:
    with torch.inference_mode():
        yield


def images(frames: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.rand(frames, *size, 3, generator=torch.Generator().manual_seed(frames))


def close(ours: torch.Tensor, native: torch.Tensor) -> None:
    assert ours.shape == native.shape
    assert ours.dtype == native.dtype
    assert (ours - native).norm() <= 1e-5 * native.norm()


def behaviour(name: str, value: Any) -> Any:
    """What an attribute comes to: callables by their results on samples."""
    if isinstance(value, tuple):
        return tuple(behaviour(name, part) for part in value)
    if not callable(value):
        return value
    if name.startswith("memory_used"):
        return [value(shape, dtype) for shape in SHAPES for dtype in (torch.float32, torch.bfloat16)]
    if name.startswith("process_"):
        return value(torch.linspace(-2, 2, 9)).tolist()
    return [value(frames) for frames in range(130)]


def test_every_attribute_is_the_native_one(ours: comfy.sd.VAE, native: comfy.sd.VAE):
    replaced = {"first_stage_model", "patcher"}
    assert vars(ours).keys() == vars(native).keys()
    for name in vars(native).keys() - replaced:
        assert behaviour(name, vars(ours)[name]) == behaviour(name, vars(native)[name]), name


def test_the_patcher_is_the_native_one(ours: comfy.sd.VAE, native: comfy.sd.VAE, kind: Kind):
    assert type(ours.patcher) is type(native.patcher)
    for name in ("load_device", "offload_device", "hook_mode", "size"):
        assert getattr(ours.patcher, name) == getattr(native.patcher, name), name
    assert ours.model_size() == native.model_size()
    for name in ("is_dynamic", "spacial_compression_decode", "spacial_compression_encode"):
        if hasattr(native, name):
            assert getattr(ours, name)() == getattr(native, name)(), name
    assert ours.temporal_compression_decode() == native.temporal_compression_decode() == 4
    assert ours.spacial_compression_decode() == native.spacial_compression_decode() == kind.compression
    assert ours.latent_channels == native.latent_channels == kind.channels


def test_weights_and_their_types(ours: comfy.sd.VAE, native: comfy.sd.VAE):
    expected = native.get_sd()
    assert ours.get_sd().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.get_sd().items())
    assert {tensor.dtype for tensor in ours.get_sd().values()} == {ours.vae_dtype}


@pytest.mark.parametrize("frames", [1, 5, 7, 13])
def test_encode_and_decode_equal_native(ours: comfy.sd.VAE, native: comfy.sd.VAE, frames: int, kind: Kind):
    latent = native.encode(images(frames, kind.size))
    close(ours.encode(images(frames, kind.size)), latent)
    close(ours.decode(latent), native.decode(latent))


def test_sizes_and_channels_are_cut_as_natively(ours: comfy.sd.VAE, native: comfy.sd.VAE, kind: Kind):
    odd = kind.size[0] + 3, kind.size[1] + 5
    pictures = torch.cat((images(5, odd), torch.zeros(5, *odd, 1)), dim=-1)
    close(ours.encode(pictures), native.encode(pictures))


def test_batches(ours: comfy.sd.VAE, native: comfy.sd.VAE, kind: Kind):
    latent = torch.cat((native.encode(images(5, kind.size)), native.encode(images(5, kind.size).flip(0))))
    close(ours.decode(latent), native.decode(latent))
    close(ours.first_stage_model.decode(latent), native.first_stage_model.decode(latent))


def test_tiles(ours: comfy.sd.VAE, native: comfy.sd.VAE, kind: Kind):
    pixels, tiles = images(9, kind.tiled), {"tile_x": 64, "tile_y": 64, "overlap": 16, "tile_t": 8, "overlap_t": 4}
    latent = native.encode_tiled(pixels, **tiles)
    close(ours.encode_tiled(pixels, **tiles), latent)
    small = {"tile_x": 6, "tile_y": 6, "overlap": 2, "tile_t": 2, "overlap_t": 1}
    close(ours.decode_tiled(latent, **small), native.decode_tiled(latent, **small))


def test_decoded_chunks_are_the_clip(ours: comfy.sd.VAE, kind: Kind):
    latent = torch.cat((ours.encode(images(9, kind.size)), ours.encode(images(9, kind.size).flip(0))))
    chunks = list(decode_chunks(ours, latent))
    assert [tuple(chunk.shape) for chunk in chunks] == [(frames, *kind.size, 3) for frames in (1, 4, 4)] * 2
    whole = ours.decode(latent)
    close(torch.cat(chunks), whole.flatten(0, 1))
    assert whole.min() >= 0
    assert whole.max() <= 1
    assert ((whole > 0) & (whole < 1)).float().mean() > 0.5  # not clamped away


def test_chunks_of_a_native_vae(native: comfy.sd.VAE, kind: Kind):
    latent = native.encode(images(5, kind.size))
    chunks = list(decode_chunks(native, latent))
    assert len(chunks) == 1
    close(chunks[0], native.decode(latent)[0])


def test_tiles_take_over_when_memory_runs_out(
    path: Path, native: comfy.sd.VAE, caplog: pytest.LogCaptureFixture, cleared: list[torch.nn.Module], kind: Kind
):
    vae, calls = load_vae(path), []
    latent = native.encode(images(9, kind.size))

    def fail_once(module: torch.nn.Module, arguments: tuple) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")

    vae.first_stage_model.decoder.register_forward_pre_hook(fail_once)
    frames = list(decode_chunks(vae, latent))
    assert [chunk.shape[0] for chunk in frames] == [1, 8]
    close(torch.cat(frames), native.decode(latent)[0])  # the tiles are larger than the frame
    assert "in tiles" in caplog.text and cleared == [vae.first_stage_model]


def test_what_does_not_fit_is_decoded_in_tiles(path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind):
    """Without an attempt at whole frames; smaller tiles where these do not fit either; nearly the same picture."""
    vae, sizes = load_vae(path), []
    latent = vae.encode(images(9, (128, 160)))
    whole = vae.decode(latent)[0]
    scale = vae.spacial_compression_decode()
    monkeypatch.setattr(decoding, "VAE_WORKING", {scale: Working(0.0, 1e15)})
    monkeypatch.setattr(decoding, "OVERLAP", 2 * scale)
    monkeypatch.setattr(decoding, "LEAST_TILE", 32)
    halves = iter([(96, 128), (96, 80)])
    monkeypatch.setattr(decoding, "tile", lambda *_: next(halves))

    def refuse_large(module: torch.nn.Module, arguments: tuple) -> None:
        sizes.append(tuple(arguments[0].shape[-2:]))
        if arguments[0].shape[-2] * scale > 96:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")

    vae.first_stage_model.decoder.register_forward_pre_hook(refuse_large)
    frames = torch.cat(list(decode_chunks(vae, latent)))
    assert sizes[0] == (128 // scale, 96 // scale) and set(sizes[1:]) == {(80 // scale, 96 // scale)}
    assert frames.shape == whole.shape
    assert float((frames - whole).abs().mean()) < 0.02


def test_what_does_not_fit_is_encoded_in_tiles(path: Path, cleared: list[torch.nn.Module], kind: Kind):
    """After one attempt at whole frames."""
    vae, sizes = load_vae(path), []
    clip = 2 * images(5, (256, 320)).movedim(-1, 0)[None] - 1
    parts = [(clip[:, :, :1], 1), (clip[:, :, 1:], 1)]
    whole = encode_parts(vae, parts, 5)

    def refuse_large(module: torch.nn.Module, arguments: tuple) -> None:
        sizes.append(tuple(arguments[0].shape[-2:]))
        if sizes[-1] == sizes[0]:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")

    vae.first_stage_model.encoder.register_forward_pre_hook(refuse_large)
    tiled = encode_parts(vae, parts, 5)
    assert sizes.count(sizes[0]) == 1 and tiled.shape == whole.shape and cleared == [vae.first_stage_model]
    assert float((tiled - whole).abs().mean()) < 0.1 * float(whole.abs().mean())


def test_tiles_that_fail_are_not_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind):
    """However much room there seemed to be."""
    vae, sizes = load_vae(path), []
    latent = vae.encode(images(1, (128, 160)))
    scale = vae.spacial_compression_decode()
    for module in (decoding, memory):
        monkeypatch.setattr(module, "LEAST_TILE", 2 * scale)
        monkeypatch.setattr(module, "OVERLAP", scale)

    def refuse(module: torch.nn.Module, arguments: tuple) -> None:
        sizes.append(tuple(arguments[0].shape[-2:]))
        raise comfy.model_management.OOM_EXCEPTION("out of memory")

    vae.first_stage_model.decoder.register_forward_pre_hook(refuse)
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        list(decoding._in_tiles(vae, latent, 1e12))
    areas = [rows * columns for rows, columns in sizes]
    assert sizes[-1] == (2, 2) and all(small < large for large, small in itertools.pairwise(areas))


def test_weights_that_give_way_are_room(path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of Dynamic VRAM on the same device, and the VAE's own, which are needed once."""
    vae, management = load_vae(path), comfy.model_management

    def other(size: int, *, dynamic: bool, device: str = "cpu") -> SimpleNamespace:
        calls = {"is_dynamic": lambda: dynamic, "loaded_size": lambda: size}
        return SimpleNamespace(model=object(), load_device=torch.device(device), **calls)

    own = other(7, dynamic=True)  # a clone, which has the same weights there
    own.model = vae.patcher.model
    monkeypatch.setattr(vae.patcher, "loaded_size", vae.model_size)
    others = [other(1000, dynamic=True), other(200, dynamic=False), other(30, dynamic=True, device="meta"), None, own]
    monkeypatch.setattr(management, "loaded_models", lambda: others)
    monkeypatch.setattr(management, "get_free_memory", lambda device: 5)
    assert decoding._room(vae) == 1005


def test_other_errors_are_not_swallowed(path: Path):
    vae = load_vae(path)
    with pytest.raises(RuntimeError, match="channels"):
        list(decode_chunks(vae, torch.zeros(1, 7, 2, 4, 4)))


def test_a_chosen_dtype(path: Path, native: comfy.sd.VAE, kind: Kind):
    vae = load_vae(path, dtype=torch.bfloat16)
    assert vae.vae_dtype == torch.bfloat16
    assert {tensor.dtype for tensor in vae.get_sd().values()} == {torch.bfloat16}
    latent = native.encode(images(5, kind.size))
    assert (vae.decode(latent) - native.decode(latent)).abs().mean() < 0.02
    again = vae.patcher.cached_patcher_init
    assert again[0](*again[1]).model.state_dict().keys() == native.get_sd().keys()
    assert next(again[0](*again[1], disable_dynamic=True).model.parameters()).dtype == torch.bfloat16


def test_prefixed_files(weights: dict[str, torch.Tensor], native: comfy.sd.VAE, tmp_path: Path, kind: Kind):
    save_file({f"vae.{name}": tensor for name, tensor in weights.items()}, tmp_path / "checkpoint.safetensors")
    latent = native.encode(images(5, kind.size))
    close(load_vae(tmp_path / "checkpoint.safetensors").decode(latent), native.decode(latent))


def test_diffusers_files(weights: dict[str, torch.Tensor], ours: comfy.sd.VAE, tmp_path: Path, kind: Kind):
    folder = tmp_path / "Wan2.2-T2V-A14B-Diffusers" / "vae"
    folder.mkdir(parents=True)
    renamed = {diffusers_vae_name(name, levels=kind.levels): tensor for name, tensor in weights.items()}
    assert set(kind.diffusers) < set(renamed)
    assert not renamed.keys() & {name for name in weights if "conv" not in name}
    save_file(renamed, folder / "diffusion_pytorch_model.safetensors")
    for path in (folder, folder / "diffusion_pytorch_model.safetensors"):
        theirs = load_vae(path)
        latent = theirs.encode(images(5, kind.size))
        assert torch.equal(latent, ours.encode(images(5, kind.size))) and torch.equal(
            theirs.decode(latent), ours.decode(latent)
        )


def test_wrong_files(weights: dict[str, torch.Tensor], tmp_path: Path):
    file = tmp_path / "broken.safetensors"
    save_file({name: tensor for name, tensor in weights.items() if name != "conv1.bias"}, file)
    with pytest.raises(WrongModelError, match=r"conv1\.bias"):
        load_vae(file)
    save_file({"shared.weight": torch.zeros(4, 4)}, file)
    with pytest.raises(WrongModelError, match="no VAE"):
        load_vae(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(WeightsFileError):
        load_vae(file)
