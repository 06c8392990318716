"""Turns a saved ComfyUI graph into the prompt that the front end sends when Run is pressed.

`to_prompt(workflow, object_info)` flattens subgraphs (node ids "outer:inner"), gives promoted widgets their host's
value, follows links through reroutes, bypassed nodes and subgraph borders, and leaves out notes and muted nodes.
The behaviour is that of graphToPrompt of the front end 1.47; tests/browser compares the two in a real browser.
Known differences: an unknown node type is an error here; %Node.widget% in a file name is left as it is; widgets that
scripts of the front end add to a few nodes (CustomCombo, Painter, SaveGLB) are not there; titles of native nodes are
the server's, not the translated ones.

    python3 tools/workflow_api.py "workflows/Wan 2.2 Text to Video.json" --server http://127.0.0.1:8188
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workflow_graph import (
    BYPASSED,
    MUTED,
    SUBGRAPH_INPUT,
    Graph,
    Library,
    Node,
    WorkflowError,
    promoted_slots,
    subgraphs_of,
    with_unique_ids,
)
from workflow_widgets import Json, dynamic_prompt, read_widgets


@dataclass(frozen=True)
class Promoted:
    """The end of a link that leads to a promoted widget."""

    value: Any


Source = Promoted | tuple[str, int] | None


def _resolve_input(node: Node, index: int, kind: str | None = None, depth: int = 0) -> Source:
    """Where input `index` gets its data: a promoted value, (node id, output slot), or nothing."""
    if depth > 200:
        raise WorkflowError(f"The links of node {node.id} go round in a circle.")
    slot = node.inputs[index]
    link = node.graph.links.get(slot.link)
    if link is None:
        return None
    host = node.graph.host
    if host and link.origin == SUBGRAPH_INPUT:
        outer = host.inputs[link.origin_slot]
        if outer.link is not None:
            return _resolve_input(host, link.origin_slot, None, depth + 1)
        return Promoted(host.values[outer.name]) if outer.name in host.values else None
    origin = node.graph.nodes.get(link.origin)
    return _resolve_output(origin, link.origin_slot, kind or slot.type, depth + 1) if origin else None


def _resolve_output(node: Node, slot: int, kind: str, depth: int) -> Source:
    if node.mode == MUTED:
        return None
    if node.mode == BYPASSED:
        index = _stand_in(node, slot, kind)
        return None if index is None else _resolve_input(node, index, None, depth)
    if node.inner:
        ends = node.inner.saved["outputs"][slot].get("linkIds") or ()
        link = node.inner.links.get(ends[0]) if ends else None
        origin = node.inner.nodes.get(link.origin) if link else None
        return _resolve_output(origin, link.origin_slot, kind, depth + 1) if origin and link else None
    if node.definition:
        return node.id, slot
    return _resolve_input(node, slot, kind, depth) if slot < len(node.inputs) else None


def _stand_in(node: Node, slot: int, kind: str) -> int | None:
    """The input that stands in for output `slot` of a bypassed node: the same slot, else the first of its type."""
    if kind in ("*", ""):
        return slot if slot < len(node.inputs) else 0
    output = node.saved["outputs"][slot].get("type", "*")
    fitting = [i for i, entry in enumerate(node.inputs) if _fits(entry.type, output) and _fits(entry.type, kind)]
    if slot in fitting:
        return slot
    exact = [i for i, entry in enumerate(node.inputs) if entry.type == kind]
    return next(iter(exact + fitting), None)


def _fits(one: str, other: str) -> bool:
    if one in ("", "*") or other in ("", "*"):
        return True
    return not set(one.lower().split(",")).isdisjoint(other.lower().split(","))


def to_prompt(workflow: Json, object_info: Json) -> Json:
    """The API prompt {node id: {inputs, class_type, _meta}} of a saved workflow.

    `object_info` is the server's answer to GET /object_info; the definitions of the used nodes are enough.

    Raises:
        WorkflowError: a node type that `object_info` lacks, or links that go round in a circle.
    """
    workflow = with_unique_ids(workflow)
    graph = Graph(workflow, Library(object_info, {entry["id"]: entry for entry in subgraphs_of(workflow)}))
    prompt = {node.id: _prompt_entry(node) for node in graph.walk() if node.definition and not node.is_off}
    for entry in prompt.values():
        lost = [name for name, value in entry["inputs"].items() if isinstance(value, list) and value[0] not in prompt]
        for name in lost:
            del entry["inputs"][name]
    return prompt


def set_widget(workflow: Json, node: str | int, name: str, value: Any, object_info: Json | None = None) -> None:
    """Sets a widget of a top-level node, found by title, id or type, in place.

    A promoted widget of a subgraph may be named by its label too. Any other node needs `object_info`, which says
    in what order its values are saved.

    Raises:
        WorkflowError: no such node or widget, or `object_info` lacks the node.
    """
    subgraphs = {entry["id"]: entry for entry in subgraphs_of(workflow)}
    for entry in workflow["nodes"]:
        subgraph = subgraphs.get(entry["type"], {})
        if str(node) in (str(entry["id"]), entry["type"], entry.get("title"), subgraph.get("name")):
            break
    else:
        raise WorkflowError(f"No node {node!r} at the top level of the workflow.")
    values = entry.get("widgets_values") or []
    definition = (object_info or {}).get(entry["type"])
    if subgraph:
        slots = list(promoted_slots(subgraph))
        positions = {slot[key]: place for key in ("label", "name") for place, slot in enumerate(slots) if key in slot}
    elif definition:
        positions = read_widgets(definition, values).positions
    else:
        raise WorkflowError(f"Setting a widget of {node!r} needs the server's definition of {entry['type']!r}.")
    if positions.get(name, len(values)) >= len(values):
        raise WorkflowError(f"Node {node!r} has no saved widget {name!r}; it has {sorted(positions)}.")
    values[positions[name]] = value


def _prompt_entry(node: Node) -> Json:
    assert node.definition is not None
    texts = {name: dynamic_prompt(node.values[name]) for name in node.prompts if isinstance(node.values[name], str)}
    inputs = {name: _wrapped(value) for name, value in (node.values | texts).items()}
    for index, slot in enumerate(node.inputs):
        source = _resolve_input(node, index)
        if isinstance(source, Promoted):
            inputs[slot.name] = _wrapped(source.value)
        elif source:
            inputs[slot.name] = list(source)
    title = node.saved.get("title") or node.definition.get("display_name") or node.type
    return {"inputs": inputs, "class_type": node.type, "_meta": {"title": title}}


def _wrapped(value: Any) -> Any:
    """A list in a prompt means a link, so a list that is a value travels in an object."""
    return {"__value__": value} if isinstance(value, list) else value


def main() -> int:
    """Prints the prompt of a workflow file; the server must be running."""
    parser = argparse.ArgumentParser(description="Print the API prompt of a saved ComfyUI workflow.")
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="address of a running ComfyUI")
    options = parser.parse_args()
    with urllib.request.urlopen(options.server.rstrip("/") + "/object_info") as answer:
        object_info = json.load(answer)
    try:
        prompt = to_prompt(json.loads(options.workflow.read_text(encoding="utf-8")), object_info)
    except WorkflowError as error:
        print(error, file=sys.stderr)
        return 1
    json.dump(prompt, sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
