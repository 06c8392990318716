"""A run that was cut short, or whose low side changed, goes on with the answers of the run before: bit for bit."""

from __future__ import annotations

import gc
import re
from contextlib import contextmanager, nullcontext

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management
from comfy.model_management import InterruptProcessingException
from comfy_extras.nodes_advanced_samplers import SamplerLCMUpscale
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from comfy_extras.nodes_custom_sampler import SamplerDPMAdaptative, SamplerDPMPP_SDE, SamplerER_SDE, SamplerSASolver
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from wancore.nodes.bridge import kept_files, replay, segments
from wancore.nodes.bridge.guider import DualExpertGuider
from wancore.nodes.bridge.replay import ReplayLog, digest
from wancore.nodes.bridge.schedule import OFFICIAL_SOLVERS, with_shift
from wancore.nodes.bridge.switching import SegmentedGuider
from wancore.wan_core import attention

from .native_wan import native_model
from .test_guider import NAMES, dual, pair, relative, run

__all__ = ["pair"]
pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(autouse=True)
def any_disk(monkeypatch):
    """However full the disk of the machine is."""
    monkeypatch.setattr(kept_files, "LEAST_FREE", 0)


def logged(pair, folder, low_side="low", high_side="high", **options):
    """A guider whose calls are logged as the sampler node does it, and its log."""
    log = ReplayLog(folder)
    models = log.on(pair[0], high_side), log.on(pair[1], low_side, lasting=False)
    return dual(*models, **options), log


@contextmanager
def counted(model):
    """Counts the calls of a transformer."""
    calls = []
    handle = model.model.diffusion_model.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def interrupt_after(last):
    """As ComfyUI does where Stop was pressed."""

    def callback(step, *_):
        if step == last:
            raise InterruptProcessingException

    return callback


@contextmanager
def without_memory(model):
    """The transformer runs out of memory in the middle of its second forward."""
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError

    handle = model.model.diffusion_model.blocks[1].register_forward_pre_hook(fail)
    yield
    handle.remove()
    gc.collect()  # a model that dies during the next call would shorten the list that it walks along
    comfy.model_management.unload_all_models()  # as ComfyUI does then


def check_resume(pair, folder, sampler, steps=4, kind=DualExpertGuider):
    """Bit for bit, in a new guider with a new log, as in a new process: the answers come from the files."""

    def sample(guider, callback=None):
        torch.manual_seed(11)  # as ComfyUI does where it makes the noise: some solvers go on drawing from it
        return run(guider, sampler, steps=steps, callback=callback)

    whole = sample(dual(*pair, kind=kind))
    for error in (InterruptProcessingException, torch.OutOfMemoryError):
        stopped = error is InterruptProcessingException
        guider, log = logged(pair, folder / error.__name__, kind=kind)
        with nullcontext() if stopped else without_memory(pair[1]), pytest.raises(error):
            counts_steps = sampler not in ("dpm_fast", "dpm_adaptive")
            sample(guider, interrupt_after(2 if counts_steps else 0) if stopped else None)
        made = log.calls - (not stopped)
        guider, log = logged(pair, folder / error.__name__, kind=kind)
        with counted(pair[0]) as high, counted(pair[1]) as low:
            assert torch.equal(sample(guider), whole), error
        assert 0 < made <= log.replayed < log.calls, error
        assert len(high) + len(low) == log.calls - log.replayed, "one forward for both prompts of a call"


@pytest.mark.parametrize("name", [*NAMES, *OFFICIAL_SOLVERS])
def test_every_solver_resumes(pair, tmp_path, name):
    """After a Stop between two steps, and after a lack of memory within one of the low expert."""
    check_resume(pair, tmp_path, name, steps=6 if name.startswith("uni_pc") else 4)  # which asks low once in four


SET_UP = {  # by ComfyUI's nodes, otherwise than their names do it
    "a larger latent on the way": lambda _: SamplerLCMUpscale.execute(2.0, 2, "bilinear"),
    "other noise": lambda _: SamplerDPMPP_SDE.execute(0.7, 0.9, 0.4, "gpu"),
    "adaptive with noise": lambda _: SamplerDPMAdaptative.execute(3, 0.2, 0.03, 0.1, 0.0, 1.0, 0.0, 0.81, 0.5, 1.0),
    "stages": lambda _: SamplerER_SDE.execute("Reverse-time SDE", 2, 0.8, 1.0),
    "noise in a part": lambda model: SamplerSASolver.execute(model, 1.0, 0.2, 0.8, 1.0, 3, 4, True, False),
}


@pytest.mark.parametrize("case", SET_UP)
def test_solvers_with_settings_resume(pair, tmp_path, case):
    check_resume(pair, tmp_path, SET_UP[case](pair[0]).result[0])


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "euler_ancestral"])
def test_two_runs_resume(pair, tmp_path, name):
    check_resume(pair, tmp_path, name, kind=SegmentedGuider)


def test_answers_come_back_as_they_lay_in_memory(tmp_path, monkeypatch):
    """Of what a solver draws and adds up, the order in memory decides; the attention kernels come back, too."""
    agreed = []
    monkeypatch.setattr(attention, "choices", lambda: {"here": "cudnn"})
    monkeypatch.setattr(attention, "agree", agreed.append)
    contiguous = torch.randn(2, 3, 4, 5)
    answer = {"0": contiguous, "1": contiguous.permute(0, 2, 3, 1), "2": contiguous[..., 1:-1]}
    replay.write_answer(tmp_path / "a", answer)
    found = replay.read_answer(tmp_path / "a", torch.device("cpu"))
    for key, tensor in answer.items():
        assert torch.equal(found[key], tensor) and found[key].stride() == tensor.stride()
    assert agreed == [{"here": "cudnn"}]


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "uni_pc", "dpmpp_2m_sde"])
def test_a_change_of_the_low_side_runs_the_low_stage_only(pair, tmp_path, name):
    guider, log = logged(pair, tmp_path)
    run(guider, name)
    other = with_shift(native_model(7), 5.0)
    fresh = run(dual(pair[0], other, cfg=(4.0, 2.0)), name)
    with counted(pair[0]) as high, counted(other) as low:
        guider, log = logged((pair[0], other), tmp_path, "another low", cfg=(4.0, 2.0))
        assert torch.equal(run(guider, name), fresh)
        assert not high and low and log.replayed


def test_finish_keeps_the_high_stage_only(pair, tmp_path):
    guider, log = logged(pair, tmp_path)
    run(guider)
    assert log.calls == 4
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(("change", "same"), [("high", 0), ("start", 0), ("cfg", 1), ("steps", 0)])
def test_other_runs_are_not_answered(pair, tmp_path, change, same):
    """The first call of a run does not know yet at what guidance: its answer is the same."""
    guider, log = logged(pair, tmp_path)
    run(guider)
    guidance = (2.0, 3.0) if change == "cfg" else (4.0, 3.0)
    guider, log = logged(pair, tmp_path, high_side="another" if change == "high" else "high", cfg=guidance)
    run(guider, steps=5 if change == "steps" else 4, start=1 if change == "start" else None)
    assert log.replayed == same


def test_a_damaged_answer_is_run_again(pair, tmp_path):
    whole = run(dual(*pair))
    guider, log = logged(pair, tmp_path)
    with pytest.raises(InterruptProcessingException):
        run(guider, callback=interrupt_after(3))
    damaged = sorted(tmp_path.iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    guider, log = logged(pair, tmp_path)
    assert torch.equal(run(guider), whole) and log.replayed == 3


def test_guidance_with_a_memory_and_windows_resume_too(pair, tmp_path):
    arguments = (5, 4, "standard_static", 1, False, "pyramid", False)
    for number, change in enumerate(
        (
            lambda model: APG.execute(model, 1.0, 5.0, 0.9).result[0],
            lambda model: WanContextWindowsManualNode.execute(model, *arguments).result[0],
            lambda model: LazyCacheNode.execute(model, 0.8, 0.1, 0.95, False).result[0],
        )
    ):
        models = [change(model) for model in pair]
        whole, folder = run(dual(*models), steps=8), tmp_path / str(number)
        assert relative(whole, run(dual(*pair), steps=8)) > 1e-6 or number == 1
        guider, _ = logged(models, folder)
        with pytest.raises(InterruptProcessingException):
            run(guider, steps=8, callback=interrupt_after(5))
        guider, log = logged(models, folder)
        assert torch.equal(run(guider, steps=8), whole) and log.replayed


def test_a_step_cache_inside_the_model_is_not_replayed(pair, tmp_path):
    models = [EasyCacheNode.execute(model, 0.8, 0.1, 0.95, False).result[0] for model in pair]
    whole = run(dual(*models), steps=12)
    for _ in range(2):
        guider, log = logged(models, tmp_path)
        assert torch.equal(run(guider, steps=12), whole) and not log.replayed
    assert not list(tmp_path.iterdir())


def test_oldest_answers_go_first_and_those_of_the_run_stay(pair, tmp_path, monkeypatch):
    guider, log = logged(pair, tmp_path)
    with pytest.raises(InterruptProcessingException):
        run(guider, callback=interrupt_after(3))
    size = next(tmp_path.iterdir()).stat().st_size
    monkeypatch.setattr(replay, "BUDGET", 6 * size)
    before = set(tmp_path.iterdir())
    guider, log = logged(pair, tmp_path, "another low", "another high")
    with pytest.raises(InterruptProcessingException):
        run(guider, callback=interrupt_after(3))
    after = set(tmp_path.iterdir())
    assert set(log.used) <= after and len(after) == 6 and len(before & after) == 2


def test_a_full_disk_only_costs_the_resume(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_files, "LEAST_FREE", 2**62)
    guider, log = logged(pair, tmp_path)
    assert torch.equal(run(guider), run(dual(*pair))) and not list(tmp_path.iterdir())
    assert re.search(r"^\nnot kept for a resume: .* GiB of this disk are free", log.report()) and not log.report()


def test_a_folder_that_cannot_be_written_only_costs_the_resume(pair, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    guider, log = logged(pair, tmp_path / "file" / "below")
    assert torch.equal(run(guider), run(dual(*pair))) and not log.used


def test_a_disk_that_fills_up_only_costs_the_resume(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log, clips = ReplayLog(tmp_path / "steps"), segments.Segments(tmp_path / "clips")
    large = torch.randn(1000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        log.keep("a", {"0": large})
        clips.keep("a", (large, large))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not log.used and not clips.used
    assert not list(log.folder.iterdir()) and not list(clips.folder.iterdir())


def test_digest_tells_contents_apart():
    one = torch.zeros(2, 3)
    values = [
        one,
        one.reshape(3, 2),
        one.half(),
        [one, one],
        {"a": one},
        {"b": one},
        1,
        1.0,
        True,
        "1",
        None,
        [1],
        (1, 2),
    ]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(one) == digest(one.clone()) and digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(TypeError):
        digest({"hooks": object()})
