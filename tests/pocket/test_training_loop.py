"""Training stops by the clock and goes on as if it had not; and every stage of the family's runs on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pack import ROOT
from torch import nn
from wancore.pocket import family, models
from wancore.pocket.training import flow, loop, rehearsal, report
from wancore.pocket.training.low_rank import LowRank
from wancore.pocket.training.schedule import SCHEDULE
from wancore.pocket.training.sound_model import new_model as new_sound_model
from wancore.pocket.training.stages import LORAS

TRAINED_LORAS = (*family.LORAS[2:], *family.STYLES, family.SLOW)


def trained(plan: loop.Plan) -> dict[str, torch.Tensor]:
    """Averaged weights of a small stage, its matrix by Muon and its bias by Adam, after all its steps."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)

    def batch(step: int) -> tuple[torch.Tensor, ...]:
        x = torch.randn(16, 8, generator=plan.generator(step))
        return x, x.roll(1, 1)

    def loss(x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return (model(x) - wanted).square().mean()

    stage = loop.Stage("small", model, batch, loss, 2 * loop.REPORT_EVERY + 50, 1e-2, 1e-2, lambda _, p: p.ndim == 2)
    loop.train(stage, plan)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_a_stage_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path):
    late, past = time.monotonic() + 600, time.monotonic() - 1
    plan = loop.Plan(tmp_path, tmp_path / "whole", torch.device("cpu"), 7, late)
    whole = trained(plan)
    parts = replace(plan, state=tmp_path / "parts", deadline=past)
    for _ in range(2):
        with pytest.raises(loop.StoppedError):
            trained(parts)
        assert [file.name for file in parts.state.iterdir()] == ["small.state"]
    resumed = trained(replace(parts, deadline=late))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    untrained = nn.Linear(8, 8).weight
    assert not torch.equal(untrained, whole["weight"])
    assert not list(parts.state.iterdir())


def test_a_state_of_another_seed_is_not_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    late, past = time.monotonic() + 600, time.monotonic() - 1
    plan = loop.Plan(tmp_path, tmp_path / "state", torch.device("cpu"), 7, past)
    with pytest.raises(loop.StoppedError):
        trained(plan)
    other = replace(plan, seed=8, deadline=late)
    found = trained(other)
    assert "small: begins anew" in capsys.readouterr().out
    assert torch.equal(found["weight"], trained(replace(other, state=tmp_path / "none"))["weight"])


def test_stages_that_end_together_leave_whole_reports(tmp_path: Path):
    state, out = tmp_path / "state", tmp_path / "out"

    def end(part: str) -> None:
        for _ in range(40):
            report.keep(part, {part: list(range(2000))}, state, out)
            assert part in json.loads((state / "report" / f"{part}.json").read_text())
            json.loads((out / "report.json").read_text())

    with ThreadPoolExecutor(4) as stages:
        list(stages.map(end, "abcd"))
    report.keep("how", {"how": {}}, state, out)
    assert json.loads((out / "report.json").read_text()).keys() == {*"abcd", "how"}
    assert [file.name for file in out.iterdir()] == ["report.json"]


def test_encoded_clips_are_kept_as_they_lie(tmp_path: Path):
    """On a GPU they come from the VAE with the channels last."""
    values = torch.randn(2, 16, 3, 4, 4).to(memory_format=torch.channels_last_3d)
    flow.save_latents([flow.Latents(values, torch.zeros(2, 5, dtype=torch.int32), values)], tmp_path / "a")
    (found,) = flow.load_latents([tmp_path / "a", tmp_path / "a"], torch.device("cpu"))
    assert torch.equal(found.values, torch.cat([values, values])) and torch.equal(found.pictures, found.values)


def test_experts_end_with_right_texts():
    trunk, expert = flow.RECIPES["t2v_both"], flow.RECIPES["t2v_high"]
    assert trunk.wrong_at(trunk.steps - 1) == expert.wrong_at(0) == flow.WRONG
    assert expert.wrong_at(expert.steps - 1) == 0
    assert sum(expert.wrong_at(step) == 0 for step in range(expert.steps)) == flow.RIGHT * expert.steps


def test_rehearsed_loras_are_as_large_as_the_trained_ones(tmp_path: Path):
    """Else the compiled steps are of other shapes."""
    plan = loop.Plan(tmp_path, tmp_path, torch.device("cpu"), 22, time.monotonic(), smoke=True)
    given = rehearsal.MadeUp(plan)
    for name, lora in (("compile_lora", "lora_high"), ("compile_lora5b", "lora_ti2v"), ("compile_style", "style_high")):
        pairs = rehearsal.MAKERS[name](plan, given).model
        assert isinstance(pairs, LowRank) and pairs.rank == LORAS[lora].rank


@pytest.mark.slow
def test_every_stage_runs_on_a_cpu(tmp_path: Path):
    """A few steps of each, in the order of the schedule; what they write is whole and named as the family's weights."""
    out = tmp_path / "out"
    command = [sys.executable, "tools/train_pocket.py", *SCHEDULE, "--smoke", "--seeds", "1", "--device", "cpu"]
    subprocess.run([*command, "--out", out, "--state", tmp_path / "state"], cwd=ROOT, check=True)
    for member in family.MEMBERS:
        if models.weights_file(member).is_file():  # one that is trained
            kept = models.read_weights(member, out)
            assert kept.keys() == models.read_weights(member).keys()
            assert all(value.float().isfinite().all() for value in kept.values())
    assert models.load_weights(new_sound_model(), family.S2V, out)
    assert all(models.weights_file_of(lora.short, out).is_file() for lora in TRAINED_LORAS)
    found = json.loads((out / "report.json").read_text())
    parts = {"text", "vae21", "vae22", "t2v", "4steps", "i2v", "ti2v", "ti2v_4steps", "s2v", "generator"}
    assert parts <= found.keys()
    assert any(name.startswith("vace") for name in found) and any(name.startswith("animate") for name in found)
