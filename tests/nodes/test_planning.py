"""What the planner shows on nodes, and what it keeps of runs."""

from __future__ import annotations

import json
import mmap
import sys

import pytest
import torch
from make_pocket import build, write

from ..comfy_host import import_comfy

import_comfy()

import folder_paths
from wancore.nodes.bridge import meter, planning, preview, sampling
from wancore.nodes.bridge.model import load_model
from wancore.nodes.bridge.pair import Pair
from wancore.pocket import family
from wancore.wan_core.planner.memory import GIB, Clip
from wancore.wan_core.planner.plan import Machine, expected, what
from wancore.wan_core.sampling.presets import Settings

CARD = "NVIDIA GeForce RTX 4070"


@pytest.fixture
def user_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    models = []
    for member in (family.T2V_HIGH, family.T2V_LOW):
        write(build(member, fp8=False), folder / member.name, member.metadata)
        models.append(load_model(str(folder / member.name)))
    return Pair.of(*models)


def on(monkeypatch, machine: Machine) -> None:
    monkeypatch.setattr(planning, "machine", lambda: machine)


@torch.inference_mode()
def test_the_sampler_says_what_it_needs_and_learns(pair, user_folder, monkeypatch):
    shown = []
    monkeypatch.setattr(preview, "show_on_node", lambda _node, text: shown.append(text))
    on(monkeypatch, Machine(CARD, 12 * GIB, 32 * GIB, 25.0))
    run = sampling.Run(seed=1)
    wishes = Settings(steps=6, guidance_high=1.0, guidance_low=1.0, boundary=3, solver="euler", schedule="simple")
    latent = {"samples": torch.zeros(1, 16, 2, 8, 8)}
    text = torch.randn(1, 16, family.TEXT_DIM)
    conds = [[text, {}]], [[text, {}]]
    sampling.sample(sampling.plan(pair, wishes, run), *conds, latent, run, None)
    assert "needs" in shown[0] and "GiB of VRAM" in shown[0] and "an estimate" in shown[0]
    kept = json.loads((user_folder / "wancore" / "pace.json").read_text())
    assert list(kept) == [CARD]
    sampling.sample(sampling.plan(pair, wishes, run), *conds, latent, run, None)
    assert "measured on this GPU" in shown[1]
    checkpoint = planning.checkpoint_of(pair.facts.path)
    told = planning.learned(CARD).seconds(what(checkpoint), expected(checkpoint, Clip(64, 64, 5), CARD))
    assert told[1] and 0 < told[0] < 5


def test_every_card_keeps_its_own(user_folder):
    planning.learn("card A", "forward", 2.0, 1.0)
    planning.learn("card B", "forward", 3.0, 1.0)
    planning.learn("card A", "forward", 4.0, 1.0)
    assert planning.learned("card A").seconds("forward", 10.0) == (40.0, True)
    assert planning.learned("card B").seconds("forward", 10.0) == (30.0, True)
    assert planning.learned("card C").seconds("forward", 10.0) == (10.0, False)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"card": 1}', "\0", "[" * 100_000]
    + [f'{{"card": {{"forward": {value}}}}}' for value in ('"x"', "null", "NaN", "0.0", "1e999", "1" + "0" * 400)],
    ids=range(11),
)
def test_a_broken_file_is_as_none(user_folder, content):
    path = planning.pace_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    assert planning.learned("card").factors == {}
    planning.learn("card", "forward", 2.0, 1.0)
    assert planning.learned("card").factors == {"forward": 2.0}


def test_a_broken_entry_takes_nothing_else_along(user_folder):
    path = planning.pace_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"a": 1, "b": {"forward": 2.0}, "card": {"forward": 3.0, "other": "x"}}')
    planning.learn("card", "one more", 2.0, 1.0)
    assert json.loads(path.read_text()) == {"b": {"forward": 2.0}, "card": {"forward": 3.0, "one more": 2.0}}


def test_forwards_that_a_cache_answered_do_not_count():
    found = meter.Meter()
    ends = (0.0, 9.0), (1.0, 3.0), (3.0, 3.01), (4.0, 6.2), (7.0, 9.1)  # the first one loads, the third is answered
    found.marks["high"] = [(begin, end, 1) for begin, end in ends]
    found.marks["low"] = [(0.0, 1.0, 1)]
    assert found.seconds("high") == pytest.approx(2.1)
    assert found.seconds("low") is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells pages of files from a process's own")
def test_pages_of_a_mapped_file_are_not_free_twice(tmp_path):
    size, path = 2**27, tmp_path / "weights"
    path.write_bytes(bytes(size))
    before = planning.own_ram()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert not any(mapped[place] for place in range(0, size, mmap.PAGESIZE))  # all of it is resident now
        assert planning.own_ram() - before < size / 4
