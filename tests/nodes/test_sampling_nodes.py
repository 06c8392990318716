"""The sampler nodes on tiny native models: defaults, errors before loading, what is shown, parts for own graphs."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management
import comfy.sample
import comfy.samplers
import folder_paths
from comfy.ldm.wan.model import WanModel
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from wancore.nodes import official
from wancore.nodes import sampling as nodes
from wancore.nodes.bridge import kept_files, preview, sampling
from wancore.nodes.bridge.facts import DISTILLED
from wancore.nodes.bridge.progress import Part
from wancore.wan_core.errors import InputError, WrongModelError
from wancore.wan_core.sampling.presets import Settings

from ..bridge.native_wan import native_model, noise, prompts, relative

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def pair():
    return native_model(1), native_model(2)


@pytest.fixture
def shown(monkeypatch):
    texts = []
    monkeypatch.setattr(preview, "send_text", lambda node_id, text: texts.append((node_id, text)))
    monkeypatch.setattr(preview, "show_on_node", lambda node_id, text: texts.append((node_id, text)))
    monkeypatch.setattr(sampling, "send_text", lambda node_id, text: texts.append((node_id, text)))
    monkeypatch.setattr(sampling, "show_on_node", lambda node_id, text: texts.append((node_id, text)))
    return texts


def empty(**extra):
    return {"samples": torch.zeros_like(noise()), **extra}


def defaults(node):
    """The node's widget values as the front end would send them."""
    inputs = node.INPUT_TYPES()
    out = {}
    for name, (kind, *options) in inputs["required"].items():
        settings = options[0] if options else {}
        if "default" in settings:
            out[name] = settings["default"]
        elif isinstance(kind, list):
            out[name] = kind[0]
    return out


def execute(node, *, prompt=None, **inputs):
    """Runs a node's body with its default widgets, as the executor would."""
    stand_in = SimpleNamespace(hidden=SimpleNamespace(unique_id="7", prompt=prompt))
    return node.execute.__func__(stand_in, **{**defaults(node), **inputs}).result


def sampled(pair, latent=None, **inputs):
    positive, negative = prompts()
    high, low = pair
    common = {"high": high, "low": low, "positive": positive, "negative": negative}
    return execute(nodes.WanCoreKSampler, **common, latent=latent or empty(), **inputs)


def distilled(model):
    clone = model.clone()
    clone.set_attachments(DISTILLED, True)
    return clone


def test_every_input_and_output_is_explained():
    for node in [*nodes.NODES, *official.NODES]:
        schema = node.define_schema()
        assert schema.description and schema.node_id.startswith("WanCore") and schema.display_name.startswith("Wan")
        assert all(entry.tooltip for entry in [*schema.inputs, *schema.outputs]), node
        assert {entry.id for entry in schema.inputs} == set(inspect.signature(node.execute).parameters)


def test_the_guider_tells_of_its_own_inputs_alone():
    """It has neither a preset nor steps, which tooltips of the sampler speak of."""
    inputs = nodes.WanCoreDualExpertGuider.INPUT_TYPES()["required"]
    told = {name: options[0]["tooltip"] for name, (_, *options) in inputs.items()}
    assert not [name for name, text in told.items() if "preset" in text or "steps on high" in text]


def test_every_node_has_a_help_page(request):
    folder = request.config.rootpath / "web" / "docs"
    for node in [*nodes.NODES, *official.NODES]:
        text = (folder / f"{node.define_schema().node_id}.md").read_text(encoding="utf-8")
        assert all(f"`{entry.id}`" in text for entry in node.define_schema().inputs), node
        assert len(text.splitlines()) <= 60


def test_defaults_are_official_and_shown(pair, shown):
    latent, denoised = sampled(pair, steps=8, latent=empty(wan_frame_rate=16))
    assert latent["wan_frame_rate"] == 16 and torch.isfinite(latent["samples"]).all()
    assert shown[0] == ("7", "8 steps: 6 high + 2 low, cfg 4 / 3, shift 12")
    steps = [text.split("\n")[1] for _, text in shown[1:-1]]
    assert [line.split(",")[:2] for line in steps] == [
        [f"step {i + 1} of 8", f" {'high' if i < 6 else 'low'} expert"] for i in range(8)
    ]
    assert all(line.endswith("left") for line in steps) and shown[-1][1].split("\n")[1].startswith("sampled in")
    assert torch.equal(latent["samples"], denoised["samples"]), "at sigma 0 the latent is its own estimate"


def test_distilled_pair_samples_fast(pair, shown):
    sampled([distilled(model) for model in pair])
    assert shown[0][1] == "4 steps: 2 high + 2 low, cfg 1, shift 5"


def test_one_distilled_expert_is_official_and_said(pair, shown):
    sampled((distilled(pair[0]), pair[1]), steps=2)
    assert shown[0][1].split("\n") == [
        "2 steps: 2 high + 0 low, cfg 4 / 3, shift 12",
        "only the high model is distilled to a few steps",
    ]


def test_one_model_alone(pair, shown):
    sampled((pair[0], None), steps=3)
    assert shown[0][1] == "3 steps, cfg 4, shift 12"
    assert "expert" not in shown[1][1]


def test_stopped_run_goes_on_with_the_same_result(pair):
    plain = {"steps": 6, "sampler_name": "euler", "scheduler": "simple", "seed": 4}
    whole = sampled(pair, **plain)[0]
    latent, denoised = sampled(pair, **plain, end_at_step=2)
    assert relative(latent["samples"], denoised["samples"]) > 0.1, "LATENT keeps its noise"
    rest = sampled(pair, **plain, latent=latent, start_at_step=2, add_noise=False)[0]
    assert relative(rest["samples"], whole["samples"]) < 1e-5


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_equals_two_native_samplers(pair, scheduler):
    """With the native node for the shift, split where our boundary falls."""
    shifted = [ModelSamplingSD3().patch(model, 5.0)[0] for model in pair]
    sigmas = comfy.samplers.KSampler(shifted[0], 6, torch.device("cpu"), "euler", scheduler, 1.0).sigmas
    steps, split = len(sigmas) - 1, int((sigmas[:-1] >= 0.875).sum())
    assert 0 < split < steps
    common = {"sampler_name": "euler", "scheduler": scheduler, "positive": prompts()[0], "negative": prompts()[1]}
    first = comfy.sample.prepare_noise(empty()["samples"], 4)
    latent = comfy.sample.sample(
        shifted[0], first, 6, 4.0, latent_image=empty()["samples"], last_step=split, disable_pbar=True, seed=4, **common
    )
    native = comfy.sample.sample(
        shifted[1], 0 * first, 6, 3.0, latent_image=latent, start_step=split, disable_pbar=True, seed=4, **common
    )
    ours = sampled(pair, steps=6, sampler_name="euler", scheduler=scheduler, shift=5.0, seed=4)[0]["samples"]
    assert relative(ours, native) < 1e-5


@pytest.mark.parametrize("scheduler", ["official", "simple"])
def test_denoise_starts_from_the_latent(pair, scheduler):
    start, other = torch.randn(noise().shape), torch.randn(noise().shape)

    def difference(denoise):
        settings = {
            "steps": 2,
            "scheduler": scheduler,
            "denoise": denoise,
            "shift": 3.0,
            "cfg_high": 1.0,
            "cfg_low": 1.0,
        }
        return relative(*(sampled(pair, latent={"samples": each}, **settings)[0]["samples"] for each in (start, other)))

    assert difference(1.0) < 1e-2 < 0.1 < difference(0.1), "the latent counts only where its noise is partial"


@pytest.mark.parametrize("start", [4, 40])
def test_a_start_past_the_last_step_runs_none(pair, shown, start):
    latent = empty(samples=noise())
    out, _ = sampled(pair, latent=latent, steps=4, start_at_step=start)
    assert torch.equal(out["samples"], latent["samples"])
    assert sampling.plan(sampling.Pair.of(*pair), Settings(steps=4), sampling.Run(0, start_at_step=start)).text == (
        "0 steps: 0 high + 0 low, cfg 4 / 3, shift 12"
    )


def test_the_step_on_the_boundary_is_told_as_the_high_experts(pair, shown):
    sigmas = torch.tensor([1.0, 0.9, 0.0])  # 0.9 in float32 is below 0.9
    report = preview.RunReport(None, "", sigmas, 0.9)
    assert sampling.steps_per_expert(sigmas, 0.9) == (2, 0)
    assert report.line(1, 2, 0.0).startswith("step 2 of 2, high expert")


def test_boundary_in_steps(pair, shown):
    sampled(pair, steps=5, boundary=1.0, sampler_name="euler")
    assert shown[0][1].startswith("5 steps: 1 high + 4 low")


def test_shift_that_is_on_the_models_counts(pair, shown):
    models = [ModelSamplingSD3().patch(model, 3.0)[0] for model in pair]
    sampled(models, steps=2)
    assert shown[0][1].endswith("shift 3")
    sampled(models, steps=2, shift=7.0)
    assert any(text.endswith("shift 7") for _, text in shown)


@pytest.fixture
def nothing_loads(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded before the inputs were checked")

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", refuse)


@pytest.mark.usefixtures("nothing_loads")
class TestErrors:
    def raises(self, kind, where, *args, **kwargs):
        with pytest.raises(kind) as caught:
            sampled(*args, **kwargs)
        assert caught.value.where == where
        return caught.value

    def test_fast_without_distillation(self, pair):
        self.raises(InputError, "preset", pair, preset="fast")

    def test_low_of_another_task(self, pair):
        error = self.raises(WrongModelError, "low", (pair[0], native_model(3, in_dim=36)))
        assert "I2V" in error.found and "T2V" in error.expected and "Wan Load Models" in error.remedy

    def test_latent_of_another_vae(self, pair):
        error = self.raises(InputError, "latent", pair, latent={"samples": noise(channels=48)})
        assert "2.2" in error.found and "2.1" in error.remedy

    @pytest.mark.parametrize(("which", "name"), [(0, "high"), (1, "low")])
    def test_what_is_no_wan(self, pair, which, name):
        models = [*pair]
        models[which] = SimpleNamespace(model=SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1)))
        assert self.raises(WrongModelError, name, models).found == "SimpleNamespace"

    def test_no_model(self, pair):
        assert self.raises(WrongModelError, "high", (None, pair[1])).found == "no model"

    def test_scheduler_without_sigmas(self, pair):
        error = self.raises(InputError, "scheduler", pair, steps=1, scheduler="kl_optimal", sampler_name="euler")
        assert error.found == "kl_optimal with steps 1"

    def test_different_shifts(self, pair):
        models = [ModelSamplingSD3().patch(model, shift)[0] for model, shift in zip(pair, (3.0, 8.0), strict=True)]
        assert "3 and 8" in self.raises(InputError, "shift", models).found

    def test_end_before_start(self, pair):
        self.raises(InputError, "end_at_step", pair, start_at_step=3, end_at_step=3)

    def test_mask_over_two_runs(self, pair):
        latent = empty(noise_mask=torch.ones(1, 1, 3, 8, 8))
        error = self.raises(InputError, "latent", pair, latent=latent, switching="two runs", steps=8)
        assert "one run" in error.remedy

    def test_guider_with_a_boundary_in_steps(self, pair):
        positive, negative = prompts()
        with pytest.raises(InputError) as caught:
            execute(
                nodes.WanCoreDualExpertGuider,
                **dict(zip(("high", "low"), pair, strict=True)),
                positive=positive,
                negative=negative,
                boundary=2.0,
            )
        assert caught.value.where == "boundary"


def test_parts_for_own_graphs_equal_the_sampler(pair):
    positive, negative = prompts()
    (guider,) = execute(
        nodes.WanCoreDualExpertGuider,
        high=pair[0],
        low=pair[1],
        positive=positive,
        negative=negative,
        timesteps="integer",
    )
    (sigmas,) = execute(official.WanCoreOfficialSigmas, steps=8, shift=12.0)
    (sampler,) = execute(official.WanCoreOfficialSampler)
    theirs = SamplerCustomAdvanced.execute(Noise_RandomNoise(4), guider, sampler, sigmas, empty()).result
    ours = sampled(pair, steps=8, seed=4)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a["samples"], b["samples"])


def guider_of(pair, **inputs):
    positive, negative = prompts()
    models = dict(zip(("high", "low"), pair, strict=True))
    return execute(nodes.WanCoreDualExpertGuider, **models, positive=positive, negative=negative, **inputs)[0]


def custom(guider, seed=4):
    (sigmas,) = execute(official.WanCoreOfficialSigmas, steps=8, shift=12.0)
    (sampler,) = execute(official.WanCoreOfficialSampler)
    return SamplerCustomAdvanced.execute(Noise_RandomNoise(seed), guider, sampler, sigmas, empty()).result[0]["samples"]


def test_a_run_of_the_guider_resumes(pair, shown, tmp_path, monkeypatch):
    """Stopped, and gone on with by a guider made anew, as after a restart."""
    monkeypatch.setattr(kept_files, "LEAST_FREE", 0)
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    graph = {"7": {"class_type": "WanCoreDualExpertGuider", "inputs": {"high": "a", "low": "b"}}}
    whole = custom(guider_of(pair))
    for stop in (3, 4):  # in the high stage, and in the low one
        with stopped_after(stop), pytest.raises(StopHereError):
            custom(guider_of(pair, resume=True, prompt=graph))
    guider = guider_of(pair, resume=True, prompt=graph)
    assert torch.equal(custom(guider), whole)
    assert shown[-1][1].endswith("\nsampled, 7 of 8 calls from the log")
    assert torch.equal(custom(guider), whole)
    assert shown[-1][1].endswith("\nsampled, 6 of 8 calls from the log"), "the low stage's answers went with its end"
    assert not torch.equal(custom(guider, seed=5), whole) and shown[-1][1].endswith("\nsampled")


def test_a_run_that_cannot_be_resumed_says_so(pair, shown):
    guider_of(pair, resume=True, prompt={"1": {}})
    assert shown[-1][1].endswith("\nthis run cannot be resumed: the graph is not known")
    sampled(pair, steps=2, resume=True, prompt={"1": {}})
    assert "this run cannot be resumed: the graph is not known" in shown[-1][1].split("\n")
    sampled(pair, steps=2, prompt={"1": {}})
    assert "resumed" not in shown[-1][1]


class StopHereError(Exception):
    pass


@contextmanager
def stopped_after(calls):
    """Stops a run when the transformers have been called so often."""
    seen = []

    def count(module, _):
        if isinstance(module, WanModel):
            seen.append(module)
            if len(seen) > calls:
                raise StopHereError

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    yield
    handle.remove()


def test_segmented_runs_are_explained(pair, shown):
    low = pair[1].clone()
    low.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "somebody", lambda executor, *args, **kw: executor(*args, **kw))
    sampled((pair[0], low), steps=8)
    assert shown[0][1].split("\n")[1] == "in two runs: somebody on the low model is made for a run of its own"
    guider_of((pair[0], low))
    assert shown[-1][1].split("\n")[1].startswith("in two runs: somebody")
    guider_of((pair[0], low), switching="one run")
    assert "two runs" not in shown[-1][1]
    guider_of(pair, switching="two runs")
    assert shown[-1][1].endswith("\nin two runs: as set")


def test_report_counts_the_seconds_left():
    report = preview.RunReport(None, "", torch.tensor([1.0, 0.9, 0.8, 0.6, 0.0]), 0.875)
    report.started = 100.0
    assert report.line(0, 4, 110.0) == "step 1 of 4, high expert, sigma 1.000, 30 s left"
    assert report.line(1, 4, 112.0) == "step 2 of 4, high expert, sigma 0.900, 4 s left"
    assert report.line(3, 4, 116.0) == "step 4 of 4, low expert, sigma 0.600, 0 s left"
    report.part = Part(1, 3)
    assert report.line(3, 4, 116.0).endswith(", 8 s left"), "with those of the last part"


def test_report_tells_the_memory_of_a_gpu(monkeypatch):
    """What others take counts, what PyTorch only keeps for later does not."""
    for name, gigabytes in (("mem_get_info", (10, 24)), ("memory_reserved", 6), ("memory_allocated", 2)):
        value = tuple(2**30 * each for each in gigabytes) if isinstance(gigabytes, tuple) else 2**30 * gigabytes
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert preview.memory_text(torch.device("cuda")) == ", VRAM 10.0 of 24.0 GiB"
    assert preview.memory_text(torch.device("cpu")) == ""


def test_settings_of_the_plan_are_complete(pair):
    plan = sampling.plan(sampling.Pair.of(*pair), Settings(), sampling.Run(seed=0))
    assert len(plan.sigmas) == 41 and plan.text == "40 steps: 26 high + 14 low, cfg 4 / 3, shift 12"
