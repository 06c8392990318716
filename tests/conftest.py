"""Makes the checkout importable as `wancore` for every test, and says which tests go to one worker together."""

from __future__ import annotations

import gc
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_spec = importlib.util.spec_from_file_location("wancore_tools_pack", Path(__file__).parents[1] / "tools" / "pack.py")
assert _spec is not None and _spec.loader is not None
_pack = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_pack)
_pack.import_pack()

OWN_SERVERS = ("test_demo", "test_portable", "test_whole_templates")  # not the one of tests/server
GROUPS = (  # of more than 20 s of a core: at the end no worker waits long for the others
    "server/test_whole_templates",
    "browser",
    "pocket/test_meaning",
    "server",
    "pocket/test_training_loop",
    "pocket/test_following",
    "server/test_demo",
    "tools/test_setup",
    "tools/test_bench",
    "tools/test_bench_memory",
    "pocket/test_loras",
    "bridge/test_branches",
    "bridge/test_guider",
    "core/test_kernels",
)  # the longest ones, which start first


@pytest.fixture
def worker() -> Iterator[None]:
    """Inference mode, as in ComfyUI's worker; one thread, because at the sizes of tests several wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _rank(item.nodeid))


def pytest_collection_finish() -> None:
    """Leaves what the imports made out of every later collection of garbage, which ComfyUI asks for at each load."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Workers of pytest-xdist take whole groups: the tests of one server, of the browser, or else of one file."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Scheduling(config, log)


def _group(nodeid: str) -> str:
    path = Path(nodeid.partition("::")[0])
    folder = path.parent.name
    shared = folder == "browser" or (folder == "server" and path.stem not in OWN_SERVERS)
    return folder if shared else f"{folder}/{path.stem}"


def _rank(nodeid: str) -> int:
    group = _group(nodeid)
    return GROUPS.index(group) if group in GROUPS else len(GROUPS)


@pytest.fixture(scope="session", autouse=True)
def no_byte_code_of_temporary_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What servers import from a folder that only this run has is not kept in the cache."""
    yield
    if sys.pycache_prefix:
        shutil.rmtree(Path(sys.pycache_prefix, *tmp_path_factory.getbasetemp().parts[1:]), ignore_errors=True)
