"""What a MODEL is, told so that another process tells the same: the nodes that made it, and their files."""

from __future__ import annotations

import os
from typing import Any

import comfy.model_management
import comfyui_version
import folder_paths
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...wan_core.weights.names import HIGH, LOW
from .facts import model_facts
from .files import Stamp, stamp_of
from .lora_table import rows_of
from .replay import digest

LONGEST_NAME = 255  # characters; longer texts are no file names
# Nodes that give a pair as their first outputs: what is for one expert alone has its name in the name of the input.
PAIRED = {"WanCoreLoadModels", "WanCoreLoraPair", "WanCoreStepCache", "WanCoreAttention8", "WanCoreLayers8"}
OTHER_EXPERT = {0: LOW, 1: HIGH}  # by output of these nodes
FEW = 64  # values of a patch's tensor: LoRAs of one name differ in them


def graph_digest(prompt: Any, node_id: str | None, name: str) -> str:
    """A number for everything above input `name` of a node: nodes, widgets, and the files that these name.

    Raises:
        LookupError: the node is not in the prompt (API format).
    """
    if not prompt or node_id not in prompt:
        raise LookupError("the graph is not known")
    return _Graph(prompt).below(prompt[node_id]["inputs"].get(name))


class _Graph:
    """Numbers of a prompt's nodes, each computed once."""

    def __init__(self, prompt: dict[str, Any]) -> None:
        self.prompt = prompt
        self.known: dict[tuple[str, str | None], str] = {}  # by node, and the expert that does not count

    def below(self, value: Any) -> str:
        """Of an input: a link to another node, or a widget's value."""
        if isinstance(value, list) and len(value) == 2 and str(value[0]) in self.prompt:
            return digest(self._node(str(value[0]), value[1]), value[1])
        return digest(value, stamps(value) if isinstance(value, str) else None)

    def _node(self, node_id: str, output: int) -> str:
        node = self.prompt[node_id]
        other = OTHER_EXPERT.get(output) if node["class_type"] in PAIRED else None
        key = node_id, other
        if key not in self.known:
            given = {name: value for name, value in node["inputs"].items() if other not in name.split("_")}
            inputs = {name: self.below(value) for name, value in given.items()}
            self.known[key] = digest(node["class_type"], inputs)
        return self.known[key]


def stamps(name: str) -> list[Stamp]:
    """What every file is like now that a widget's text may mean."""
    if not name or len(name) > LONGEST_NAME or "\n" in name or "\0" in name:
        return []
    paths = [folder_paths.get_full_path(folder, name) for folder in sorted(folder_paths.folder_names_and_paths)]
    paths.append(os.path.join(folder_paths.get_input_directory(), name))
    return [stamp_of(path) for path in paths if path is not None and os.path.isfile(path)]


def model_identity(model: Any) -> str:
    """A number for a MODEL's file, its patches, and what it is computed with."""
    path = model_facts(model).path
    device = model.load_device
    return digest(
        path,
        stamp_of(path) if path else None,
        type(model.model.diffusion_model).__name__,
        str(model.model_dtype()),
        {name: [_told(patch) for patch in patches] for name, patches in model.patches.items()},
        [row.told() for row in rows_of(model)],
        comfy.model_management.get_torch_device_name(device),
        optimized_attention.__name__,  # what the command line asks for
        comfyui_version.__version__,
        torch.__version__,
    )


def _told(patch: Any) -> Any:
    """Numbers and the first values of the tensors in a patch of ComfyUI's."""
    if isinstance(patch, Tensor):
        return [list(patch.shape), str(patch.dtype), patch.flatten()[:FEW].float().tolist()]
    if isinstance(patch, list | tuple):
        return [_told(part) for part in patch]
    if isinstance(patch, bool | int | float | str) or patch is None:
        return patch
    return [type(patch).__name__, _told(getattr(patch, "weights", None))]
