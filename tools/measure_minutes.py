"""Measures what the minutes in the notes are made of: python3 tools/measure_minutes.py "Wan 2.2 Sound to Video" ...

Runs bundled workflows, as their prompts in workflows/api are but for the number of steps, on random files of the
published widths with fewer blocks, each twice in one process. Of the second run it takes the seconds of text,
conditioning, a step, the part of it that the blocks take, decoding and saving, and prints the rows that
tools/minutes.json has. Workflows with LoRAs are not taken. --smoke: the miniature models on the CPU, only to see that
it runs. The first run sets up what is missing, as tools/demo.py does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import in_the_environment
from pack import import_pack
from setup.places import ROOT

CHILD = ROOT / "tools" / "bench_memory.py"
# Of what the workflows are given: pixels, frames a second, frames and seconds of one clip, samples a second.
SIZE, FACE, RATE, FRAMES, SECONDS, SAMPLES = (832, 480), (512, 512), 30, 77, 4.5, 22050


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("titles", nargs="+", metavar="WORKFLOW")
    parser.add_argument("--layers", type=int, default=10, help="blocks of the models (default: 10)")
    parser.add_argument("--steps", type=int, default=3, help="of each run (default: 3)")
    parser.add_argument("--base", type=Path, help="base folder with models/; files that are missing are written")
    parser.add_argument("--output", type=Path, default=Path("output/minutes.json"))
    parser.add_argument("--smoke", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Writes the files, runs each workflow, prints its row; 1 if one did not run."""
    options, rows, failed = parse(arguments), {}, False
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        base = (options.base or Path(temporary) / "base").absolute()
        write_media(base / "input", small=options.smoke)
        for title in options.titles:
            prompt = prompt_of(title, options.steps)
            blocks = write_models(base / "models", prompt, options.layers, smoke=options.smoke)
            problem, found = run(prompt, base, Path(temporary), cpu=options.smoke)
            failed |= bool(problem)
            if problem:
                print(f"{title}: {problem}", flush=True)
                continue
            rows[title] = row(found, steps=options.steps, blocks=blocks)
            print(f"{title}: {json.dumps(rows[title])}", flush=True)
            options.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(failed)


def prompt_of(title: str, steps: int) -> dict[str, Any]:
    """The workflow's prompt with another number of steps."""
    prompt = json.loads((ROOT / "workflows" / "api" / f"{title}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"] == "WanCoreLoraPair":
            sys.exit(f"{title} has LoRAs, for which no files are written")
        if node["class_type"] == "WanCoreKSampler":
            node["inputs"]["steps"] = steps
    return prompt


def row(found: dict[str, Any], *, steps: int, blocks: tuple[int, int]) -> dict[str, float]:
    """The second run in the terms of tools/minutes.json; `blocks` are those of the files and of the model."""
    entry = found["runs"][1]
    spent: dict[str, float] = {}
    for phase in entry["phases"]:
        spent[phase["name"]] = spent.get(phase["name"], 0.0) + phase["stop"] - phase["start"]
    forwards, in_blocks = (
        sum(forward["stop"] - forward["start"] for forward in entry["forwards"]),
        sum(forward["blocks"] for forward in entry["forwards"]),
    )
    values = {
        "passes": 0,  # the workflow's steps: the run's were fewer
        "pass": forwards / steps,
        "blocks": in_blocks / steps,
        "measured_blocks": blocks[0],
        "of": blocks[1],
        "text": spent.get("text encode", 0.0),
        "conditioning": spent.get("VAE encode", 0.0) + spent.get("other", 0.0),
        "decode": spent.get("VAE decode", 0.0),
        "save": spent.get("save", 0.0),
    }
    return {name: round(value, 3) for name, value in values.items()}


def run(prompt: dict[str, Any], base: Path, folder: Path, *, cpu: bool) -> tuple[str, dict[str, Any]]:
    """What went wrong, and what was measured of the prompt, run twice with two seeds."""
    from wancore.tools.benchmark.memory.graphs import reseeded

    orders, output = folder / "orders.json", folder / "result.json"
    output.unlink(missing_ok=True)
    runs = [{"engine": "WanCore", "prompt": reseeded(prompt, seed), "cudnn_first": False} for seed in (1, 2)]
    place = {"base": str(base), "cpu": cpu, "ram": None, "group": None, "rate": None, "output": str(output)}
    orders.write_text(json.dumps({"runs": runs, **place}), encoding="utf-8")
    done = subprocess.run([sys.executable, str(CHILD), "--child", str(orders)], capture_output=True, text=True)
    found = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"runs": []}
    problems = [entry["problem"] for entry in found["runs"] if entry["problem"]]
    if len(found["runs"]) < len(runs):
        problems.append(f"exit {done.returncode}: {done.stderr[-2000:]}")
    return "; ".join(problems), found


def write_models(folder: Path, prompt: dict[str, Any], layers: int, *, smoke: bool) -> tuple[int, int]:
    """Writes the files that the prompt names and that are not there; blocks of the diffusion model, and how many it is.

    A file stands for the published one of its name: pocket/family.py knows all of them.
    """
    from wancore.pocket import family
    from wancore.tools.benchmark.memory import files
    from wancore.tools.benchmark.weights import shapes_of

    if smoke:
        from make_pocket import make_pocket

        make_pocket(folder)
    named = {value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, str)}
    counts = (0, 0)
    for member in (member for member in family.MEMBERS if member.name in named):
        path, shapes = folder / member.folder / member.name, member.shapes.removesuffix(".json")
        if member.folder == "diffusion_models":
            whole = len({name.split(".")[1] for name in shapes_of(shapes) if name.startswith("blocks.")})
            counts = (member.layers if smoke and member.layers else layers, whole)
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if member.folder == "diffusion_models":
            files.transformer(path, shapes, "fp8" if member.fp8 else "fp16", layers=layers)
        elif member is family.TEXT_ENCODER:
            from wancore.pocket.models import load_spiece

            files.text_encoder(path, load_spiece())
        else:
            files.plain(path, shapes, "BF16" if member.dtype == "bfloat16" else "F16")
    return counts


def write_media(folder: Path, *, small: bool) -> None:
    """A picture, a tone of one clip of S2V, and two videos as long as one clip of Animate."""
    import wave

    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    size, face, frames = ((96, 64), (64, 64), 5) if small else (SIZE, FACE, FRAMES)
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    Image.fromarray(np.stack([rows // 2, columns // 4, (rows + columns) // 6], axis=-1).astype(np.uint8)).save(
        folder / "example.png"
    )
    length = round(SAMPLES * (1 if small else SECONDS))
    with wave.open(str(folder / "voice.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLES)
        file.writeframes((0.3 * np.sin(np.arange(length) * 0.06) * 32767).astype("<i2").tobytes())
    for name, pixels in (("poses.mp4", size), ("face.mp4", face)):
        write_video(folder / name, pixels, frames)


def write_video(path: Path, size: tuple[int, int], frames: int) -> None:
    """A bar that moves."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            picture = np.full((size[1], size[0], 3), 30, np.uint8)
            picture[:, number % size[0] : number % size[0] + 16] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    if importlib.util.find_spec("torch") is None or "COMFYUI_PATH" not in os.environ:
        sys.exit(in_the_environment(sys.argv[1:], __file__))
    import_pack()
    sys.exit(main(sys.argv[1:]))
