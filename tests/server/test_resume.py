"""A server that is killed in the middle of a run: a new one goes on, and the clip is the same bit for bit."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from graphs import Nodes, Prompt, text_to_video
from safetensors.torch import load
from setup.client import Client
from setup.server import Launch, Server, serve

STEPS, SEED = 24, 77


def prompt_of(nodes: Nodes, **sampler: Any) -> Prompt:
    options = {"steps": STEPS, "seed": SEED, **sampler}
    prompt = text_to_video(nodes, sampler_name="dpmpp_2m", scheduler="simple", **options)
    del prompt["decode"], prompt["save"]
    return {**prompt, "save": nodes("SaveLatent", samples=["sampler", 0], filename_prefix="resume")}


def latent_of(client: Client, prompt: Prompt, texts: list[str] | None = None) -> torch.Tensor:
    said = texts if texts is not None else []
    (saved,) = client.run(prompt, on_progress=lambda moment: moment.text and said.append(moment.text)).files()
    return load(client.view(saved))["latent_tensor"]


def told(texts: list[str]) -> str:
    """What the sampler leaves on its node at the end."""
    return next(text for text in reversed(texts) if "sampled in" in text)


def killed_after(server: Server, prompt: Prompt, answers: int, folder: Path) -> None:
    """kill -9 once so many answers are on the disk."""
    client = Client(server.address)

    def follow() -> None:
        with suppress(Exception):  # the connection breaks, in one of several ways
            client.run(prompt)

    follower = threading.Thread(target=follow)
    follower.start()
    deadline = time.monotonic() + 300
    while follower.is_alive() and time.monotonic() < deadline and len(list(folder.glob("*.safetensors"))) < answers:
        time.sleep(0.005)
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    follower.join(60)


def test_a_killed_server_resumes(launch: Launch, client: Client, nodes: Nodes, base: Path, tmp_path: Path) -> None:
    folder = base / "user" / "wancore" / "resume"
    whole = latent_of(client, prompt_of(nodes))
    prompt = prompt_of(nodes, resume=True)
    with serve(launch, tmp_path / "first.log") as first:
        killed_after(first, prompt, STEPS // 4, folder)
    before = len(list(folder.glob("*.safetensors")))
    assert STEPS // 4 <= before < STEPS, "killed in the middle"
    texts: list[str] = []
    assert torch.equal(latent_of(client, prompt, texts), whole)  # another process, which never saw that run
    assert f"{before} of {STEPS} calls from the log" in told(texts)


def test_a_new_low_side_keeps_the_high_stage(client: Client, nodes: Nodes) -> None:
    """After the run above."""
    changed = {"cfg_low": 2.0}
    texts: list[str] = []
    ours = latent_of(client, prompt_of(nodes, resume=True, **changed), texts)
    summary = told(texts).split("\n")[0]
    high = int(summary.split(": ")[1].split(" high")[0])
    assert f"{high} of {STEPS} calls from the log" in told(texts)
    assert torch.equal(ours, latent_of(client, prompt_of(nodes, **changed)))
