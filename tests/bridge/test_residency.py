"""Where weights lie on a card that is too small for all: settled once per loading, at other models' cost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from wancore.nodes.bridge import residency
from wancore.nodes.bridge.hooks import hooks_of
from wancore.nodes.bridge.model import load_model
from wancore.wan_core.config import TransformerConfig
from wancore.wan_core.hooks import Recovery
from wancore.wan_core.planner.memory import GIB, residence

from .tiny_models import write_tiny

MIB = 2**20
TOKENS = 32_760


class Range:
    """An address range of Dynamic VRAM, with so many bytes of its weights on the card."""

    def __init__(self, size: int, there: int = 0) -> None:
        self.offset, self.there, self.watermark, self.limit = size, there, size, 0

    def loaded_size(self) -> int:
        return self.there

    def set_watermark(self, size: int) -> None:
        self.watermark, self.there = size, min(size, self.there)

    def set_watermark_limit(self, size: int) -> None:
        self.limit = size


class Loaded:
    """A patcher of Dynamic VRAM as far as the card goes."""

    load_device = "the card"

    def __init__(self, size: int, there: int, copied: float, card: Card) -> None:
        self.model, self.range, self.copied, self.card = torch.nn.Identity(), Range(size, there), copied, card
        self.model.current_patcher = self

    def is_dynamic(self) -> bool:
        return True

    def model_size(self) -> int:
        return self.range.offset

    def loaded_size(self) -> int:
        return self.range.there

    def loaded_ram_size(self) -> float:
        return self.copied * self.range.offset

    def _vbar_get(self) -> Range:
        return self.range

    def partially_unload(self, device: str, size: int) -> int:
        freed = min(size, self.range.there)
        self.range.there -= freed
        return freed


class Card:
    """A card of `size` bytes and the models on it."""

    def __init__(self, size: int) -> None:
        self.size, self.models = size, []

    def load(self, size: int, there: int, copied: float = 1.0) -> Loaded:
        self.models.append(Loaded(size, there, copied, self))
        return self.models[-1]

    def free(self, _device: str) -> int:
        return self.size - sum(model.range.there for model in self.models)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card(10 * GIB)
    monkeypatch.setattr(residency.management, "get_free_memory", made.free)
    monkeypatch.setattr(residency.management, "loaded_models", lambda: [*made.models, None])
    return made


def expert(card: Card, size: int, there: int = 0) -> Loaded:
    """One with the sizes of the 14B's blocks, as far as they are asked for."""
    found = card.load(size, there)
    config = TransformerConfig(5120, 13824, 40, 40)
    block = SimpleNamespace(parameters=lambda _recurse: [torch.empty(300 * MIB, dtype=torch.uint8, device="meta")])
    found.model.diffusion_model = SimpleNamespace(config=config, blocks=[block])
    return found


class Latents:
    """Of 81 frames of 832x480 on a GPU."""

    device, shape = torch.device("cuda"), (1, 16, 21, 60, 104)

    def __len__(self) -> int:
        return self.shape[0]


def call(model: Loaded) -> bool:
    """Whether a call is told to spare memory."""
    return residency.OPTION in residency.settled(model.model, {}, Latents())


def test_weights_that_do_not_fit_end_where_the_room_does(card):
    """Exactly what the planner says stays, and nothing of the other expert or the text encoder is in its way."""
    high, texts = card.load(13 * GIB, 4 * GIB), card.load(4 * GIB, 2 * GIB, 0.0)
    low = expert(card, 13 * GIB, there=GIB)
    config = low.model.diffusion_model.config
    planned = residence(config, TOKENS, size=13 * GIB, fetched=2 * 300 * MIB, free=10 * GIB)
    assert call(low) and planned.sparing
    assert low.range.watermark == int(planned.weights) and 2 * GIB < planned.weights < 6 * GIB
    assert high.range.there == texts.range.there == 0


def test_only_what_is_missing_is_taken_from_others(card):
    """First from those with copies in pinned RAM: a text encoder without comes back from its file."""
    high, texts = card.load(3 * GIB, 3 * GIB), card.load(4 * GIB, GIB, 0.0)
    low = expert(card, GIB)
    assert not call(low)
    assert low.range.watermark == low.range.offset
    working = residence(low.model.diffusion_model.config, TOKENS, size=GIB, fetched=0, free=10 * GIB).working
    assert high.range.there == pytest.approx(8 * GIB - working, abs=2) and texts.range.there == GIB


def test_once_for_each_loading(card):
    low = expert(card, 13 * GIB)
    assert call(low)
    low.range.watermark = 7
    assert call(low) and low.range.watermark == 7
    residency._forget(low)
    assert call(low) and low.range.watermark > 7


def test_a_model_that_is_held_keeps_its_weights(card):
    expert(card, 13 * GIB, there=9 * GIB)
    vae = card.load(GIB, 0)
    with pytest.raises(KeyError), residency.held(vae, 2 * GIB):
        assert vae.range.limit == vae.range.offset and card.free("") == 3 * GIB
        raise KeyError
    assert vae.range.limit == 0


SHORT = torch.cuda.OutOfMemoryError("Allocation would exceed allowed memory")


def test_what_ran_out_of_memory_gets_all_of_it_once(card, monkeypatch):
    """Also where the buffer for weights on their way could not grow; other errors and a second failure stay errors."""
    monkeypatch.setattr(residency.management, "soft_empty_cache", lambda: None)
    high, low = card.load(13 * GIB, 4 * GIB), expert(card, 13 * GIB, there=GIB)
    call(low)
    recovery = residency.recovery_of(low.model)
    assert not recovery.applies(RuntimeError("shapes do not fit"))
    for text in ("VRAM grow failed: 141585408 bytes", "Fault failed: 2"):  # of comfy-aimdo
        assert recovery.applies(RuntimeError(text))
    recovery.run()
    assert high.range.there == low.range.there == low.range.watermark == 0 and call(low)
    assert not recovery.applies(SHORT)
    residency._forget(low)
    assert recovery.applies(SHORT)


@pytest.mark.parametrize("helps", [True, False])
def test_a_forward_is_tried_again(tmp_path, monkeypatch, helps):
    """With sparing activations, where memory could be made free; otherwise the error is the user's."""
    model = load_model(write_tiny(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors", "t2v_A14B_expert")).model
    told = []

    def forward(x, *args, transformer_options, **kwargs):
        told.append(transformer_options.get(residency.OPTION, False))
        if len(told) == 1:
            raise SHORT
        return x

    monkeypatch.setattr(model.diffusion_model, "forward", forward)
    settled: dict[str, bool] = {}
    recovery = Recovery(lambda error: helps and error is SHORT, lambda: settled.update({residency.OPTION: True}))
    monkeypatch.setattr(residency, "recovery_of", lambda _model: recovery)
    monkeypatch.setattr(residency, "settled", lambda _model, options, _x: {**options, **settled})
    inputs = (torch.zeros(1, 16, 1, 4, 4), torch.tensor([0.5]))
    if helps:
        assert model.apply_model(*inputs, c_crossattn=torch.zeros(1, 8, 4096)).shape == inputs[0].shape
        assert told == [False, True]
    else:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            model.apply_model(*inputs, c_crossattn=torch.zeros(1, 8, 4096))


def test_forgotten_whenever_comfyui_has_loaded_it(tmp_path):
    """By the callback of the patcher, and of its clones."""
    patcher = load_model(write_tiny(tmp_path / "wan2.2_t2v_high_noise_14B.safetensors", "t2v_A14B_expert")).clone()
    residency._SPARING[patcher.model] = True
    patcher.load(patcher.load_device)
    assert patcher.model not in residency._SPARING


def test_answers_lie_apart_where_no_weight_stays(card, monkeypatch):
    """In memory of their own, which they get when that of the tokens was given back."""
    order = []
    monkeypatch.setattr(residency.management, "soft_empty_cache", lambda: order.append("given back"))
    low, other = expert(card, 13 * GIB), expert(card, GIB)
    call(other)
    card.size = 3 * GIB
    call(low)

    def forward() -> torch.Tensor:
        order.append("computed")
        return torch.arange(3.0)

    assert low.range.watermark == 0
    assert torch.equal(residency.apart(other.model, forward), torch.arange(3.0)) and order == ["computed"]
    assert torch.equal(residency.apart(low.model, forward), torch.arange(3.0))
    assert order == ["computed", "computed", "given back"]
    residency._forget(low)
    residency.apart(low.model, forward)
    assert order[3:] == ["computed"]


def test_the_transformer_is_told():
    assert hooks_of({residency.OPTION: True}).sparing and not hooks_of({}).sparing


def test_blocks_that_lack_memory_wait_for_the_gpu(monkeypatch):
    """As PyTorch then gives back what it keeps in pieces."""
    done = []
    monkeypatch.setattr(residency.management, "soft_empty_cache", lambda: done.append("waited"))
    recovery = hooks_of({}).recovery
    assert recovery.applies(SHORT) and not recovery.applies(RuntimeError("shapes do not fit"))
    recovery.run()
    assert done == ["waited"]
