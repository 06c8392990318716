"""Every bundled workflow on the real server with no widget touched, at its full size, to the file that it saves.

The models are the miniatures as they are, trained where they are; media are small, and where a workflow follows their
size and length so is its clip. Nobody judges what the clips show. "Wan 2.2 Text to Video" is run by the browser
(tests/browser/test_run.py), text to image and sound to video beside their own tests.

What a run costs is attention over 30,000 tokens, 5 to 6 s of one core for each layer, head and step; the 5B's clip
takes a minute to decode beside that. So the 5B keeps one of its three layers, Fun Camera, whose weights are random
anyhow, one of two, and image to video, whose 4-step LoRAs are, one of five. The VAEs compute in bfloat16, as on a GPU,
where the processor has it; in all other tests it is float32. Left out are the long video (three clips of text to
video, 15 minutes) and the GGUF twin of text to video (5; small ones in test_long_video.py and test_gguf.py).
WANCORE_ALL_TEMPLATES=1 runs both, too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from fast_vae import fast_vae
from make_pocket import build, write
from pocket_files import copy_pocket
from pocket_gguf import write_family
from setup.client import Client
from setup.places import ROOT
from setup.server import Launch, Server, link_pack, serve
from template_media import write_media
from wancore.pocket import family
from workflow_api import to_prompt

WHOLE = bool(os.environ.get("WANCORE_ALL_TEMPLATES"))
ELSEWHERE = ("Wan 2.2 Text to Video", "Wan 2.2 Text to Image", "Wan 2.2 Sound to Video")
LONG = () if WHOLE else ("Wan 2.2 Long Video", "Wan 2.2 Text to Video GGUF")
TITLES = [file.stem for file in sorted((ROOT / "workflows").glob("*.json")) if file.stem not in (*ELSEWHERE, *LONG)]
SHORTER = (  # those of Fun Camera by short names of which there are no trained weights
    replace(family.CAMERA_HIGH, layers=1, short="short_camera_high"),
    replace(family.CAMERA_LOW, layers=1, short="short_camera_low"),
    replace(family.I2V_HIGH, layers=1),
    replace(family.I2V_LOW, layers=1),
    replace(family.TI2V, layers=1),
)
OPENING = {  # width, height, rate, frames of what the template comes to with the media of tests/template_media.py
    "Wan 2.2 Text to Video GGUF": (832, 480, Fraction(16), 81),
    "Wan 2.2 Image to Video": (832, 464, Fraction(16), 81),
    "Wan 2.2 First-Last Frame to Video": (832, 464, Fraction(16), 81),
    "Wan 2.2 Fun Camera to Video": (832, 464, Fraction(16), 81),
    "Wan 2.2 5B Text and Image to Video": (1280, 704, Fraction(24), 121),
    "Wan 2.2 Long Video": (832, 480, Fraction(16), 81 + 2 * (81 - 12)),
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("whole")
    link_pack(base)
    models = base / "models"
    copy_pocket(models)
    write_media(base)
    if WHOLE:
        write_family(models)
    else:
        for member in SHORTER:
            write(build(member, fp8=True), models / member.folder / member.name, member.metadata)
    return base


@pytest.fixture(scope="module")
def whole_server(comfyui: Path, whole_base: Path) -> Iterator[Server]:
    artefacts = ROOT / "tests" / "artefacts"
    artefacts.mkdir(exist_ok=True)
    launch = Launch(comfyui, Path(sys.executable), whole_base, ("--cpu", *fast_vae()))
    with serve(launch, artefacts / "server-templates.log") as running:
        yield running


@pytest.mark.parametrize("title", TITLES)
def test_runs_unedited(title: str, whole_server: Server, whole_base: Path, workflows: dict[str, Any]) -> None:
    client = Client(whole_server.address)
    prompt = to_prompt(workflows[title], client.get("/object_info"))
    (saved,) = client.run(prompt, workflow=workflows[title]).files()
    path = whole_base / saved["type"] / saved["subfolder"] / saved["filename"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        found = stream.codec_context.width, stream.codec_context.height, stream.average_rate, len(frames)
    assert max(frame.std() for frame in frames) > 0, "the clip is flat"
    assert found == OPENING.get(title, found)
