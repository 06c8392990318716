"""The animated preview: every latent frame, by ComfyUI's setting, encoded by whoever sends it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageChops
from torch.utils._python_dispatch import TorchDispatchMode

from ..comfy_host import import_comfy

import_comfy()

import comfy.latent_formats
import comfy.taesd.taehv
import comfy.utils
import folder_paths
import latent_preview
from comfy.cli_args import LatentPreviewMethod, args
from safetensors.torch import save_file
from wancore.nodes.bridge import live_view, tiny_vae
from wancore.nodes.bridge.tiny_vae import Spread
from wancore.wan_core.errors import WrongModelError
from wancore.wan_core.weights import inspect, require
from wancore.wan_core.weights.doctor import diagnose
from wancore.wan_core.weights.families import VAE

from .native_wan import native_model

FORMATS = {16: comfy.latent_formats.Wan21, 48: comfy.latent_formats.Wan22}
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def method(monkeypatch):
    """The user's setting: factors. Nothing is known of a tiny VAE."""
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(tiny_vae, "_MEASURED", {})


def clip(channels=16, frames=6):
    return torch.randn(1, channels, frames, 6, 10, generator=torch.Generator().manual_seed(1))


def saved(image) -> Image.Image:
    """As ComfyUI's server encodes a preview."""
    file = io.BytesIO()
    image[1].save(file, format=image[0], quality=95, compress_level=1)
    return Image.open(file)


@pytest.mark.parametrize("channels", FORMATS)
def test_all_frames_move_at_the_rate_of_the_clip(channels):
    previewer = latent_preview.get_previewer(CPU, FORMATS[channels]())
    kind, image, largest = live_view.preview_of(previewer, clip(channels), frame_rate=16)
    picture = saved((kind, image))
    assert (kind, largest, picture.n_frames, picture.size) == ("PNG", None, 6, (320, 192))
    assert picture.info["duration"] == pytest.approx(1000 * 21 / 16 / 6, abs=1)
    frames = [(picture.seek(i), picture.convert("RGB"))[1] for i in range(6)]
    assert all(ImageChops.difference(frames[0], frame).getbbox() for frame in frames[1:])


def test_first_frame_is_the_native_preview(monkeypatch):
    previewer = latent_preview.get_previewer(CPU, FORMATS[16]())
    monkeypatch.setattr(live_view, "LONGEST_SIDE", 10)
    ours = saved(live_view.preview_of(previewer, clip(), 16)[:2]).convert("RGB")
    native = previewer.decode_latent_to_preview(clip())
    assert max(high for _, high in ImageChops.difference(ours, native).getextrema()) <= 1


def test_still_latents_keep_the_native_preview():
    previewer = latent_preview.get_previewer(CPU, FORMATS[16]())
    kind, image, _ = live_view.preview_of(previewer, clip(frames=1), 16)
    assert kind == "JPEG" and isinstance(image, Image.Image)


@pytest.fixture(name="tiny_vae")
def tiny_vae_file(tmp_path, monkeypatch):
    """A file in models/vae_approx and the method taesd."""
    torch.manual_seed(0)
    tiny = comfy.taesd.taehv.TAEHV(latent_channels=16)
    weights = {
        name: (torch.randn_like(weight) / max(1, weight[0].numel()) ** 0.5).half()
        for name, weight in tiny.state_dict().items()
    }
    save_file(weights, tmp_path / "lighttaew2_1.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("vae_approx", None)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)


@pytest.mark.parametrize(
    ("name", "channels", "dtype", "shows"),
    [
        ("lighttaew2_1", 16, torch.bfloat16, True),
        ("lighttaew2_1", 16, torch.float16, False),
        ("taew2_1", 16, torch.bfloat16, False),
        ("lighttaew2_2", 48, torch.float16, True),
        ("taew2_2", 48, torch.float16, False),
    ],
)
def test_the_doctor_says_what_the_preview_does(name, channels, dtype, shows, tmp_path, monkeypatch):
    path = tmp_path / f"{name}.safetensors"
    weights = comfy.taesd.taehv.TAEHV(latent_channels=channels).state_dict()
    save_file({key: weight.to(dtype).contiguous() for key, weight in weights.items()}, path)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("vae_approx", None)
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.TAESD)
    previewer, latent = latent_preview.get_previewer(CPU, FORMATS[channels]()), clip(channels)
    found = isinstance(previewer, latent_preview.TAEHVPreviewerImpl)
    as_they_are = found and torch.equal(previewer.taesd.first_stage_model.process_in(latent), latent)
    diagnosis = diagnose([path])
    assert diagnosis.healthy == as_they_are == shows
    assert "tiny VAE for previews" in diagnosis.report() and "models/vae_approx" in diagnosis.report()
    assert shows or f"lightx2v/Autoencoders/resolve/main/lighttaew2_{channels // 32 + 1}.saf" in diagnosis.report()
    with pytest.raises(WrongModelError, match="a tiny VAE for previews"):
        require(inspect(path), VAE)


def previews_of(step: float, latent: torch.Tensor, previews: live_view.Previews) -> Image.Image:
    """What is shown after a step of so many seconds."""
    previews.since -= step
    return saved(previews.of(latent))


@pytest.mark.usefixtures("tiny_vae")
def test_tiny_vae_shows_the_whole_clip():
    """As it decodes the whole at once, where one step has time for all of it."""
    latent = clip(frames=3)
    previews = live_view.Previews(native_model(1), 16, latent)
    assert isinstance(previews.previewer, latent_preview.TAEHVPreviewerImpl)
    picture = previews_of(1e4, latent, previews)
    assert picture.n_frames == 9 and picture.size == (320, 192)
    whole = live_view.small(previews.previewer.taesd.decode(latent)[0])
    for number, frame in enumerate(whole):
        picture.seek(number)
        native = Image.fromarray(frame.numpy()).resize(picture.size, Image.Resampling.BILINEAR)
        assert ImageChops.difference(native, picture.convert("RGB")).getbbox() is None


@pytest.mark.usefixtures("tiny_vae")
def test_a_step_without_time_shows_the_factors():
    latent = clip(frames=3)
    assert previews_of(0, latent, live_view.Previews(native_model(1), 16, latent)).n_frames == 3


@pytest.mark.usefixtures("tiny_vae")
def test_without_memory_the_factors_show_the_rest_of_the_run():
    latent = clip(frames=3)
    previews = live_view.Previews(native_model(1), 16, latent)

    def full(_):
        raise torch.OutOfMemoryError

    previews.spread.decode = full
    assert [previews_of(1e4, latent, previews).n_frames for _ in range(2)] == [3, 3]


class Clocked:
    """A tiny VAE by whose clock decoding takes `base` seconds and `each` to a latent frame; pictures are its values.

    The first call of each length takes `starting` seconds more, as on a GPU that prepares its kernels.
    """

    def __init__(self, each, base=0.0, starting=0.0):
        self.each, self.base, self.now = each, base, 0.0
        self.starting, self.lengths = starting, set()
        self.decoded = []
        self.run()

    def run(self):
        """Begins a run."""
        self.spread = Spread(self.decode, 41, self, clock=lambda: self.now)
        self.spread.measure(torch.zeros(1, 1, 1, 1, 1))

    def decode(self, latent):
        length = latent.shape[2]
        self.decoded.append(length)
        self.now += self.base + self.each * length + self.starting * (length not in self.lengths)
        self.lengths.add(length)
        first, *rest = latent.flatten(2)[0, 0].tolist()
        return [first, *(value for value in rest for _ in range(4))]

    def step(self, seconds, frames):
        latent = torch.arange(1.0, 1 + frames).view(1, 1, frames, 1, 1)
        return self.spread.of(latent, seconds, lambda part: (-part.flatten()).tolist())


def test_what_starting_takes_is_not_taken_for_what_a_frame_costs():
    """By what an H200 measured: 6 ms to a decoding, 5 to a frame, 200 to the first one of a length."""
    slow = Clocked(each=0.005, base=0.006, starting=0.2)
    assert slow.step(1.5, 3) == [1, *4 * [-2], *4 * [-3]]


def test_only_the_first_run_measures():
    """Later ones know it as it was measured, whatever a run has learned for itself."""
    tiny = Clocked(each=0.005, base=0.006, starting=0.2)
    measured = tiny.decoded
    assert sum(measured) == 12
    tiny.spread.allowance.took(1, 99.0)
    tiny.decoded = []
    tiny.run()
    assert tiny.decoded == [1]
    assert tiny.step(1.5, 3) == [1, *4 * [-2], *4 * [-3]]


def test_a_slow_first_call_is_measured_again():
    """What it took may have been the reading of the file."""
    tiny = Clocked(each=0.005, starting=2.0)
    assert tiny.decoded == [1] and tiny.step(3.0, 3) == [-1, -2, -3]
    tiny.run()
    assert tiny.step(3.0, 3) == [1, *4 * [2], *4 * [3]]


@pytest.mark.usefixtures("tiny_vae")
def test_what_was_measured_is_of_one_size_device_type_and_vae(monkeypatch):
    latents, decode = [], live_view.decoded
    monkeypatch.setattr(live_view, "decoded", lambda vae, latent: latents.append(latent) or decode(vae, latent))

    def frames(latent):
        latents.clear()
        previews = live_view.Previews(native_model(1), 16, latent)
        return previews.previewer.taesd, sum(latent.shape[2] for latent in latents)

    vae, first = frames(clip(frames=3))
    assert first == 12 and frames(clip(frames=9))[1] == 1
    assert frames(clip(frames=3)[..., :8])[1] == 12
    monkeypatch.setattr(live_view, "LONGEST_SIDE", 8)
    assert frames(clip(frames=3))[1] == 12
    kinds = [live_view.kind_of(vae, clip())]
    for change in ({"device": torch.device("cuda:1")}, {"vae_dtype": torch.bfloat16}):
        kinds.append(live_view.kind_of(SimpleNamespace(**{**vars(vae), **change}), clip()))
    wider = comfy.taesd.taehv.TAEHV(latent_channels=16, decoder_space_upscale=(True, True, False))
    kinds.append(live_view.kind_of(SimpleNamespace(**{**vars(vae), "first_stage_model": wider}), clip()))
    assert len(set(kinds)) == len(kinds)


def test_each_step_adds_the_frames_that_it_has_time_for():
    """Those of the factors are negative here; a frame in the middle is decoded with the one before it."""
    slow = Clocked(each=1.0)
    assert slow.step(99, 3) == [-1, -2, -3]
    assert slow.step(110, 3) == [1, *4 * [-2], *4 * [-3]]
    assert slow.step(199, 3) == [1, *4 * [-2], *4 * [-3]]
    assert slow.step(210, 3) == [1, *4 * [2], *4 * [-3]]
    assert slow.step(210, 3) == [1, *4 * [2], *4 * [3]]
    assert slow.spread.turn == 0 and Clocked(each=1.0).step(310, 3) == [1, *4 * [2], *4 * [3]]


def test_no_step_pays_more_than_a_hundredth():
    for each, base, step in ((0.002, 0, 1.0), (0.0048, 0.0067, 2.24), (0.03, 0.01, 10.0), (0.0005, 0.001, 1.0)):
        tiny = Clocked(each, base)
        for _ in range(40):
            start = tiny.now
            frames = tiny.step(step, 21)
            assert tiny.now - start <= 0.01 * step + 1e-9
        assert len(frames) == 41 and min(frames) > 0, "all were decoded"


@pytest.mark.usefixtures("tiny_vae")
def test_without_memory_to_prepare_there_is_no_vae(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    latent = clip(frames=3)
    monkeypatch.setattr(live_view, "decoded", full)
    assert previews_of(1e4, latent, live_view.Previews(native_model(1), 16, latent)).n_frames == 3


class Operations(TorchDispatchMode):
    """The operations that are computed, with the types of what they compute from: each is a kernel to load."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view:
            self.seen.add((str(func), *(arg.dtype for arg in args if isinstance(arg, torch.Tensor))))
        return func(*args, **(kwargs or {}))


NEW = """
import io, sys, time
sys.path[:0] = sys.argv[1:]
import pack
pack.import_pack()
from comfy_host import import_comfy
import_comfy()
import torch
from comfy.cli_args import LatentPreviewMethod, args
from native_wan import native_model
from wancore.nodes.bridge import live_view
torch.set_num_threads(1)
args.preview_method = LatentPreviewMethod.Latent2RGB
for frames in (1, 21):
    latent = torch.zeros(1, 16, frames, 60, 104)
    previews = live_view.Previews(native_model(1), 16, latent)
    modules, seconds = set(sys.modules), []
    for _ in range(4):
        start = time.thread_time()
        kind, image, _ = previews.of(latent)
        image.save(io.BytesIO(), format=kind, quality=95, compress_level=1)
        seconds.append(time.thread_time() - start)
    print(*seconds, *sorted(set(sys.modules) - modules))
"""


def test_the_first_picture_of_a_process_costs_what_a_later_one_does():
    """Made and encoded, a still one and a clip; nothing is imported for it."""
    folders = [str(Path(__file__).parents[depth] / name) for depth, name in ((2, "tools"), (1, ""), (0, ""))]
    process = subprocess.run([sys.executable, "-c", NEW, *folders], capture_output=True, text=True, check=True)
    for line in process.stdout.splitlines()[-2:]:
        first, *later = map(float, line.split())
        assert len(later) == 3 and first < 1.5 * max(later) + 0.002


@pytest.mark.parametrize("vae", [False, True], ids=["factors", "tiny VAE"])
def test_the_first_picture_needs_no_kernel_that_is_not_loaded(vae, request):
    """On a GPU the loading, not the picture, is what takes a hundred milliseconds."""
    if vae:
        request.getfixturevalue("tiny_vae")
    latent = torch.randn(1, 16, 3, 6, 10)
    with Operations() as prepared:
        previews = live_view.Previews(native_model(1), 16, latent)
    with Operations() as first:
        previews.since -= 1e4
        previews.of(latent)
    assert first.seen and first.seen <= prepared.seen


@pytest.fixture
def sent(monkeypatch):
    images = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, image, node_id=None: images.append(image)
    )
    return images


def test_off_where_the_user_wants_none(sent, monkeypatch):
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.NoPreviews)
    estimate = {}
    live_view.prepare_callback(native_model(1), clip(), estimate, 16)(0, clip(), clip(), 4)
    assert sent == [None] and estimate["x0"].shape == clip().shape


def test_the_sampling_thread_does_not_encode(sent, monkeypatch):
    """And pays under 1 % of a step of a second, at 81 frames of 832 x 480."""
    threads = []
    native = Image.Image.save
    monkeypatch.setattr(Image.Image, "save", lambda *a, **k: (threads.append(threading.get_ident()), native(*a, **k)))
    x0 = torch.randn(1, 16, 21, 60, 104)
    callback = live_view.prepare_callback(native_model(1), x0, {}, 16)
    callback(0, x0, x0, 4)
    start = time.thread_time()
    callback(1, x0, x0, 4)
    assert time.thread_time() - start < 0.01
    assert not threads and sent[1][1].size == (320, 185)
    assert saved(sent[1]).n_frames == 21 and threads
