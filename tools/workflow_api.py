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
import copy
import json
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow_widgets import Json, dynamic_prompt, read_widgets

MUTED, BYPASSED = 2, 4
SUBGRAPH_INPUT = "-10"  # the node id that links inside a subgraph give for its input border
FRONT_END_NODES = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}


class WorkflowError(ValueError):
    """A saved graph that cannot become a prompt; the text names the node."""


@dataclass(frozen=True)
class Link:
    """From slot `origin_slot` of node `origin` to node `target` of the same graph."""

    id: Any
    origin: str
    origin_slot: int
    target: str


@dataclass
class Slot:
    """An input of a node; `link` is the id of the link that ends there."""

    name: str
    type: str
    link: Any = None


@dataclass(eq=False)
class Node:
    """A node of one graph; `id` is its path through the subgraphs, as in the prompt."""

    id: str
    saved: Json
    graph: Graph
    inputs: list[Slot] = field(default_factory=list)
    values: Json = field(default_factory=dict)
    prompts: set[str] = field(default_factory=set)  # the texts in which {a|b} is a random choice
    definition: Json | None = None  # of a node that the server runs
    inner: Graph | None = None  # of a subgraph's host

    @property
    def type(self) -> str:
        return self.saved["type"]

    @property
    def mode(self) -> int:
        return self.saved.get("mode", 0)

    @property
    def is_off(self) -> bool:
        return self.mode in (MUTED, BYPASSED)

    def slot_of(self, link: Link) -> Slot | None:
        return next((slot for slot in self.inputs if slot.link == link.id), None)


@dataclass(frozen=True)
class Library:
    """What the graphs of a workflow are made of: the server's node definitions and the workflow's subgraphs."""

    object_info: Json
    subgraphs: dict[str, Json]


class Graph:
    """The nodes and links of the workflow, or of one use of a subgraph in it."""

    def __init__(self, saved: Json, library: Library, host: Node | None = None) -> None:
        self.saved, self.library, self.host = saved, library, host
        self.links = {link.id: link for link in map(_link, saved.get("links") or ())}
        self.nodes = {str(entry["id"]): self._node(entry) for entry in saved["nodes"]}
        for node in self.nodes.values():
            if node.inner:
                _apply_legacy_promotions(node)
        for node in self.nodes.values():
            if node.type == "PrimitiveNode":
                self.spread(node)

    @property
    def borders(self) -> list[Json]:
        """The inputs of the subgraph."""
        return self.saved.get("inputs") or []

    def _node(self, saved: Json) -> Node:
        node = Node(f"{self.host.id}:{saved['id']}" if self.host else str(saved["id"]), saved, self)
        if node.type in self.library.subgraphs:
            node.inner = Graph(self.library.subgraphs[node.type], self.library, node)
            slots = _merged([Slot(border["name"], border["type"]) for border in node.inner.borders], saved)
            node.inputs = slots[: len(node.inner.borders)]
            _promote(node)
        elif node.type in FRONT_END_NODES:
            node.inputs = _merged([], saved)
            node.values = dict(zip(("value",), saved.get("widgets_values") or (), strict=False))
        elif node.type in self.library.object_info:
            self._define(node)
        elif not node.is_off:
            raise WorkflowError(f"Unknown node type: {node.type!r} (node {node.id}). The server does not list it.")
        return node

    def _define(self, node: Node) -> None:
        node.definition = definition = self.library.object_info[node.type]
        widgets = read_widgets(definition, node.saved.get("widgets_values"))
        sockets = [spec for spec in widgets.specs if not spec.is_widget and spec.type != "COMFY_AUTOGROW_V3"]
        sockets += [spec for spec in widgets.specs if spec.is_widget and not spec.options.get("socketless")]
        node.inputs = _merged([Slot(spec.name, spec.type) for spec in sockets], node.saved)
        node.values = widgets.values
        node.prompts = {spec.name for spec in widgets.specs if spec.is_widget and spec.options.get("dynamicPrompts")}

    def spread(self, primitive: Node) -> None:
        """Gives a primitive node's value to the widgets that it feeds."""
        for link in self.links.values():
            target = self.nodes.get(link.target)
            if link.origin == str(primitive.saved["id"]) and target and "value" in primitive.values:
                slot = target.slot_of(link)
                if slot and slot.name in target.values:
                    target.values[slot.name] = primitive.values["value"]

    def walk(self) -> Iterator[Node]:
        """All nodes, those of a subgraph after its host; none inside a top-level host that is off."""
        for node in self.nodes.values():
            yield node
            if node.inner and (self.host or not node.is_off):
                yield from node.inner.walk()


def _link(saved: list[Any] | Json) -> Link:
    if isinstance(saved, list):
        identity, origin, origin_slot, target = saved[:4]
        return Link(identity, str(origin), int(origin_slot), str(target))
    return Link(saved["id"], str(saved["origin_id"]), int(saved["origin_slot"]), str(saved["target_id"]))


def _merged(defined: list[Slot], saved: Json) -> list[Slot]:
    """The defined inputs with their saved links, then those that only the saved node has."""
    known = {slot["name"]: slot for slot in saved.get("inputs") or ()}
    names = {slot.name for slot in defined}
    more = [Slot(entry["name"], entry.get("type", "*")) for name, entry in known.items() if name not in names]
    slots = defined + more
    for slot in slots:
        slot.link = known.get(slot.name, {}).get("link")
    return slots


def _source(host: Node, border: Json) -> tuple[Node, str] | None:
    """The inner node and the name of its widget that the subgraph's input `border` feeds first."""
    assert host.inner is not None
    for identity in border.get("linkIds") or ():
        link = host.inner.links.get(identity)
        target = host.inner.nodes.get(link.target) if link else None
        slot = target.slot_of(link) if target and link else None
        if target and slot and slot.name in target.values:
            return target, slot.name
    return None


def _promote(host: Node) -> None:
    """Fills the host's widget values: the saved ones, in the order of the subgraph's inputs, else the inner ones."""
    assert host.inner is not None
    saved = iter(host.saved.get("widgets_values") or ())
    for border in host.inner.borders:
        if source := _source(host, border):
            node, name = source
            host.values[border["name"]] = next(saved, node.values[name])


def _apply_legacy_promotions(host: Node) -> None:
    """Older files list promoted widgets as [inner node, widget] pairs, and the host's values in that order."""
    assert host.inner is not None
    pairs: list[Any] = (host.saved.get("properties") or {}).get("proxyWidgets") or []
    for (identity, name, *_), value in zip(pairs, host.saved.get("widgets_values") or (), strict=False):
        if value is None:
            continue
        inner = host.inner.nodes.get(str(identity))
        linked = [border["name"] for border in host.inner.borders if _source(host, border) == (inner, name)]
        if linked or str(identity) == "-1":
            host.values[linked[0] if linked else name] = value
        elif inner and inner.type == "PrimitiveNode":
            inner.values["value"] = value
            host.inner.spread(inner)
        elif inner and name in inner.values:
            inner.values[name] = value


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
    workflow = _with_unique_ids(workflow)
    graph = Graph(workflow, Library(object_info, {entry["id"]: entry for entry in _subgraphs(workflow)}))
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
    subgraphs = {entry["id"]: entry for entry in _subgraphs(workflow)}
    for entry in workflow["nodes"]:
        subgraph = subgraphs.get(entry["type"], {})
        if str(node) in (str(entry["id"]), entry["type"], entry.get("title"), subgraph.get("name")):
            break
    else:
        raise WorkflowError(f"No node {node!r} at the top level of the workflow.")
    values = entry.get("widgets_values") or []
    definition = (object_info or {}).get(entry["type"])
    if subgraph:
        slots = list(_promoted_slots(subgraph))
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


def _subgraphs(saved: Json) -> Iterator[Json]:
    for entry in (saved.get("definitions") or {}).get("subgraphs") or ():
        yield entry
        yield from _subgraphs(entry)


def _promoted_slots(subgraph: Json) -> Iterator[Json]:
    """The subgraph's inputs that show as widgets on its host, in order."""
    slots = [slot for node in subgraph["nodes"] for slot in node.get("inputs") or () if slot.get("widget")]
    promoted = {slot["link"] for slot in slots if slot.get("link") is not None}
    return (slot for slot in subgraph.get("inputs") or () if promoted.intersection(slot.get("linkIds") or ()))


def _with_unique_ids(workflow: Json) -> Json:
    """A copy in which no node of a subgraph has the id of another node: the front end renumbers those on loading."""
    workflow = copy.deepcopy(workflow)
    used = {entry["id"] for entry in workflow["nodes"]}
    last = workflow.get("last_node_id") or 0
    renamed: dict[str, dict[str, Any]] = {}
    for subgraph in _subgraphs(workflow):
        changes = renamed.setdefault(subgraph["id"], {})
        for node in subgraph["nodes"]:
            old = node["id"]
            if old in used:
                last = next(number for number in range(last + 1, last + len(used) + 2) if number not in used)
                node["id"] = changes[str(old)] = last
            elif isinstance(old, int):
                last = max(last, old)
            used.add(node["id"])
        for link in subgraph.get("links") or ():
            link["origin_id"] = changes.get(str(link["origin_id"]), link["origin_id"])
            link["target_id"] = changes.get(str(link["target_id"]), link["target_id"])
    _rename_promotions(workflow["nodes"], renamed)
    for subgraph in _subgraphs(workflow):
        _rename_promotions(subgraph["nodes"], renamed)
    return workflow


def _rename_promotions(nodes: Iterable[Json], renamed: dict[str, dict[str, Any]]) -> None:
    for node in nodes:
        for pair in (node.get("properties") or {}).get("proxyWidgets") or ():
            pair[0] = renamed.get(node["type"], {}).get(str(pair[0]), pair[0])


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
