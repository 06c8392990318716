"""The help panel of every node in a real browser: its page, and the picture on it."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page
from setup.places import ROOT
from setup.server import Server

from .conftest import Editor

PLACE = """type => {
    app.rootGraph.clear()
    const node = LiteGraph.createNode(type)
    node.pos = [300, 200]
    app.rootGraph.add(node)
    app.canvas.ds.reset()
    app.canvas.setDirty(true, true)
    const [x, y] = app.canvas.ds.convertOffsetToCanvas([node.pos[0] + 60, node.pos[1] - 12])
    const { left, top } = app.canvas.canvas.getBoundingClientRect()
    return [left + x, top + y]
}"""
SELECT = """() => {
    app.canvas.select(app.rootGraph.nodes[0])
    app.canvas.onSelectionChange?.(app.canvas.selected_nodes)  // newer front ends see it themselves
}"""
DRAWN = """title => {
    const help = document.querySelector('.node-help-content')
    return help?.querySelector('h1')?.textContent === title && [...help.querySelectorAll('img')].every(i => i.complete)
}"""
PICTURES = "() => [...document.querySelectorAll('.node-help-content img')].map(image => image.naturalWidth)"


def test_every_page_opens_with_its_picture(page: Page, without_models: Server, artefacts: Path) -> None:
    Editor(page, without_models)
    docs = {file.stem: file for file in (ROOT / "web" / "docs").glob("WanCore*.md")}
    nodes = page.evaluate("() => Object.keys(LiteGraph.registered_node_types).filter(id => id.startsWith('WanCore'))")
    assert sorted(nodes) == sorted(docs)
    for number, node in enumerate(nodes):
        if number:  # the panel follows what is selected, and closes when nothing is
            page.evaluate(f"type => {{ ({PLACE})(type); ({SELECT})() }}", node)
        else:
            title_bar = page.evaluate(PLACE, node)
            page.wait_for_timeout(1500)  # the canvas takes clicks once it has been drawn
            page.mouse.click(*title_bar)
            page.get_by_test_id("info-button").click()
        page.wait_for_function(DRAWN, arg=docs[node].read_text(encoding="utf-8").splitlines()[0].removeprefix("# "))
        pictures = page.evaluate(PICTURES)
        assert pictures and all(pictures), node
    page.screenshot(path=artefacts / "help-panel.png")
