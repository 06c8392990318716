"""The preview moves on the page within one step, in both of the front end's ways to draw nodes."""

from __future__ import annotations

from typing import Any

import pytest
from graphs import T2V_HIGH, T2V_LOW, TEXT_ENCODER, Nodes, text_to_video
from playwright.sync_api import Page
from setup.client import Client
from setup.server import Server

from .conftest import Editor

WAIT = """() => { const picture = [...document.querySelectorAll('img')].find(img =>
    img.src.startsWith('blob:') && img.naturalWidth === 320 && img.checkVisibility()); return picture?.src }"""


@pytest.mark.parametrize("modern", [False, True], ids=["classic", "nodes 2.0"])
def test_frames_change_within_one_step(with_models: Server, page: Page, modern: bool, artefacts: Any) -> None:
    Editor(page, with_models)
    info = Client(with_models.address).get("/object_info")
    nodes = Nodes(info)
    models = nodes("WanCoreLoadModels", model=T2V_HIGH, low_model=T2V_LOW, text_encoder=TEXT_ENCODER)
    graph = text_to_video(nodes, models=models, prefix="live", steps=1, seed=50 + modern)
    page.evaluate(
        """async ([graph, modern]) => {
            await app.extensionManager.setting.set('Comfy.VueNodes.Enabled', modern)
            await app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', 'auto')
            app.loadApiJson(graph, 'live')
        }""",
        [graph, modern],
    )
    page.evaluate("() => app.queuePrompt(0)")
    page.wait_for_function(WAIT, timeout=300_000)
    source = page.evaluate(WAIT)
    place = page.locator(f'img[src="{source}"]').first
    pictures = {place.screenshot() for _ in range(12) if not page.wait_for_timeout(80)}
    page.screenshot(path=artefacts / f"live-view-{'nodes2' if modern else 'classic'}.png")
    assert page.evaluate(WAIT) == source, "still the picture of the one step"
    assert len(pictures) >= 2
