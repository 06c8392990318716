"""ComfyUI's context windows, the other way to a long video: on our MODEL, both experts, our sampler's guider."""

from __future__ import annotations

import pytest
import torch

from ..comfy_host import import_comfy

import_comfy()

import comfy.sd
import comfy.utils
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_context_windows import WanContextWindowsManualNode
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.schedule import with_shift

from .test_guider import dual, native_sigmas, relative
from .tiny_models import text, write_tiny

pytestmark = pytest.mark.usefixtures("worker")

FRAMES, WINDOW, OVERLAP = 9, 5, 2  # latent frames of the clip, of a window, and of what two of them share


@pytest.fixture(scope="module", params=["t2v_A14B_expert", "i2v_A14B_expert"])
def experts(request, tmp_path_factory):
    """High and low, as ours and as ComfyUI's own."""
    folder = tmp_path_factory.mktemp(request.param)
    files = [write_tiny(folder / f"{seed}.safetensors", request.param, seed=seed) for seed in (1, 2)]
    options = {"dtype": torch.float32}
    ours = [load_model(file, dtype=torch.float32) for file in files]
    return ours, [comfy.sd.load_diffusion_model(file, model_options=options) for file in files]


def windowed(model):
    arguments = (4 * WINDOW - 3, 4 * OVERLAP, "standard_static", 1, False, "pyramid", True)
    return WanContextWindowsManualNode.execute(model, *arguments, retain_first_frame=True).result[0]


def noise(seed=5):
    return torch.randn(1, 16, FRAMES, 8, 8, generator=torch.Generator().manual_seed(seed))


def conds():
    """Prompts with a picture in the first frame, which models of text alone do not read."""
    mask = torch.ones(1, 1, FRAMES, 8, 8)
    mask[:, :, 0] = 0
    picture = {"concat_latent_image": noise(8), "concat_mask": mask}
    return [[[text(seed=seed), dict(picture)]] for seed in (3, 4)]


def run(models):
    """The result of four steps, two on each expert, and the frames that the transformers were given."""
    seen = []

    def look(executor, *args, **kwargs):
        seen.append(args[0].shape[2])
        return executor(*args, **kwargs)

    patchers = [with_shift(model, 5.0) for model in models]
    for patcher in patchers:
        patcher.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "look", look)
    guider = dual(*patchers, conds=conds())
    sigmas = native_sigmas(patchers[0], "simple", "euler", 4, 1.0)
    sampler = comfy.samplers.sampler_object("euler")
    out = guider.sample(noise(), torch.zeros_like(noise()), sampler, sigmas, disable_pbar=True, seed=11)
    return out, seen


def test_windows_on_our_models_equal_those_on_native_ones(experts):
    ours, native = experts
    (mine, seen), (theirs, native_seen) = (run([windowed(model) for model in models]) for models in (ours, native))
    assert relative(mine, theirs) < 1e-4
    assert seen == native_seen and max(seen) == WINDOW + 1, "one frame before a window is seen, too"
    assert relative(mine, run(ours)[0]) > 1e-3


def test_windows_on_one_expert_leave_the_other_whole(experts):
    (high, low), _ = experts
    _, seen = run([high, windowed(low)])
    assert seen[0] == FRAMES and seen[-1] <= WINDOW + 1
