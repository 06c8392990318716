"""An installation as the portable download makes it: its own folder with awkward names, nothing beside Python in it.

`python -s`, no compiler, no Triton, the pack copied into custom_nodes, weights in sub-folders of another disk's folder
that `extra_model_paths.yaml` names.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from graphs import LORA_HIGH, LORA_LOW, T2V_HIGH, T2V_LOW, TEXT_ENCODER, VAE, Nodes, text_to_video
from make_pocket import build, family
from pocket_files import copy_pocket
from pocket_gguf import write_gguf
from setup.client import Client
from setup.places import ROOT
from setup.server import PACK_FOLDER, Launch, Server, serve

SUBFOLDERS = {"diffusion_models": "Wan 2.2/Größe 14B", "text_encoders": "umt5", "vae": "wan", "loras": "wan/4 Schritte"}
FOLDERS = {T2V_HIGH: "diffusion_models", T2V_LOW: "diffusion_models", TEXT_ENCODER: "text_encoders", VAE: "vae"}
FOLDERS |= {LORA_HIGH: "loras", LORA_LOW: "loras"}
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", "artefacts", "output", ".*_cache")
# Python reads this at its start: nothing can import Triton then, as on Windows, where no package offers it.
NO_TRITON = "import sys\nsys.modules['triton'] = None\n"


GGUF = "Wan2.2-T2V-A14B-HighNoise-Q8_0.gguf"
# What another pack for GGUF files does to ComfyUI's lists at its import.
OTHER_PACK = """import folder_paths
paths = folder_paths.folder_names_and_paths
paths["unet_gguf"] = (paths["diffusion_models"][0], {".gguf"})
paths["clip_gguf"] = (paths["text_encoders"][0], {".gguf"})
NODE_CLASS_MAPPINGS = {}
"""


def make_models(folder: Path) -> None:
    """Writes the miniature files into sub-folders of a models folder."""
    copy_pocket(folder)
    for kind, subfolder in SUBFOLDERS.items():
        (folder / kind / subfolder).mkdir(parents=True)
        for file in [file for file in (folder / kind).iterdir() if file.is_file()]:
            file.rename(folder / kind / subfolder / file.name)


@pytest.fixture(scope="module")
def installation(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("ComfyUI Größe")
    folder = top / "Künstliche Clips" / "ComfyUI"
    shutil.copytree(comfyui, folder, ignore=shutil.ignore_patterns("__pycache__", "tests*"))
    shutil.copytree(ROOT, folder / "custom_nodes" / PACK_FOLDER, ignore=LEFT_OUT)
    models = top / "Modelle für alle"
    make_models(models)
    lines = ["comfyui:", f"    base_path: {models}", *(f"    {kind}: {kind}/" for kind in SUBFOLDERS)]
    (folder / "extra_model_paths.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "custom_nodes" / "ComfyUI-GGUF").mkdir()
    (folder / "custom_nodes" / "ComfyUI-GGUF" / "__init__.py").write_text(OTHER_PACK)
    (top / "start").mkdir()
    (top / "start" / "sitecustomize.py").write_text(NO_TRITON)
    return folder


@pytest.fixture(scope="module")
def portable(installation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    nothing = tmp_path_factory.mktemp("path")  # no compiler, no git, nothing
    environment = {"PATH": str(nothing), "CC": "", "CXX": "", "PYTHONPATH": str(installation.parents[1] / "start")}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # this copy is never started again
    launch = Launch(installation, Path(sys.executable), installation, ("--cpu",), ("-s",), environment)
    with serve(launch, installation / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def visitor(portable: Server) -> Client:
    return Client(portable.address)


def listed(name: str) -> str:
    """The name of a file in the lists, with its sub-folder."""
    return str(Path(SUBFOLDERS[FOLDERS[name]]) / name)


def test_imports_without_a_warning(portable: Server) -> None:
    assert portable.import_failures() == []
    assert portable.pack_warnings() == []


def test_lists_files_of_sub_folders(visitor: Client) -> None:
    for name, folder in FOLDERS.items():
        assert listed(name) in visitor.get(f"/models/{folder}")


def options(visitor: Client, node: str, widget: str) -> list[str]:
    kind, *settings = visitor.get(f"/object_info/{node}")[node]["input"]["required"][widget]
    return settings[0]["options"] if kind == "COMBO" else kind


def test_gguf_beside_another_pack_for_it_appears_on_a_refresh(visitor: Client, installation: Path) -> None:
    """The other pack lists GGUF files for itself, over the same folders; neither list shows the other's twice."""
    folder = installation.parents[1] / "Modelle für alle" / "diffusion_models" / SUBFOLDERS["diffusion_models"]
    name = f"{SUBFOLDERS['diffusion_models']}/{GGUF}"
    assert name not in options(visitor, "WanCoreLoadModels", "model")
    write_gguf(folder / GGUF, build(family.T2V_HIGH, fp8=False), "Q8_0")
    assert options(visitor, "WanCoreLoadModels", "model").count(name) == 1
    assert options(visitor, "WanCoreLoadDiffusionModel", "model_name").count(name) == 1
    assert name not in options(visitor, "UNETLoader", "unet_name")
    assert visitor.get("/models/unet_gguf") == [name]


@pytest.mark.parametrize("slash", ["/", "\\"])
def test_files_are_found_with_both_slashes(visitor: Client, slash: str) -> None:
    nodes = Nodes(visitor.get("/object_info"))
    names = {"model": listed(T2V_HIGH), "vae": listed(VAE), "text_encoder": listed(TEXT_ENCODER)}
    doctor = nodes("WanCoreDoctor", **names, low_model="none", lora="none")
    doctor["inputs"] |= {widget: name.replace("/", slash) for widget, name in names.items()}
    text = str(visitor.run({"doctor": doctor, "shown": nodes("PreviewAny", source=["doctor", 0])}).outputs)
    assert "These fit together." in text and T2V_HIGH in text


def test_a_file_that_is_not_there_is_refused_before_the_run(visitor: Client) -> None:
    nodes = Nodes(visitor.get("/object_info"))
    doctor = nodes("WanCoreDoctor", model=listed(T2V_HIGH), low_model="none", vae="none", text_encoder="none")
    doctor["inputs"] |= {"vae": "../" + listed(VAE)}
    with pytest.raises(Exception, match="there is no"):
        visitor.run({"doctor": doctor})


def test_makes_a_clip_with_everything_else_found_by_itself(visitor: Client) -> None:
    nodes = Nodes(visitor.get("/object_info"))
    models = nodes("WanCoreLoadModels", model=listed(T2V_HIGH))
    assert {models["inputs"][name] for name in ("low_model", "text_encoder", "vae")} == {"auto"}
    result = visitor.run(text_to_video(nodes, models=models, prefix="Künstlich/Größe 1"))
    (saved,) = result.files()
    assert (saved["subfolder"], saved["filename"].startswith("Größe 1")) == ("Künstlich", True)
    assert visitor.view(saved)[4:8] == b"ftyp"


def test_makes_a_clip_with_four_step_loras(visitor: Client) -> None:
    nodes = Nodes(visitor.get("/object_info"))
    prompt = text_to_video(nodes, steps=0)
    prompt["models"]["inputs"] |= {"model": listed(T2V_HIGH), "low_model": listed(T2V_LOW)}
    prompt["loras"] = nodes(
        "WanCoreLoraPair", high=["models", 0], low=["models", 1], lora_high=listed(LORA_HIGH), lora_low=listed(LORA_LOW)
    )
    prompt["sampler"]["inputs"] |= {"high": ["loras", 0], "low": ["loras", 1]}
    steps = []
    visitor.run(prompt, on_progress=lambda moment: steps.append(moment) if moment.node_id == "sampler" else None)
    assert max(moment.maximum for moment in steps) == 4


def test_writes_nothing_into_the_pack(portable: Server, visitor: Client, installation: Path) -> None:
    pack = installation / "custom_nodes" / PACK_FOLDER
    there = {file.relative_to(pack) for file in pack.rglob("*") if file.is_file()}
    source = {file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file()}
    assert there <= source
