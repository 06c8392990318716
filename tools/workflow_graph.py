"""The nodes and links of a saved ComfyUI workflow and of every use of a subgraph in it, as the front end reads them.

Promoted widgets have their host's values; what the server runs has its definition beside it. See workflow_api.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from workflow_widgets import Json, read_widgets

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


def subgraphs_of(saved: Json) -> Iterator[Json]:
    """The subgraphs that a workflow defines, and those defined in them."""
    for entry in (saved.get("definitions") or {}).get("subgraphs") or ():
        yield entry
        yield from subgraphs_of(entry)


def promoted_slots(subgraph: Json) -> Iterator[Json]:
    """The subgraph's inputs that show as widgets on its host, in order."""
    slots = [slot for node in subgraph["nodes"] for slot in node.get("inputs") or () if slot.get("widget")]
    promoted = {slot["link"] for slot in slots if slot.get("link") is not None}
    return (slot for slot in subgraph.get("inputs") or () if promoted.intersection(slot.get("linkIds") or ()))


def with_unique_ids(workflow: Json) -> Json:
    """A copy in which no node of a subgraph has the id of another node: the front end renumbers those on loading."""
    workflow = copy.deepcopy(workflow)
    used = {entry["id"] for entry in workflow["nodes"]}
    last = workflow.get("last_node_id") or 0
    renamed: dict[str, dict[str, Any]] = {}
    for subgraph in subgraphs_of(workflow):
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
    for subgraph in subgraphs_of(workflow):
        _rename_promotions(subgraph["nodes"], renamed)
    return workflow


def _rename_promotions(nodes: Iterable[Json], renamed: dict[str, dict[str, Any]]) -> None:
    for node in nodes:
        for pair in (node.get("properties") or {}).get("proxyWidgets") or ():
            pair[0] = renamed.get(node["type"], {}).get(str(pair[0]), pair[0])
