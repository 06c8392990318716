"""The direction of imports, nodes -> bridge -> wan_core, and what each layer takes from outside; read from the AST."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "comfy_aimdo", "comfy_quant"}
HOST |= {"execution", "folder_paths", "latent_preview", "node_helpers", "nodes", "server", "app", "aiohttp"}
OURS = {"wancore", "wan_core", "pocket", "tools", "tests"}  # ComfyUI loads the pack under a name of its own
LIBRARIES = {"torch", "typing_extensions", "numpy", "safetensors", "av", "PIL", "sentencepiece", "tokenizers", "ftfy"}
UNSAFE = {"subprocess", "pickle", "marshal", "shelve", "urllib", "http", "socket", "ftplib", "smtplib", "telnetlib"}
OPTIONAL = {  # where a library may be asked for that not everyone has, or that does not belong everywhere
    "einops": ("wan_core/vae/", "wan_core/weights/"),
    "comfy_kitchen": ("wan_core/kernels/",),
    "triton": ("wan_core/kernels/",),
    "flash_attn": ("wan_core/attention.py",),
}


def product_files() -> list[Path]:
    """Everything that ComfyUI loads."""
    return [ROOT / "__init__.py", *sorted((ROOT / "nodes").rglob("*.py")), *sorted((ROOT / "wan_core").rglob("*.py"))]


def imports(path: PurePosixPath, tree: ast.AST) -> Iterator[str]:
    """Absolute names as written; relative ones as paths: `./wan_core/vae/wan21`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1] if node.level <= len(path.parents) else PurePosixPath("outside")
            target = folder / (node.module or "").replace(".", "/")
            yield from (f"./{target / alias.name}" for alias in node.names)


def layer(path: str) -> str:
    """bridge, nodes, wan_core or root."""
    if path.startswith("nodes/bridge"):
        return "bridge"
    return path.split("/")[0] if path.startswith(("nodes/", "wan_core/")) else "root"


ALLOWED = {
    "wan_core": {"wan_core"},
    "bridge": {"bridge", "wan_core"},
    "nodes": {"nodes", "bridge", "wan_core"},
    "root": {"root", "nodes", "bridge", "wan_core"},
}


def problems(name: str, source: str) -> list[str]:
    """What is against the rules in one file, whose name is given from the root."""
    path, tree, found = PurePosixPath(name), ast.parse(source), []
    here = layer(name)
    for target in imports(path, tree):
        if target.startswith("./"):
            if layer(f"{target[2:]}/") not in ALLOWED[here]:
                found.append(f"{name}: {here} imports {target}")
            continue
        found += [f"{name}: {problem}" for problem in outside(here, name, target)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("eval", "exec", "torch.load", "__import__"):
            found.append(f"{name}: calls {ast.unparse(node.func)}")
    return found


def outside(here: str, name: str, target: str) -> Iterator[str]:
    """Rules for an absolute import."""
    package = target.split(".")[0]
    if package in OURS:
        yield f"imports {target} absolutely"
    if package in UNSAFE:
        yield f"imports {target}"
    if here in ("nodes", "root") and package in HOST and not target.startswith("comfy_api.latest"):
        yield f"imports {target}: only the bridge may"
    anywhere = package in sys.stdlib_module_names | LIBRARIES
    if here == "wan_core" and not anywhere and not name.startswith(OPTIONAL.get(package, ("nowhere",))):
        yield f"imports {target}"


@pytest.mark.parametrize("path", product_files(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path):
    assert problems(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("wan_core/blocks.py", "import comfy.ops"),
        ("wan_core/blocks.py", "def f():\n    from comfy import ops"),
        ("wan_core/blocks.py", "from ..nodes.bridge import host"),
        ("wan_core/blocks.py", "import einops"),
        ("wan_core/blocks.py", "import comfy_kitchen"),
        ("wan_core/blocks.py", "import transformers"),
        ("wan_core/vae/wan21.py", "from ...nodes import text"),
        ("wan_core/weights/gguf.py", "import pickle"),
        ("wan_core/weights/gguf.py", "x = torch.load('a')"),
        ("wan_core/media/video.py", "from subprocess import run"),
        ("wan_core/media/video.py", "import urllib.request"),
        ("nodes/text.py", "import folder_paths"),
        ("nodes/text.py", "from comfy import samplers"),
        ("nodes/text.py", "from comfy_api.util import VideoCodec"),
        ("nodes/text.py", "from wancore.wan_core import config"),
        ("nodes/bridge/model.py", "from .. import text"),
        ("nodes/bridge/model.py", "from ..text import NODES"),
        ("nodes/bridge/model.py", "exec('1')"),
        ("__init__.py", "import server"),
    ],
)
def test_the_rules_find_what_is_against_them(name, source):
    assert len(problems(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("wan_core/vae/wan21.py", "from ..config import X\nfrom . import causal\nimport einops, torch.nn, math"),
        ("wan_core/kernels/norm.py", "import comfy_kitchen"),
        ("nodes/text.py", "from comfy_api.latest import io\nfrom .bridge import host\nfrom ..wan_core.tasks import T"),
        ("nodes/bridge/model.py", "import comfy.ops\nimport nodes\nfrom . import host\nfrom ...wan_core import ops"),
        ("nodes/bridge/model.py", "model.eval()"),
        ("__init__.py", "from comfy_api.latest import io\nfrom .nodes.bridge.host import x"),
    ],
)
def test_the_rules_allow_what_is_right(name, source):
    assert problems(name, source) == []


def test_modules_of_wan_core_do_not_import_each_other_in_circles():
    files = {path: path.relative_to(ROOT).with_suffix("").as_posix() for path in (ROOT / "wan_core").rglob("*.py")}
    modules = {name.removesuffix("/__init__") for name in files.values()}
    edges = {name.removesuffix("/__init__"): set(_at_the_top(name, path, modules)) for path, name in files.items()}
    while leaves := {name for name, targets in edges.items() if not targets & edges.keys()}:
        edges = {name: targets for name, targets in edges.items() if name not in leaves}
    assert sorted(edges) == []


def _at_the_top(name: str, path: Path, modules: set[str]) -> Iterator[str]:
    """Modules that this one imports when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        for target in imports(PurePosixPath(f"{name}.py"), node):
            whole = target.removeprefix("./")
            module = whole if whole in modules else whole.rpartition("/")[0]
            if module in modules:
                yield module
