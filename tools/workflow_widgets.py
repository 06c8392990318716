"""The widgets of a ComfyUI node as the front end makes them from /object_info: names, order, defaults, saved values.

A saved node lists its widget values without names; which value belongs to which widget follows from the definition.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

CONTROLLED = {"seed", "noise_seed"}  # whole-number widgets that get a "control after generate" widget unasked
DEFAULTS: dict[str, Any] = {
    "INT": 0,
    "FLOAT": 0,
    "BOOLEAN": False,
    "STRING": "",
    "MARKDOWN": "",
    "TEXTAREA": "",
    "COLOR": "#000000",
    "COLORS": [],
    "CURVE": {"points": [[0, 0], [1, 1]], "interpolation": "monotone_cubic"},
    "RANGE": {"min": 0.0, "max": 1.0},
    "IMAGECOMPARE": ["", ""],
    "COMBO": None,
    "COMFY_DYNAMICCOMBO_V3": None,
}


@dataclass(frozen=True)
class Spec:
    """One input of a node: its type, its options and, for a choice, its values."""

    name: str
    type: str
    options: Json
    choices: tuple[Any, ...] = ()

    @property
    def widget_type(self) -> str:
        return self.options.get("widgetType", self.type)

    @property
    def is_widget(self) -> bool:
        return self.widget_type in DEFAULTS and not self.options.get("forceInput")

    @property
    def default(self) -> Any:
        value = self.options.get("default")
        if self.choices:
            return value or self.choices[0]
        return copy.deepcopy(DEFAULTS[self.widget_type]) if value is None else value

    @property
    def controls(self) -> int:
        """How many saved values that no prompt carries follow this one (what happens to it after a run)."""
        control = self.options.get("control_after_generate")
        if self.type == "INT":
            return int(bool(self.name in CONTROLLED if control is None else control))
        if self.type == "COMBO":
            return 2 if control else 0  # the control and its filter
        return int(bool(control)) if self.type == "FLOAT" else 0


@dataclass(frozen=True)
class Widgets:
    """The widgets of one saved node: values and places in `widgets_values` by name, and all inputs of the node."""

    values: Json
    positions: dict[str, int]
    specs: list[Spec]


def read_widgets(definition: Json, saved: list[Any] | Json | None) -> Widgets:
    """The widgets of a node with this /object_info entry and these saved values (a list, or by name)."""
    pending = _specs(definition["input"], definition.get("input_order"))
    found = Widgets({}, {}, [])
    position = 0
    while pending:
        spec = pending.pop(0)
        found.specs.append(spec)
        if not spec.is_widget:
            continue
        value = spec.default
        if isinstance(saved, dict):
            value = saved.get(spec.name, value)
        elif position < len(saved or ()):
            value = saved[position]  # type: ignore[index]
        if value is None and spec.choices:
            value = spec.choices[0]
        found.values[spec.name], found.positions[spec.name] = value, position
        position += 1 + spec.controls
        pending = _branch(spec, value) + pending
    return found


def _specs(inputs: Json, order: Json | None = None, prefix: str = "") -> list[Spec]:
    """The inputs in the order of the node: required, then optional ones."""
    found = []
    for group in ("required", "optional"):
        entries = inputs.get(group) or {}
        names = [name for name in (order or {}).get(group, ()) if name in entries]
        for name in names + [name for name in entries if name not in names]:
            found.append(_spec(prefix + name, entries[name], group == "optional"))
    return found


def _spec(name: str, entry: list[Any], optional: bool) -> Spec:
    options = dict(entry[1]) if len(entry) > 1 and isinstance(entry[1], dict) else {}
    if optional and options.get("defaultInput"):
        options["forceInput"] = True
    if isinstance(entry[0], list):
        return Spec(name, "COMBO", options, tuple(entry[0]))
    if entry[0] == "COMFY_DYNAMICCOMBO_V3":
        return Spec(name, entry[0], options, tuple(option["key"] for option in options["options"]))
    if entry[0] == "COMFY_MATCHTYPE_V3":
        return Spec(name, options["template"]["allowed_types"], options)
    return Spec(name, entry[0], options, tuple(options.get("options") or ()) if entry[0] == "COMBO" else ())


def _branch(spec: Spec, value: Any) -> list[Spec]:
    """The inputs that a dynamic choice opens for `value`; their names are dotted."""
    if spec.type != "COMFY_DYNAMICCOMBO_V3":
        return []
    inputs = next((option["inputs"] for option in spec.options["options"] if option["key"] == value), {})
    return _specs(inputs, prefix=spec.name + ".")


def dynamic_prompt(text: str, choose: Callable[[list[str]], str] = random.choice) -> str:
    """Drops // and /* */ comments and replaces each {a|b} by one of its choices; a backslash protects { } and |."""
    text = re.sub(r"/\*[\s\S]*?\*/|//.*", "", text)
    innermost = re.compile(r"(?<!\\)\{((?:\\.|[^{}\\])*)\}")
    while match := innermost.search(text):
        choice = choose(re.split(r"(?<!\\)\|", match[1]))
        text = text[: match.start()] + choice + text[match.end() :]
    return re.sub(r"\\([{}|])", r"\1", text)
