"""The sampler on a real server: every solver, a stop at every step, and a long queue that leaves nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from graphs import LORA_HIGH, LORA_LOW, Nodes, Prompt, text_to_video
from safetensors.torch import load
from setup.client import Client, Progress, PromptFailedError
from setup.server import Server

STEPS, SEED = 6, 5
SETTLED, QUEUED = 20, 100  # prompts until everything is loaded and every pool filled, and those that are counted
MOST_GROWTH = 16e6  # bytes over 100 prompts: a latent kept by each would be 75 of them, a clip's frames 30 times that
QUICK = {"steps": 2, "boundary": 1.0, "cfg_high": 1.0, "cfg_low": 1.0}  # one step on each expert


def latent_prompt(nodes: Nodes, **sampler: Any) -> Prompt:
    prompt = text_to_video(nodes, **sampler)
    del prompt["decode"], prompt["save"]
    return {**prompt, "save": nodes("SaveLatent", samples=["sampler", 0], filename_prefix="sampler")}


def latent_of(client: Client, prompt: Prompt, follow: Callable[[Progress], None] = lambda _: None) -> torch.Tensor:
    result = client.run(prompt, on_progress=follow)
    assert "sampler" in result.seconds, "it was sampled, not taken from ComfyUI's cache"
    (saved,) = result.files()
    return load(client.view(saved))["latent_tensor"]


def test_every_sampler_runs(client: Client, nodes: Nodes, ours: dict[str, Any]) -> None:
    names = ours["WanCoreKSampler"]["input"]["required"]["sampler_name"][1]["options"]
    assert len(names) > 40 and "official_unipc" in names
    results = {}
    for name in names:
        scheduler = "simple" if name.startswith("official") or name == "auto" else "auto"
        results[name] = latent_of(client, latent_prompt(nodes, sampler_name=name, scheduler=scheduler, **QUICK))
        assert results[name].isfinite().all(), name
        assert 0.1 < results[name].std() < 10, name
    assert len({latent.numpy().tobytes() for latent in results.values()}) > 20


class Held:
    """What a process holds."""

    def __init__(self, server: Server, base: Path) -> None:
        process = psutil.Process(server.process.pid)
        self.bytes = process.memory_info().rss
        self.files = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
        self.threads = process.num_threads()
        places = (base / "temp", base / "user" / "wancore")
        self.left = {path for place in places for path in place.rglob("*") if path.is_file()}


def stopped_at(client: Client, prompt: Prompt, step: int) -> int:
    """Presses Stop once so many steps are done; how many were done in the end."""
    done, pressed = [0], []

    def follow(moment: Progress) -> None:
        counted, announced = moment.maximum == STEPS, moment.text.startswith(f"{STEPS} steps")
        if counted:
            done.append(int(moment.value))
        if (counted or announced) and done[-1] == step and not pressed:
            pressed.append(step)
            client.interrupt()

    with pytest.raises(PromptFailedError):
        client.run(prompt, on_progress=follow)
    return max(done)


def test_a_stop_at_any_step_leaves_nothing_behind(client: Client, nodes: Nodes, server: Server, base: Path) -> None:
    """A clip large enough that a step outlasts the message that stops it."""

    def prompt(seed: int, end: int = 10000) -> Prompt:
        """`end`, behind the last step, makes a prompt that is not in ComfyUI's cache."""
        options = {"steps": STEPS, "boundary": 3.0, "sampler_name": "dpmpp_2m_sde", "end_at_step": end}
        made = latent_prompt(nodes, seed=seed, **options)
        made["size"]["inputs"] |= {"width": 192, "height": 192, "length": 9}
        return made

    bar: list[float] = []
    whole = latent_of(
        client, prompt(SEED), lambda moment: bar.append(moment.value) if moment.maximum == STEPS else None
    )
    assert bar == list(range(1, STEPS + 1)), "one bar over both experts"
    before = Held(server, base)
    for step in range(STEPS):
        done = stopped_at(client, prompt(SEED + 1 + step), step)
        assert step <= done <= step + 1
        if step in (1, 3, STEPS - 1):  # in the high stage, at the switch, in the last step
            assert torch.equal(latent_of(client, prompt(SEED, 100 + step)), whole)
    after = Held(server, base)
    assert after.left == before.left
    assert after.files <= before.files + 2 and after.threads <= before.threads + 2


def test_a_hundred_queued_prompts_do_not_grow(client: Client, nodes: Nodes, server: Server, base: Path) -> None:
    """All in the queue at once."""

    def queued(count: int, first_seed: int) -> Held:
        submitted = []
        for seed in range(first_seed, first_seed + count):
            prompt = latent_prompt(nodes, seed=seed, **QUICK)
            prompt["save"] = nodes("PreviewAny", source=["sampler", 0])
            submitted.append(client.submit(prompt))
        waiting = client.get("/queue")
        assert len(waiting["queue_running"]) + len(waiting["queue_pending"]) > count // 2, "they wait for each other"
        while any(client.get("/queue").values()):
            time.sleep(0.2)
        for each in submitted:
            assert client.get(f"/history/{each}")[each]["status"]["status_str"] == "success"
        return Held(server, base)

    before, after = queued(SETTLED, 1000), queued(QUEUED, 1000 + SETTLED)
    assert after.bytes - before.bytes < MOST_GROWTH
    assert after.files <= before.files + 2 and after.threads <= before.threads + 2  # of connections
    assert after.left == before.left


def test_8_bit_nodes_say_what_they_come_to(client: Client, nodes: Nodes) -> None:
    """One behind the other, on a CPU, where nothing changes."""
    prompt = latent_prompt(nodes, **QUICK)
    exact = latent_of(client, prompt)
    prompt["attention"] = nodes("WanCoreAttention8", high=["models", 0], low=["models", 1])
    prompt["layers"] = nodes("WanCoreLayers8", high=["attention", 0], low=["attention", 1])
    prompt["sampler"]["inputs"] |= {"high": ["layers", 0], "low": ["layers", 1]}
    texts: list[str] = []
    same = latent_of(client, prompt, lambda moment: texts.append(f"{moment.node_id}: {moment.text}"))
    assert torch.equal(same, exact)
    assert {"attention: exact: no NVIDIA GPU", "layers: exact: no NVIDIA GPU"} <= {*texts}


def test_motion_preset_and_step_cache_say_what_they_did(client: Client, nodes: Nodes) -> None:
    """The miniature pair with its 4-step LoRAs, then without them in the cache."""
    prompt = latent_prompt(nodes, steps=0, preset="motion")
    pair = {"high": ["models", 0], "low": ["models", 1]}
    prompt["pair"] = nodes("WanCoreLoraPair", **pair, lora_high=LORA_HIGH, lora_low=LORA_LOW)
    prompt["sampler"]["inputs"] |= {"high": ["pair", 0], "low": ["pair", 1]}
    texts: list[str] = []
    repaired = latent_of(client, prompt, lambda moment: texts.append(moment.text))
    said = "6 steps: 3 high + 3 low, cfg 4 in the first 2 without the distillation LoRA, then 1, shift 5"
    assert any(text.startswith(said) for text in texts)
    prompt["sampler"]["inputs"] |= {"preset": "fast", "steps": 6}
    assert not torch.equal(latent_of(client, prompt), repaired)
    prompt["pair"] = nodes("WanCoreStepCache", **pair)
    prompt["sampler"]["inputs"] |= {"preset": "balanced", "steps": 0}
    texts.clear()
    assert latent_of(client, prompt, lambda moment: texts.append(f"{moment.node_id}: {moment.text}")).isfinite().all()
    assert [text for text in texts if text.startswith("pair: high: ") and "of 13 evaluations skipped" in text]
