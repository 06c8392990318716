"""Which attention kernel is taken, and what attention is."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from wancore.wan_core import attention as module
from wancore.wan_core.attention import (
    KERNELS,
    TORCH,
    Kernel,
    Place,
    agree,
    attention,
    attention_in_8_bits,
    choices,
    choose,
    torch_attention,
)


def test_the_first_kernel_that_is_there_and_accepts_the_place_is_taken():
    place = Place(torch.device("cpu"), torch.float32, 128, queries=4096)
    never = Kernel("not installed", attention, installed=lambda: False)
    narrow = Kernel("narrow", attention, head_dims=(64,))
    gpu = Kernel("gpu", attention, devices=("cuda",))
    half = Kernel("half", attention, dtypes=(torch.float16, torch.bfloat16))
    recent = Kernel("recent", attention, capability=(9, 0))
    long = Kernel("long", attention, queries=8192)
    wrong = Kernel("wrong", attention, works=lambda device: device.type == "cuda")
    fits = Kernel("fits", attention, devices=("cpu",), dtypes=(torch.float32,), head_dims=(128,))
    assert choose(place, (never, narrow, gpu, half, recent, long, wrong, fits, *KERNELS)) is fits
    assert choose(place, (never, narrow, gpu, half, recent, long, *KERNELS)) is KERNELS[-1]
    assert choose(replace(place, queries=8192), (long, fits)) is long
    with pytest.raises(LookupError, match="narrow"):
        choose(place, (narrow,))


def test_the_fastest_of_a_warm_gpu_is_taken(monkeypatch):
    """An idle GPU is slow for a while, which must not count against what is tried then; what fails is left out."""
    milliseconds = {"slow": 9.0, "fast": 2.0, "near": 2.1}
    calls = []

    def call(kernel: Kernel) -> float:
        calls.append(kernel.name)
        if kernel.name == "broken":
            raise RuntimeError("no such program")
        return milliseconds[kernel.name] * (5 if len(calls) < 12 else 1)

    monkeypatch.setattr(module, "_call", lambda place: call)
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock) * module.WARM_SECONDS / 8)
    place = Place(torch.device("cuda"), torch.bfloat16, 128)
    names = ("broken", "slow", "fast", "near")
    assert module._fastest(place, [Kernel(name, attention) for name in names]).name == "fast"
    assert "broken: no such program" in module.refused()
    rounds = calls[-2 * module.PROBE_ROUNDS :]
    assert rounds == ["fast", "near"] * module.PROBE_ROUNDS  # in turns, without those that are far behind
    module._REFUSED.pop("broken")
    assert module._fastest(place, [Kernel("broken", attention)]) is TORCH
    module._REFUSED.pop("broken")


@pytest.mark.parametrize(
    ("name", "least"), [("hopper", 8192), ("flash-attention-4", 8192), ("cudnn", 2048), ("flash", 1), ("torch", 1)]
)
def test_what_takes_long_to_begin_is_for_long_clips(name: str, least: int):
    """Compiling or importing takes seconds, which the first picture or tiny clip of a process would pay."""
    place = Place(torch.device("cuda"), torch.bfloat16, 128, 40)
    kernel = replace(next(kernel for kernel in KERNELS if kernel.name == name), capability=None)
    lengths = (1, 256, 2048, 4096, 8192)
    assert [length for length in lengths if kernel.accepts(replace(place, queries=length))] == [
        length for length in lengths if length >= least
    ]


def test_a_package_that_cannot_be_imported_is_left_out(tmp_path, monkeypatch):
    """FlashAttention built for another PyTorch: asking for a part of it imports it."""
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("raise ImportError('flash_attn_2_cuda.so: undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    assert not module._has_flash_attention_4()
    assert "flash-attention-4: flash_attn_2_cuda.so: undefined symbol" in module.refused()
    module._REFUSED.pop("flash-attention-4")


def test_gradients_go_through_pytorch():
    """FlashAttention-4 has none on some cards; the package is not asked for here."""
    q, k, v = torch.randn(3, 1, 5, 16, requires_grad=True).unbind(0)
    out = module._flash_attention_4(q, k, v, 2)
    assert torch.equal(out, torch_attention(q, k, v, 2)) and out.requires_grad
    with torch.no_grad(), pytest.raises(ImportError):
        module._flash_attention_4(q, k, v, 2)


@pytest.mark.skipif(module.hopper16 is None, reason="no Triton with Gluon")
def test_hopper_s_kernel_leaves_what_it_does_not_take_to_pytorch():
    q, k, v = torch.randn(3, 1, 5, 2 * 128, requires_grad=True).unbind(0)
    out = module._hopper(q, k, v, 2)
    assert torch.equal(out, torch_attention(q, k, v, 2)) and out.requires_grad


def test_attention_is_a_softmax_over_the_keys():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, 3 * 10, generator=generator, dtype=torch.float64) for n in (5, 7, 7))
    heads = [x.unflatten(2, (3, 10)).transpose(1, 2) for x in (q, k, v)]
    scores = (heads[0] @ heads[1].transpose(2, 3) / 10**0.5).softmax(dim=-1)
    assert torch.allclose(attention(q, k, v, 3), (scores @ heads[2]).transpose(1, 2).flatten(2), atol=1e-12)


def test_a_choice_can_be_carried_to_another_process(monkeypatch):
    """Where its kernel is there; what was chosen here before gives way."""
    q, k, v = torch.randn(3, 1, 5, 16).unbind(0)
    usual = attention(q, k, v, 2)
    rounds = Kernel("rounds", lambda *args: TORCH.run(*args).bfloat16().float())
    monkeypatch.setattr(module, "KERNELS", (rounds, TORCH))
    monkeypatch.setattr(module, "_AGREED", {})

    def in_a_new_process():
        monkeypatch.setattr(module, "_CHOSEN", {})

    in_a_new_process()
    rounded = attention(q, k, v, 2)
    (place,) = chosen = choices()
    assert chosen[place] == "rounds" and not torch.equal(rounded, usual)
    agree({place: "torch", "another place": "rounds"})
    assert torch.equal(attention(q, k, v, 2), usual)
    in_a_new_process()
    assert torch.equal(attention(q, k, v, 2), usual) and choices() == {place: "torch"}
    monkeypatch.setattr(module, "KERNELS", (rounds, replace(TORCH, installed=lambda: False)))
    in_a_new_process()
    assert torch.equal(attention(q, k, v, 2), rounded)


@pytest.mark.parametrize("fastest", ["8 bits", "torch"])
def test_8_bits_stand_against_what_is_exact(fastest: str, monkeypatch):
    """The faster one is taken, of its place alone, and each is remembered for other processes."""
    q, k, v = torch.randn(3, 1, 5, 16).unbind(0)
    exact = attention(q, k, v, 2)
    rounds = Kernel("8 bits", lambda *args: TORCH.run(*args).bfloat16().float())
    monkeypatch.setattr(module, "EIGHT_BITS", rounds)
    monkeypatch.setattr(module, "ampere8", SimpleNamespace(accepts=lambda q, k, v, heads: q.shape == k.shape))
    monkeypatch.setattr(module, "_CHOSEN", {})
    names = (fastest, "torch")
    monkeypatch.setattr(module, "choose", lambda place, kernels: next(k for k in kernels if k.name in names))
    assert torch.equal(attention_in_8_bits(q, k, v, 2), exact) == (fastest == "torch")
    assert torch.equal(attention(q, k, v, 2), exact)
    assert sorted(choices().values()) == sorted(names)
    assert torch.equal(attention_in_8_bits(q[:, :2], k, v, 2), attention(q[:, :2], k, v, 2)), "not one length"
