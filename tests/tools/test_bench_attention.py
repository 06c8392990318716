"""The benchmark of attention kernels: it runs through anywhere, and no kernel takes the others' rows with it."""

from __future__ import annotations

import json

import pytest
import torch
from wancore.tools.benchmark.attention import child, run
from wancore.wan_core.attention import torch_attention

KERNEL = """
import os, time
NAME = {name!r}
def accepts(q, k, v, heads):
    return len(q[0]) > 150
def attention(q, k, v, heads):
    {does}
"""


def test_smoke(tmp_path, monkeypatch, capsys):
    """PyTorch's kernel, one that is for another device, one that hangs and one that ends its process."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, does in (("hanging", "time.sleep(1000)"), ("crashing", "os._exit(3)")):
        (tmp_path / f"{name}.py").write_text(KERNEL.format(name=f"a {name} one", does=does))
    options = ["--kernels", "torch", "hopper8", "--modules", "hanging", "crashing", "--limit", "15"]
    assert run.main(["--smoke", *options, "--output", str(tmp_path / "output")]) == 0

    report = json.loads((tmp_path / "output" / "bench_attention.json").read_text())
    plain, elsewhere, hanging, crashing = report["rows"]
    assert plain["kernel"] == "torch" and not plain["note"] and plain["first"] is not None
    assert len(plain["times"]["2 x 300"]) == 1 and plain["times"]["2 x 300"][0] > 0
    assert set(plain["errors"]) == {"3 x 129", "3 x 200 on 100", "2 x 300"}
    assert all(0 < error < 0.01 for error in plain["errors"].values())
    assert elsewhere["note"] == "does not accept torch.bfloat16 on cpu" and not elsewhere["errors"]
    assert (hanging["kernel"], hanging["note"]) == ("a hanging one", "stopped: no answer for 15 s at 3 x 200 on 100")
    assert (crashing["kernel"], crashing["note"]) == ("a crashing one", "crashed: exit code 3 at 3 x 200 on 100")
    table = (tmp_path / "output" / "bench_attention.md").read_text()
    assert "| milliseconds (TF/s) | 2 x 300 |" in table and "| a hanging one | - |" in table
    assert table.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]


def test_full_sizes_need_a_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        run.main([])
    assert "--smoke" in capsys.readouterr().err


def test_errors_are_of_the_worst_head_and_the_last_row():
    shape = child.Shape(2, 900, 300, batch=2)
    q, k, v = child.data(shape, torch.device("cpu"))
    exact = torch_attention(q.float(), k.float(), v.float(), 2)
    assert child.error(exact, q, k, v, 2) < 1e-5
    for place in ((0, 0, 0), (1, -1, -1)):
        wrong, missing = exact.clone(), exact.clone()
        wrong[place] += exact.norm()
        missing[place] = torch.nan
        assert child.error(wrong, q, k, v, 2) > 1 and child.error(missing, q, k, v, 2) == torch.inf


def test_highest_scores_move_along_the_keys():
    q, k, _ = child.data(child.Shape(2, 64, 600), torch.device("cpu"))
    highest = (
        q[0].float().unflatten(1, (2, -1)).transpose(0, 1) @ k[0].float().unflatten(1, (2, -1)).permute(1, 2, 0)
    ).cummax(2)
    changes = (highest.indices.diff(dim=2) > 0).sum(2).float().mean(1)
    assert changes[0] > 1.3 * changes[1]
