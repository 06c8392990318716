"""The part of the demo inside the environment: server, workflow, progress, report. Started by tools/demo.py."""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import av
import torch
from make_pocket import make_pocket
from setup.client import Client, Progress, PromptFailedError, PromptRefusedError, Result
from setup.console import Console, SetupError, seconds
from setup.places import ROOT, cache_folder
from setup.server import Launch, Server, arguments_for, link_pack, serve
from workflow_api import set_widget, to_prompt

WORKFLOW = ROOT / "workflows" / "Wan 2.2 Text to Video.json"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--size", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args(arguments)


def pocket_models(base: Path) -> Path:
    """The models folder of the demo with the miniature files under their published names; written when they changed."""
    models = base / "models"
    sources = [ROOT / "tools" / "make_pocket.py", *sorted((ROOT / "pocket").rglob("*.*"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sources if "__pycache__" not in file.parts))
    stamp = models / "pocket.sha256"
    if not stamp.is_file() or stamp.read_text() != digest.hexdigest():
        make_pocket(models)
        stamp.write_text(digest.hexdigest())
    return models


def configure(workflow: dict[str, Any], options: argparse.Namespace, nodes: Mapping[str, Any]) -> None:
    """Sets the widgets that a user would set: on the front of the template, and width and height inside it."""
    front = {"prompt": options.prompt, "size": "custom", "seconds": options.seconds, "seed": options.seed}
    for name, value in front.items():
        set_widget(workflow, WORKFLOW.stem, name, value)
    for side, pixels in zip(("width", "height"), options.size.split("x"), strict=True):
        for inside in workflow["definitions"]["subgraphs"]:
            set_widget(inside, "WanCoreTextToVideo", side, int(pixels), dict(nodes))


class Reporter:
    """Shows the progress of a prompt, with the seconds that the running node still needs."""

    def __init__(self, console: Console, titles: Mapping[str, str]) -> None:
        self._console, self._titles = console, titles
        self._node, self._since, self._text = "", 0.0, ""

    def __call__(self, moment: Progress) -> None:
        now = time.monotonic()
        if moment.node_id != self._node:
            self._node, self._since, self._text = moment.node_id, now, ""
        self._text = moment.text.rstrip().rpartition("\n")[2] or self._text
        how_far = self._text  # what the node says itself; the sampler says step, expert and seconds left
        if moment.value and not how_far:
            left = (moment.maximum - moment.value) * (now - self._since) / moment.value
            how_far = f"{moment.value:.0f} of {moment.maximum:.0f}, {seconds(left)} left"
        title = self._titles.get(moment.node_type, moment.node_type)
        self._console.progress(f"{title}: {how_far}" if how_far else title)


def report(console: Console, file: Path, result: Result, prompt: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """Prints path, size, frame count and the time of each stage."""
    with av.open(str(file)) as video:
        stream = video.streams.video[0]
        frames = sum(1 for _ in video.decode(stream))
        rate = float(stream.average_rate or 0)
        size = f"{stream.codec_context.width}x{stream.codec_context.height}"
    console.say(f"Clip: {file}")
    console.say(f"  {size}, {frames} frames at {rate:g} per second, {file.stat().st_size / 1e6:.2f} MB")
    for node, duration in result.seconds.items():
        if duration >= 0.05:
            title = titles[prompt[node]["class_type"]]
            console.say(f"  {title:<28} {seconds(duration):>10}")


def make_clip(console: Console, client: Client, options: argparse.Namespace) -> Path:
    """Runs the bundled workflow with the user's prompt and returns the mp4."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    nodes = client.get("/object_info")
    titles = {name: node["display_name"] or name for name, node in nodes.items()}
    configure(workflow, options, nodes)
    prompt = to_prompt(workflow, nodes)
    result = client.run(prompt, workflow=workflow, on_progress=Reporter(console, titles))
    saved = result.files()[-1]
    file = options.output / saved["subfolder"] / saved["filename"]
    report(console, file, result, prompt, titles)
    return file


def need_nodes(server: Server, client: Client) -> None:
    """Refuses a server that did not take the pack, with what the pack said to that.

    Raises:
        SetupError: the import failed, or ComfyUI or torch is too old for the nodes.
    """
    if server.import_failures():
        raise SetupError(f"ComfyUI could not import the pack: {server.log()}")
    if not client.get("/object_info/WanCoreTextToVideo"):
        said = [line.partition("WanCore: ")[2] for line in server.log().splitlines() if "WanCore: " in line]
        raise SetupError("; ".join(said) or f"ComfyUI has none of the pack's nodes: {server.log()}")


def run(console: Console, options: argparse.Namespace) -> None:
    """Starts the server, makes the clip, and keeps serving if asked to.

    Raises:
        SetupError: the server does not start, or did not import the pack.
    """
    base = cache_folder() / "demo"
    link_pack(base)
    options.output.mkdir(parents=True, exist_ok=True)
    with console.step("Miniature weights under the published names"):
        pocket_models(base)
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    with tempfile.TemporaryDirectory(prefix="wancore-") as temporary:
        folders = ("--output-directory", str(options.output), "--temp-directory", temporary)
        launch = Launch(options.comfyui, Path(sys.executable), base, (*folders, *arguments_for(device)))
        console.say(f"  ComfyUI server on the {'graphics card' if device == 'cuda' else 'CPU'} ...")
        start = time.monotonic()
        with serve(launch, Path(temporary) / "server.log") as server:
            client = Client(server.address)
            need_nodes(server, client)
            console.say(f"    done in {seconds(time.monotonic() - start)}, at {server.address}")
            console.say(f'Wan 2.2 Text to Video: "{options.prompt}"')
            make_clip(console, client, options)
            if options.serve:
                console.say(f"ComfyUI stays at {server.address} (Ctrl-C stops it)")
                while server.running():
                    time.sleep(0.5)


def main() -> int:
    """Makes the clip; one line for whatever stops it."""
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    try:
        run(console, parse())
    except KeyboardInterrupt:
        console.say("Stopped.")
        return 130
    except (SetupError, PromptRefusedError, PromptFailedError, OSError) as error:
        print(f"Cannot make the clip: {error}", file=sys.stderr)
        return 1
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
