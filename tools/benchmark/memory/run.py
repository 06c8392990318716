"""Cases one after the other, each in a process of its own beside a balloon; the report."""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from ....pocket.models import load_spiece
from . import balloon, cases, files, graphs, least_ram, ram, report
from .balloon import Send
from .cases import Card, Clip, Model

TOOL = Path(__file__).resolve().parents[2] / "bench_memory.py"
ENGINES = {
    "WanCore": graphs.ours,
    "WanCore, 8-bit attention": graphs.ours_in_8_bits,
    "ComfyUI": graphs.native,
    "ComfyUI, cuDNN first": graphs.native,
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=cases.MODELS, default=["t2v-fp8", "t2v-Q4_K"])
    parser.add_argument("--clip", choices=cases.CLIPS, default="480p81")
    sizes = f"GB: {', '.join(cases.FREE)}, or whole; or what is free of one, as 3.5GiB"
    parser.add_argument("--cards", nargs="+", type=cases.named, default=["whole", "12"], help=sizes)
    parser.add_argument("--rates", nargs="+", type=float, default=[25.0], help="GB/s from RAM to the GPU")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["WanCore", "ComfyUI"])
    parser.add_argument("--runs", type=int, default=2, help="runs of the prompt in one process, the first one cold")
    parser.add_argument("--steps", type=int, help="steps of a run (default: the clip's)")
    parser.add_argument("--guidance", type=float, default=1.0, help="above 1 a step needs both prompts")
    parser.add_argument(
        "--smoke", action="store_true", help="the miniature models on the CPU: only to see that it runs"
    )
    parser.add_argument("--base", type=Path, help="base folder with models/; files that are missing are written")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of memory.json and memory.md")
    parser.add_argument("--together", action="store_true", help="all engines in one process, for times alone")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which no case is started")
    parser.add_argument("--least", nargs="*", metavar="PHASE", help="bisect the least VRAM of these phases (none: all)")
    parser.add_argument("--least-ram", action="store_true", help="bisect the least RAM of whole runs on these cards")
    parser.add_argument("--only-files", action="store_true", help="write the files and end")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Prints a line for each run as it comes, then the table."""
    options, began = parse(arguments), time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        base = (options.base or Path(temporary)).absolute()
        models = {name: cases.MODELS[name] for name in options.models}
        if options.least is not None:
            prepare(base, [], smoke=False)
            return bisect(base, options)
        prepare(base, list(models.values()), smoke=options.smoke)
        if options.only_files:
            return 0
        clip = cases.CLIPS["smoke" if options.smoke else options.clip]
        clip = replace(clip, steps=options.steps or clip.steps, cfg=options.guidance)
        cards = [Card("CPU", None, None)] if options.smoke else cases.cards(options.cards, options.rates)
        if options.least_ram:
            return bisect_ram(models, clip, cards, base, options)
        groups = [options.engines] if options.together else [[engine] for engine in options.engines]
        for card, (name, model), engines in product(cards, models.items(), groups):
            if time.monotonic() - began > options.limit:
                break
            for engine, found in run(engines, model, clip, card, base, options).items():
                rows.append({"model": name, "clip": clip.name, "card": card.name, "engine": engine, **found})
                print(report.line(rows[-1]), flush=True)
            report.write(rows, options.output)
    print("\n" + (options.output / "memory.md").read_text(encoding="utf-8"))
    return 0


def prepare(base: Path, models: list[Model], *, smoke: bool) -> None:
    """The folders of a ComfyUI with the files that these models need, and a picture."""
    for folder in ("models/diffusion_models", "models/text_encoders", "models/vae", "input", "output", "custom_nodes"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    _picture(base / "input" / graphs.PICTURE)
    if smoke:
        from make_pocket import make_pocket

        make_pocket(base / "models")
        return
    with ProcessPoolExecutor(8) as pool:
        jobs = [pool.submit(*job) for job in _missing(base / "models", models)]
        for job in jobs:
            job.result()


def _missing(folder: Path, models: list[Model]) -> Iterator[tuple[Any, ...]]:
    wanted: dict[Path, tuple[Any, ...]] = {}
    for model in models:
        for seed, name in enumerate(model.files):
            path = folder / "diffusion_models" / name
            wanted[path] = (_write_transformer, path, model.shapes, model.precision, seed)
        path = folder / "text_encoders" / model.text_encoder
        wanted[path] = (files.text_encoder, path, load_spiece())
        path = folder / "vae" / model.vae
        wanted[path] = (files.vae, path, "vae22" if model.vae == cases.VAE22 else "vae21")
    yield from (job for path, job in wanted.items() if not path.is_file())


def _write_transformer(path: Path, shapes: str, precision: str, seed: int) -> None:
    files.transformer(path, shapes, precision, numbers=files.Random(seed))


def _picture(path: Path) -> None:
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[0:480, 0:832]
    Image.fromarray(np.stack([rows // 2, columns // 4, (rows + columns) // 6], axis=-1).astype(np.uint8)).save(path)


def run(
    engines: list[str], model: Model, clip: Clip, card: Card, base: Path, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """One case for each engine, all in one process."""
    group = ram.make_group(card.ram) if card.ram else None
    name = f"{'_'.join(engines)}_{model.precision}_{clip.name}_{card.name}"
    with tempfile.TemporaryDirectory() as temporary, made_small(card) as watcher:
        output = Path(temporary) / "result.json"
        orders = {
            "runs": [one for engine in engines for one in _runs(engine, model, clip, options.runs)],
            "base": str(base),
            "cpu": options.smoke,
            "ram": card.ram,
            "group": str(group) if group else None,
            "rate": card.rate,
            "output": str(output),
        }
        (Path(temporary) / "orders.json").write_text(json.dumps(orders), encoding="utf-8")
        log = options.output / f"{re.sub(r'[^A-Za-z0-9]+', '_', name)}.log"
        with log.open("ab") as file:
            command = [sys.executable, str(TOOL), "--child", str(Path(temporary) / "orders.json")]
            code = subprocess.call(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent)
        found: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {"runs": []}
        peaks = watcher("peaks") if watcher else []
    for entry in found["runs"]:
        for phase in entry["phases"]:
            phase["vram"] = report.peak(peaks, phase["start"], phase["stop"])
    found |= {
        "exit": code,
        "ram_group": ram.group_peak(group) / 2**30,
        "limited": group is not None or card.ram is None,
    }
    if code and not any(entry["problem"] for entry in found["runs"]):
        found["died"] = "killed for memory" if code in (-9, 137) else f"exit {code}"
    if group:
        group.rmdir()
    runs = {engine: [entry for entry in found["runs"] if entry["engine"] == engine] for engine in engines}
    return {engine: {**found, "runs": entries} for engine, entries in runs.items()}


def _runs(engine: str, model: Model, clip: Clip, count: int) -> list[dict[str, Any]]:
    prompt = ENGINES[engine](model, clip, f"{engine.split(',')[0]}_{model.precision}_{clip.name}")
    cudnn_first = "cuDNN" in engine
    return [
        {"engine": engine, "prompt": graphs.reseeded(prompt, seed), "cudnn_first": cudnn_first}
        for seed in range(1, count + 1)
    ]


def bisect(base: Path, options: argparse.Namespace) -> int:
    """The least VRAM of each phase; least.json."""
    orders = {"base": str(base), "output": str(options.output / "least.json"), "seconds": options.limit}
    orders["phases"] = options.least or ["sampling", "VAE decode", "VAE encode", "text encode"]
    file = options.output / "orders.json"
    file.write_text(json.dumps(orders), encoding="utf-8")
    return subprocess.call([sys.executable, str(TOOL), "--least-child", str(file)], preexec_fn=_end_with_parent)


def bisect_ram(models: dict[str, Model], clip: Clip, cards: list[Card], base: Path, options: argparse.Namespace) -> int:
    """The least RAM of one cold run of each model on each card, by our graph; least_ram.json."""
    options.runs, rows = 1, []
    (engine, *_) = options.engines
    for card, (name, model) in product(cards, models.items()):
        row: dict[str, Any] = {"model": name, "clip": clip.name, "card": card.name, "engine": engine}
        row["planned"] = least_ram.planned(model, clip, card, base)
        print(f"{card.name}: {engine} {name} {clip.name}, planned {row['planned'] / cases.GIB:.2f} GiB", flush=True)

        def attempt(limit: int, model: Model = model, card: Card = card) -> str:
            found = run([engine], model, clip, replace(card, ram=limit), base, options)[engine]
            if not found["limited"]:
                raise SystemExit("This process may not make control groups, so that RAM cannot be limited.")
            problems = [entry["problem"] for entry in found["runs"]] or ["it did not come to a run"]
            problem = str(found.get("died") or problems[0])
            print(f"  {limit / cases.GIB:.2f} GiB: {problem or 'runs'}", flush=True)
            return problem

        least, row["tries"] = least_ram.search(attempt)
        row["least"] = least
        print(
            f"  least {least / cases.GIB:.2f} GiB" if least else f"  fails with {least_ram.TO / cases.GIB:.0f} GiB, too"
        )
        rows.append(row)
        least_ram.write(rows, options.output)
    return 0


def _end_with_parent() -> None:
    """In the child on Linux: a killed tool leaves nothing on the GPU."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextmanager
def made_small(card: Card) -> Iterator[Send | None]:
    """A process that leaves as much of the GPU as the card has; yields what sends it a command."""
    if card.name == "CPU":
        yield None
        return
    with balloon.started() as send:
        send(f"leave {card.vram}" if card.vram else "peaks")
        yield send
