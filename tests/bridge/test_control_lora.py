"""Control LoRAs widen the input of the model: as ComfyUI has it on its own Wan, and beside weights of every type."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from ..comfy_host import import_comfy

import_comfy()

import comfy.model_management as management
import comfy.sd
from wancore.nodes.bridge.facts import model_facts
from wancore.nodes.bridge.fitting import check_conditions
from wancore.nodes.bridge.lora import apply_lora
from wancore.nodes.bridge.lora_table import with_strengths
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.schedule import with_shift
from wancore.wan_core.errors import WrongModelError

from .native_wan import DIM, SHIFT, native_model, noise, prompts, relative, weights
from .quantised_files import write_format
from .test_guider import dual, run

INPUT, RANK = "diffusion_model.patch_embedding", 4

pytestmark = pytest.mark.usefixtures("no_room", "inference")


def noisy(*shape: int, seed: int) -> torch.Tensor:
    return 0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def control_lora(folder, channels: int = 32, width: int = DIM, seed: int = 1) -> str:
    """As spacepxl's converter for ComfyUI writes them: PEFT's names, alpha, and the widened shape of the input."""
    tensors = {
        f"{INPUT}.lora_A.weight": noisy(RANK, channels, 1, 2, 2, seed=seed),
        f"{INPUT}.lora_B.weight": noisy(width, RANK, 1, 1, 1, seed=seed + 1),
        f"{INPUT}.reshape_weight": torch.tensor([width, channels, 1, 2, 2]),
        f"{INPUT}.alpha": torch.tensor(2.0 * RANK),
        "diffusion_model.blocks.1.self_attn.q.lora_A.weight": noisy(RANK, width, seed=seed + 2),
        "diffusion_model.blocks.1.self_attn.q.lora_B.weight": noisy(width, RANK, seed=seed + 3),
    }
    path = folder / f"control_{channels}_{width}_{seed}.safetensors"
    save_file(tensors, path)
    return str(path)


def own_model(folder, seed: int, in_dim: int = 16):
    path = folder / f"wan_{seed}_{in_dim}.safetensors"
    save_file(weights(seed, in_dim), path)
    return load_model(str(path), dtype=torch.float32)


def ours(model, path, **settings):
    return apply_lora(model, path, "control.safetensors", settings.pop("strength", 0.7), **settings)[0]


def natively(model, path):
    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(path), 0.7, 0)[0]


def controlled(seed: int | None = 8):
    """CONDITIONING with the latent of a control video."""
    image = {} if seed is None else {"concat_latent_image": noise(seed)}
    return tuple([[text, {**extra, **image}] for text, extra in prompt] for prompt in prompts(tokens=512))


def made(conds, *models):
    """The result of a run over one MODEL or two."""
    return run(dual(*(with_shift(model, SHIFT) for model in models), *[None] * (2 - len(models)), conds=conds))


def test_every_way_equals_the_native_one(tmp_path):
    """Over both experts, each with a LoRA of its own; the low one's conditionings wait until it is loaded."""
    files = [control_lora(tmp_path, seed=seed) for seed in (10, 20)]
    native, own = [native_model(seed) for seed in (1, 2)], [own_model(tmp_path, seed) for seed in (1, 2)]
    expected = made(controlled(), *(natively(*each) for each in zip(native, files, strict=True)))
    uncontrolled = made(controlled(None), *own)
    ways = {
        "merged": [ours(*each) for each in zip(own, files, strict=True)],
        "beside": [ours(*each, merge=False) for each in zip(own, files, strict=True)],
        "native loader": [natively(*each) for each in zip(own, files, strict=True)],
        "native model": [ours(*each) for each in zip(native, files, strict=True)],
    }
    for way, models in ways.items():
        assert relative(made(controlled(), *models), expected) < 1e-4, way
        assert relative(made(controlled(9), *models), expected) > 1e-2, way
        assert model_facts(models[0]).in_dim == 32 and model_facts(models[0]).task == model_facts(own[0]).task
    assert torch.equal(made(controlled(None), *own), uncontrolled), "a LoRA has left something behind"


def test_strengths_of_steps_load_nothing_again(tmp_path):
    own, file = own_model(tmp_path, 1), control_lora(tmp_path)
    beside, merged = ours(own, file, merge=False), ours(own, file)
    first = with_strengths(merged, lambda row: (0.7, 0.7, 0.0, 0.0))
    again = with_strengths(first, lambda row: (0.1,))
    assert first.patches_uuid == again.patches_uuid != merged.patches_uuid
    assert beside.patches_uuid == ours(own, file, merge=False, strength=0.3).patches_uuid
    assert relative(made(controlled(), first), made(controlled(), beside)) > 1e-3
    off = made(controlled(), with_strengths(beside, lambda row: (0.0,)))
    assert relative(off, made(controlled(None), own)) < 1e-5


def test_offloaded_weights_are_widened_once(tmp_path):
    """The legacy patcher, with too little memory for any weight, and then with enough."""
    own, file = own_model(tmp_path, 1), control_lora(tmp_path)
    video, text = noise(4, channels=32), prompts(tokens=512)[0][0][0]
    found = []
    for patched in (ours(own, file), ours(own, file, merge=False)):
        with_bank = patched.get_nested_additional_models()
        management.load_models_gpu([patched, *with_bank])
        for step in range(3):
            if step == 1:
                patched.detach()
                patched.patch_model(torch.device("cpu"), lowvram_model_memory=1)
                assert hasattr(patched.model.diffusion_model.blocks[0].ffn[0], "prev_comfy_cast_weights")
            elif step == 2:
                patched.load(torch.device("cpu"), lowvram_model_memory=1e12)
            conds = {"c_concat": video[:, 16:], "c_crossattn": text}
            options = patched.model_options["transformer_options"]
            call = partial(patched.model.apply_model, video[:, :16], torch.tensor([0.9]), transformer_options=options)
            found.append(call(**conds))
        patched.detach()
    assert all(relative(each, found[0]) < 1e-4 for each in found)


def test_quantised_weights(tmp_path):
    own = load_model(write_format(tmp_path / "wan2.2_t2v_high_noise_14B", "Q8_0"))
    width = own.model.diffusion_model.dim
    patched, match = apply_lora(own, control_lora(tmp_path, width=width), "control.safetensors", 1.0)
    assert match is not None and match.beside and match.applied == 2
    runs = [made(controlled_as(own, seed), patched) for seed in (8, 9)]
    assert relative(*runs) > 1e-2


def controlled_as(model, seed: int):
    """CONDITIONING of the width of a model's text."""
    width = model.model.diffusion_model.config.text_dim
    return tuple([[text[..., :width], extra] for text, extra in prompt] for prompt in controlled(seed))


def test_its_video_is_what_the_model_takes(tmp_path):
    own, file = own_model(tmp_path, 1), control_lora(tmp_path)
    asked = {"title": "T2V", "where": "high"}
    check_conditions(ours(own, file), controlled(), **asked)
    with pytest.raises(WrongModelError, match="pictures beside"):
        check_conditions(own, controlled(), **asked)


@pytest.mark.parametrize("merge", [True, False])
def test_one_for_another_model_is_refused(merge, tmp_path):
    """Before it is loaded: without its input the rest would follow no control video."""
    for model, file, words in (
        (own_model(tmp_path, 1, in_dim=36), control_lora(tmp_path), "with 32 channels"),
        (own_model(tmp_path, 1), control_lora(tmp_path, width=256), "width 256"),
        (ours(own_model(tmp_path, 1), control_lora(tmp_path, 48)), control_lora(tmp_path), "with 32 channels"),
    ):
        with pytest.raises(WrongModelError) as caught:
            ours(model, file, merge=merge)
        assert words in caught.value.found and file in caught.value.where


def test_another_lora_for_the_input_stays(tmp_path):
    """It is for the channels that the model had."""
    own, file, plain = own_model(tmp_path, 1), control_lora(tmp_path), str(tmp_path / "plain.safetensors")
    down, up = noisy(RANK, 16, 1, 2, 2, seed=3), noisy(DIM, RANK, seed=4)
    save_file({f"{INPUT}.lora_A.weight": down, f"{INPUT}.lora_B.weight": up}, plain)
    native = made(controlled(), natively(natively(native_model(1), plain), file))
    for merge in (True, False):
        found = made(controlled(), ours(ours(own, plain, merge=merge), file, merge=merge))
        assert relative(found, native) < 1e-4
        assert relative(made(controlled(), ours(own, file, merge=merge)), native) > 1e-3
