"""Wan Long Video: what each segment is sampled from, what comes from the disk, and the video that is decoded."""

from __future__ import annotations

import os
import re
import shutil
import weakref
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.latent_formats
import comfy.model_management
import folder_paths
from comfy.patcher_extension import WrappersMP
from make_pocket import build, write
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from wancore.nodes.bridge import clip_run, decode, kept_files, sampling, segments
from wancore.nodes.bridge.clips import CLIPS
from wancore.nodes.bridge.decode import decode_clips
from wancore.nodes.bridge.decoding import decode_chunks
from wancore.nodes.bridge.facts import model_facts
from wancore.nodes.bridge.images import condition_on
from wancore.nodes.bridge.latents import empty_latent, grid_of
from wancore.nodes.bridge.long_clips import LATENTS, PICTURE
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.switching import AUTO, TWO_RUNS
from wancore.nodes.bridge.text_encoder import load_text_encoder
from wancore.nodes.bridge.vae import load_vae
from wancore.nodes.bridge.video import FrameVideo
from wancore.nodes.long_video import WanCoreLongVideo
from wancore.pocket import family, world
from wancore.wan_core.errors import InputError, OutputError, WrongModelError
from wancore.wan_core.image_conditioning import Keyframe
from wancore.wan_core.long_video import JUMP
from wancore.wan_core.sampling.presets import Settings
from wancore.wan_core.tasks import T2V_21, TASKS

from .native import run

pytestmark = pytest.mark.usefixtures("worker")
SIZE, PLACES, OVERLAP = (64, 48), 3, 2  # pixels, latent frames of a segment and of its overlap
WIDGETS = {
    "next_prompts": "", "segments": 3, "overlap": 4 * OVERLAP, "seeds": "", "drift_limit": 0.0, "handover": PICTURE
}  # fmt: skip
MEMBERS = {
    "high": family.T2V_HIGH, "low": family.T2V_LOW, "i2v": family.I2V_HIGH, "ti2v": family.TI2V, "s2v": family.S2V,
    "vae": family.VAE, "vae22": family.VAE22, "text": family.TEXT_ENCODER,
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """Where this test's finished segments are."""
    monkeypatch.setattr(segments, "segments_folder", lambda: tmp_path)
    monkeypatch.setattr(clip_run, "segments_folder", lambda: tmp_path)
    monkeypatch.setattr(kept_files, "LEAST_FREE", 0)
    return tmp_path


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("models")
    for member in MEMBERS.values():
        write(build(member, fp8=True), place / member.name, member.metadata)
    return {name: str(place / member.name) for name, member in MEMBERS.items()}


@pytest.fixture(scope="module")
def pair(paths):
    with torch.inference_mode():
        return load_model(paths["high"]), load_model(paths["low"])


@pytest.fixture(scope="module")
def vae(paths):
    with torch.inference_mode():
        return load_vae(paths["vae"])


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What the nodes show."""
    texts: list[str] = []
    for module in (clip_run, decode):
        monkeypatch.setattr(module, "show_on_node", lambda _, text: texts.append(text))
    return texts


def text(seed: int = 8) -> list:
    return [[torch.randn(1, 512, family.TEXT_DIM, generator=torch.Generator().manual_seed(seed)), {}]]


def planned(vae, latent=None, prompts=None, clip=None, **widgets):
    """The node's outputs for a first segment of PLACES latent frames."""
    latent = latent or empty_latent(grid_of(vae), SIZE, 1 + 4 * (PLACES - 1), 1)
    positive, negative = prompts or (text(), text(9))
    inputs = {"positive": positive, "negative": negative, "latent": latent, "vae": vae, "clip": clip}
    return run(WanCoreLongVideo, **inputs, **{**WIDGETS, **widgets}).args


def sampled(models, outputs, graph=None, switching=AUTO, **settings):
    """The LATENT and the denoised estimate of a run over the plan."""
    positive, negative, latent = outputs
    wishes = Settings(**{"steps": 2, "solver": "euler", "schedule": "simple", "boundary": 0.0, **settings})
    one = sampling.Run(5)
    plan = sampling.plan(sampling.Pair.of(*models), wishes, one, switching)
    return clip_run.sample(plan, positive, negative, latent, one, "7", graph=graph)


def graph(seed: int = 0) -> dict:
    """The prompt that the sampler, node 7, is part of."""
    return {
        "1": {"class_type": "Loader", "inputs": {"seed": seed}},
        "7": {"class_type": "WanCoreKSampler", "inputs": {"high": ["1", 0], "low": ["1", 1]}},
    }


def seen_by(model) -> tuple[object, list[dict]]:
    """A clone of a MODEL that notes what the transformer is given."""
    seen: list[dict] = []

    def look(apply, args):
        seen.append({"x": args["input"], "t": args["timestep"], **args["c"]})
        return apply(args["input"], args["timestep"], **args["c"])

    clone = model.clone()
    clone.set_model_unet_function_wrapper(look)
    return clone, seen


def test_a_blank_latent_of_another_vae_becomes_the_models(paths):
    """As a native sampler takes it: here 64x48 pixels in 16 channels, from ComfyUI's node for its video models."""
    latent = {"samples": torch.zeros(1, 16, PLACES, 6, 8), "downscale_ratio_spacial": 8}
    outputs = planned(load_vae(paths["vae22"]), latent=latent, segments=2, handover=LATENTS)
    out, _ = sampled((load_model(paths["ti2v"]), None), outputs)
    assert out["samples"].shape == (1, 48, 2 * PLACES - OVERLAP, 3, 4)


@pytest.mark.parametrize("task", [task for task in TASKS.values() if task.id.startswith("t2v-")], ids=lambda t: t.id)
def test_every_text_to_video_model_goes_on_from_latents(task, pair, vae):
    plan = planned(vae, segments=2)[2][CLIPS]
    plan.check(replace(model_facts(pair[0]), task=task))


def test_a_wan21_file_goes_on_from_latents(paths, vae, tmp_path):
    """The tensors are those of a T2V-A14B expert; the file's name tells it from one."""
    file = shutil.copy(paths["high"], tmp_path / "wan2.1_t2v_14B.safetensors")
    model = load_model(str(file))
    assert model_facts(model).task is T2V_21
    out, _ = sampled((model, None), planned(vae, segments=2, handover=LATENTS))
    assert out["samples"].shape[2] == 2 * PLACES - OVERLAP


@pytest.mark.parametrize("handover", [PICTURE, LATENTS])
def test_one_segment_is_the_plain_run(pair, vae, handover):
    positive, negative, latent = planned(vae, segments=1, handover=handover)
    plain = {name: value for name, value in latent.items() if name != CLIPS}
    ours, theirs = (sampled(pair, (positive, negative, each))[0] for each in (latent, plain))
    assert torch.equal(ours["samples"], theirs["samples"])


@pytest.mark.parametrize("handover", [PICTURE, LATENTS])
def test_segments_go_on_from_the_latents_before(pair, vae, said, handover):
    """Three segments; what the second one is masked to is what the first one ended with, exactly."""
    outputs = planned(vae, handover=handover)
    out, denoised = sampled(pair, outputs)
    new = PLACES - OVERLAP
    assert out["samples"].shape[2] == PLACES + 2 * new and "noise_mask" not in out
    assert torch.equal(out["samples"], denoised["samples"])
    first = sampled(pair, planned(vae, segments=1))[0]["samples"]
    assert torch.equal(out["samples"][:, :, :PLACES], first)
    plan = outputs[2][CLIPS].begun().going_on(0, first, first)[0]
    job = plan.job(1, outputs[2], *outputs[:2])
    exact = slice(0 if handover == LATENTS else 1, OVERLAP)
    assert torch.equal(job.latent["samples"][:, :, exact], first[:, :, new:][:, :, exact])
    assert job.latent["noise_mask"].mean(dim=(0, 1, 3, 4)).tolist() == [0.0] * OVERLAP + [1.0] * new
    if handover == PICTURE:
        *_, frames = decode_chunks(vae, first[:, :, : new + 1])
        assert torch.equal(job.latent["samples"][:, :, 0], vae.encode(frames[-1:]).reshape(first[:, :, 0].shape))
    assert said[0].split("\n")[-3:-2] == ["drift from segment 1, by segment:"]
    assert re.fullmatch(r"2: \d\.\d\d", said[0].split("\n")[-2])


def test_each_segment_has_its_prompt_and_seed(pair, vae, paths):
    clip = load_text_encoder(paths["text"])
    outputs = planned(vae, clip=clip, next_prompts="a red circle\n---\n\n---\na blue square", segments=0, seeds="3: 77")
    plan = outputs[2][CLIPS]
    assert plan.count == 4 and [plan.seed(number, 5) for number in range(4)] == [5, 6, 77, 8]
    texts = [plan._prompted(number, outputs[0])[0][0] for number in range(4)]
    assert torch.equal(texts[0], outputs[0][0][0]) and torch.equal(texts[1], texts[2])
    assert not torch.equal(texts[2], texts[3]) and not torch.equal(texts[0], texts[1])
    high, seen = seen_by(pair[0])
    sampled((high, None), planned(vae, clip=clip, next_prompts="a red circle", segments=2), steps=1, guidance_high=1.0)
    assert not torch.equal(seen[0]["c_crossattn"], seen[1]["c_crossattn"])


def test_finished_segments_come_from_the_disk(pair, vae, folder):
    """The same again runs no model; another seed for segment 3 runs segment 3 only; damage is mended."""
    high, seen = seen_by(pair[0])
    models, short = (high, None), {"steps": 1, "guidance_high": 1.0}
    out, _ = sampled(models, planned(vae), graph(), **short)
    assert len(seen) == 3 and len(list(folder.glob("*.safetensors"))) == 3 and len(list(folder.iterdir())) == 3
    again, _ = sampled(models, planned(vae), graph(), **short)
    assert len(seen) == 3 and torch.equal(again["samples"], out["samples"])
    other, _ = sampled(models, planned(vae, seeds="3: 77"), graph(), **short)
    kept = PLACES + 1
    assert len(seen) == 4 and torch.equal(other["samples"][:, :, :kept], out["samples"][:, :, :kept])
    assert not torch.equal(other["samples"][:, :, kept:], out["samples"][:, :, kept:])
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    mended, _ = sampled(models, planned(vae), graph(), **short)
    assert len(seen) == 7 and torch.equal(mended["samples"], out["samples"])
    sampled(models, planned(vae), graph(seed=1), **short)  # another loader
    sampled(models, planned(vae), None, **short)  # a graph that is not known
    assert len(seen) == 13


def test_a_full_disk_only_costs_the_segments_there(pair, vae, folder, monkeypatch):
    whole = sampled(pair, planned(vae))[0]["samples"]
    monkeypatch.setattr(kept_files, "LEAST_FREE", 2**62)
    assert torch.equal(sampled(pair, planned(vae), graph())[0]["samples"], whole) and not list(folder.iterdir())


def test_drift_is_corrected_over_the_limit_only(pair, vae, said):
    """Under the limit nothing changes, bit for bit; over it the drift becomes less."""
    free, under, over = (sampled(pair, planned(vae, drift_limit=limit))[0]["samples"] for limit in (0.0, 10.0, 0.01))
    assert torch.equal(free, under) and not torch.equal(free, over)
    assert torch.equal(free[:, :, :PLACES], over[:, :, :PLACES]), "the first segment is what the others are held to"
    before, after = map(float, re.findall(r"^2: (\d\.\d\d), corrected to (\d\.\d\d)$", said[2], re.MULTILINE)[0])
    assert before > after


def test_image_to_video_is_told_what_is_known(paths, vae):
    """Mask and picture channels hold the overlap, and the end picture moves from the first segment to the last."""
    high, seen = seen_by(load_model(paths["i2v"]))
    frames = 1 + 4 * (PLACES - 1)
    pictures = [Keyframe(index, torch.rand(1, 3, SIZE[1], SIZE[0]) * 2 - 1) for index in (0, frames - 1)]
    prompts = condition_on((text(), text(9)), vae, pictures, frames, SIZE)
    out, _ = sampled((high, None), planned(vae, prompts=prompts, segments=3), steps=1, guidance_high=1.0)
    masks = [given["c_concat"][0, :4, :, 0, 0].T.tolist() for given in seen]
    none, all_four = [0.0] * 4, [1.0] * 4
    assert masks[0] == [all_four, none, none] and masks[1] == [all_four, all_four, none]
    assert masks[2] == [all_four, all_four, [0.0, 0.0, 0.0, 1.0]]
    known = comfy.latent_formats.Wan21().process_in(out["samples"])[:, :, PLACES - 1]
    assert torch.allclose(seen[1]["c_concat"][:, 4:, 1].float(), known, atol=0.02), "exact but for the model's bfloat16"
    grey = comfy.latent_formats.Wan21().process_in(vae.encode(torch.full((frames, SIZE[1], SIZE[0], 3), 0.5)))
    assert torch.allclose(seen[0]["c_concat"][:, 4:, 2].float(), grey[:, :, 2], atol=0.05), "no end picture there"
    assert not torch.allclose(seen[2]["c_concat"][:, 4:, 2].float(), grey[:, :, 2], atol=0.05)


def test_the_5b_holds_what_is_known_clean(paths):
    vae, times = load_vae(paths["vae22"]), []

    def look(executor, *args, **kwargs):
        times.append(args[1].flatten().tolist())
        return executor(*args, **kwargs)

    model = load_model(paths["ti2v"])
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    latent = empty_latent(grid_of(vae), (64, 64), 1 + 4 * (PLACES - 1), 1)
    sampled((model, None), planned(vae, latent=latent, segments=2), steps=1, guidance_high=1.0)
    assert times == [[1000.0], [0.0] * OVERLAP + [1000.0] * (PLACES - OVERLAP)]


def test_a_batch_goes_on_item_by_item(pair, vae):
    latent = empty_latent(grid_of(vae), SIZE, 1 + 4 * (PLACES - 1), 2)
    out, _ = sampled(pair, planned(vae, latent=latent, segments=2, drift_limit=0.05))
    assert out["samples"].shape[:3] == (2, 16, 2 * PLACES - OVERLAP)
    videos, _ = decode_clips(out, vae, None, with_images=False)
    assert [video.get_frame_count() for video in videos] == [13, 13]


def test_a_long_video_is_decoded_while_it_is_saved(pair, vae, said):
    """The same frames as all at once, without them in memory; its parts and components, too."""
    out, _ = sampled(pair, planned(vae, segments=4), steps=1)
    (video,), none = decode_clips(out, vae, None, with_images=False)
    (whole,), images = decode_clips(out, vae, None, with_images=True)
    assert none is None and isinstance(whole, FrameVideo) and not hasattr(video, "frames")
    frames = 1 + 4 * (PLACES + 3 - 1)
    assert (video.get_frame_count(), video.get_dimensions()) == (frames, SIZE) == (len(images), SIZE)
    said.clear()
    assert torch.equal(torch.cat(list(video.chunks())), whole.frames)
    assert said[0].startswith("seams")
    assert torch.equal(video.get_components().images, whole.get_components().images)
    part = video.as_trimmed(0.5, 0.5)
    assert torch.equal(torch.cat(list(part.chunks())), whole.frames[8:16]) and part.get_frame_count() == 8
    again = part.as_trimmed(0.25)
    assert torch.equal(torch.cat(list(again.chunks())), whole.frames[12:16])
    file = BytesIO()
    video.save_to(file)
    with av.open(BytesIO(file.getvalue())) as container:
        assert sum(1 for _ in container.decode(video=0)) == frames
        assert container.streams.video[0].average_rate == Fraction(16)
    seams = [line for line in said if line.startswith("seams")]
    assert seams and len(set(seams)) == 1 and "segment 3: " in seams[0]


def test_a_broken_seam_is_noticed(vae, said):
    """The latents of another clip in the place of what goes on."""
    plan, scenes = replace(planned(vae)[2][CLIPS], latents=4, overlap=1), np.random.default_rng(3)
    _, *clips = (world.clip(world.draw_scene(scenes), frames=37, height=SIZE[1], width=SIZE[0]) for _ in range(3))
    whole, other = (vae.encode(torch.from_numpy(clip).float()) for clip in clips)
    torn = torch.cat([whole[:, :, :4], other[:, :, 4:]], dim=2)
    for samples in (whole, torn):
        decode_clips({"samples": samples, CLIPS: plan}, vae, None, with_images=True)
    (good, *_), (bad, *_) = ([float(score) for score in re.findall(r": (\d+\.\d)", text)] for text in said)
    assert bad >= JUMP > good
    assert "(a jump" in said[1].split("\n")[1] and "(a jump" not in said[0]


class PeakBytes(TorchDispatchMode):
    """The largest number of bytes in the tensors that are alive at a time, of those that are made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, list[int]] = {}  # by address: tensors on it, and bytes
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for item in tree_flatten(result)[0]:
            if isinstance(item, torch.Tensor) and (size := item.untyped_storage().nbytes()):
                place = item.untyped_storage().data_ptr()
                known = self.alive.setdefault(place, [0, size])
                self.now += size if known[0] == 0 else 0
                known[0] += 1
                weakref.finalize(item, self._gone, place)
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, place: int) -> None:
        known = self.alive[place]
        known[0] -= 1
        if not known[0]:
            self.now -= self.alive.pop(place)[1]


def peak_of_saving(vae, count: int, path: Path) -> tuple[int, int]:
    """Bytes at the peak while a video of so many segments is decoded and written, and bytes of its frames.

    The scores of seams take 48 frames, as they are at this size and reduced at larger ones; 4 segments are as many.
    """
    timeline = segments.Timeline()
    for number in range(count):
        timeline.append(torch.zeros(1, 16, 5 if number == 0 else 3, SIZE[1] // 8, SIZE[0] // 8))
    plan = replace(planned(vae, segments=count)[2][CLIPS], latents=5)
    latent = {"samples": timeline.joined(), CLIPS: plan}
    with PeakBytes() as tensors:
        (video,), _ = decode_clips(latent, vae, None, with_images=False)
        video.save_to(str(path))
    return tensors.peak, video.get_frame_count() * 3 * SIZE[0] * SIZE[1]


def test_memory_does_not_grow_with_the_length(vae, tmp_path):
    short, long = (peak_of_saving(vae, count, tmp_path / "clip.mp4") for count in (4, 12))
    assert long[1] > 2.5 * short[1] and long[0] < 1.02 * short[0]


def test_latents_of_all_segments_lie_in_a_file(pair, vae):
    """One tensor as any other; its bytes are the file's, which is gone from the folder already."""
    out, _ = sampled(pair, planned(vae), steps=1)
    assert not list(Path(folder_paths.get_temp_directory()).glob("wan_latents_*"))
    copy = out["samples"].clone()
    with PeakBytes() as tensors:
        assert out["samples"].mean().isfinite()
    assert tensors.peak < copy.nbytes and torch.equal(out["samples"] * 2 - out["samples"], copy)


class FullDisk(segments.Timeline):
    """A file whose disk is full after the first segment, of which the last bytes are still in Python's buffer."""

    def append(self, samples):
        super().append(samples)
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, self.file.fileno())
        os.close(full)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_named_and_both_files_go(pair, vae, monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    monkeypatch.setattr(clip_run, "Timeline", FullDisk)
    with pytest.raises(OutputError) as caught:
        sampled(pair, planned(vae), steps=1)
    assert caught.value.where == str(tmp_path) and "clips" in caught.value.remedy
    assert not list(tmp_path.glob("wan_latents_*"))


def test_a_second_file_that_cannot_be_opened_takes_the_first_along(pair, vae, monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("no folder")
    folders = iter([tmp_path, tmp_path / "taken"])
    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(next(folders)))
    with pytest.raises(OutputError, match="name of the folder"):
        sampled(pair, planned(vae), steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_every_input_is_explained(request):
    schema = WanCoreLongVideo.define_schema()
    page = (request.config.rootpath / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
    assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs])
    assert all(f"`{entry.id}`" in page for entry in schema.inputs)


class TestErrors:
    def raises(self, kind, where, vae, **inputs):
        with pytest.raises(kind) as caught:
            planned(vae, **inputs)
        assert caught.value.where == where
        return caught.value

    def test_prompts_without_an_encoder(self, vae):
        self.raises(InputError, "clip", vae, next_prompts="a cat")

    def test_an_overlap_as_long_as_the_segment(self, vae):
        error = self.raises(InputError, "latent", vae, overlap=4 * PLACES)
        assert "9 frames" in error.found and "more than 9" in error.expected

    def test_an_overlap_that_is_no_latent_frame(self, vae):
        assert "8 or 12" in self.raises(InputError, "overlap", vae, overlap=10).remedy

    def test_a_latent_with_clips(self, vae):
        self.raises(InputError, "latent", vae, latent=planned(vae)[2])

    def test_before_anything_runs(self):
        assert WanCoreLongVideo.validate_inputs(seeds="3: 77", overlap=12) is True
        assert "seeds" in WanCoreLongVideo.validate_inputs(seeds="x", overlap=12)
        assert "overlap" in WanCoreLongVideo.validate_inputs(seeds=None, overlap=6)

    def test_a_model_with_clips_of_its_own(self, paths, vae):
        with pytest.raises(WrongModelError) as caught:
            sampled((load_model(paths["s2v"]), None), planned(vae))
        assert "S2V" in caught.value.found and "T2V" in caught.value.expected

    @pytest.fixture
    def no_loading(self, monkeypatch):
        monkeypatch.setattr(comfy.model_management, "load_models_gpu", lambda *args, **more: pytest.fail("loaded"))

    def test_two_runs(self, pair, vae, no_loading):
        with pytest.raises(InputError) as caught:
            sampled(pair, planned(vae), switching=TWO_RUNS, shift=1.0)
        assert (caught.value.where, caught.value.found) == ("switching", "two runs, as set")

    def test_the_vae_of_another_model(self, pair, paths, vae, no_loading):
        with pytest.raises(WrongModelError) as caught:
            sampled(pair, planned(load_vae(paths["vae22"]), latent=empty_latent(grid_of(vae), SIZE, 9, 1)))
        assert caught.value.where == "vae" and "48" in caught.value.found

    def test_the_length_was_changed_on_the_way(self, pair, vae):
        out, _ = sampled(pair, planned(vae))
        with pytest.raises(InputError, match="Wan Long Video"):
            decode_clips({**out, "samples": out["samples"][:, :, :-1]}, vae, None, with_images=False)
