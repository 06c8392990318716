"""{a|b} in a prompt picks one of the two, also where a subgraph shows the prompt on its front."""

from __future__ import annotations

from playwright.sync_api import Page
from setup.server import Server

from .conftest import Editor, host_of, workflow_of


def test_a_prompt_on_the_front_of_a_template(page: Page, without_models: Server) -> None:
    workflow = workflow_of("Wan 2.2 Text to Video")
    values = host_of(workflow)["widgets_values"]
    (place,) = (index for index, value in enumerate(values) if isinstance(value, str) and len(value) > 100)
    values[place] = "a {red|{dark|light} blue} shape, \\{as|it is\\} /* not\nthis */// nor this"
    editor = Editor(page, without_models)
    editor.load(workflow)
    sent = set()
    for _ in range(40):
        (encoded,) = (node for node in editor.prompt().values() if node["class_type"] == "WanCoreTextEncode")
        sent.add(encoded["inputs"]["prompt"])
    assert sent == {f"a {color} shape, {{as|it is}} " for color in ("red", "dark blue", "light blue")}
    assert host_of(editor.graph())["widgets_values"][place] == values[place], "the widget keeps the choices"


def test_a_node_of_its_own(page: Page, without_models: Server) -> None:
    """The front end chooses there; what it has taken out of escapes is no choice, and missing nodes stop nothing."""
    editor = Editor(page, without_models)
    page.evaluate(
        r"""() => {
            app.rootGraph.clear()
            const node = LiteGraph.createNode('WanCoreTextEncode')
            node.widgets.find(widget => widget.name === 'prompt').value = '{a} \\{b|c\\}'
            app.rootGraph.add(node)
        }"""
    )
    missing = {"id": 99, "type": "NotInstalled", "pos": [0, 0], "size": [200, 60], "flags": {}, "mode": 0, "order": 9}
    workflow = editor.graph()
    workflow["nodes"].append({**missing, "inputs": [], "outputs": [], "properties": {}})
    editor.load(workflow)
    for _ in range(8):
        (encoded,) = (node for node in editor.prompt().values() if node.get("class_type") == "WanCoreTextEncode")
        assert encoded["inputs"]["prompt"] == "a {b|c}"
