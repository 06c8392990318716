"""What a browser gets while a clip is sampled: on every step the whole clip, moving, where the user wants previews."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import aiohttp
import pytest
from graphs import Nodes, Prompt, text_to_video
from PIL import Image, ImageChops
from setup.client import Client

STEPS = 3
PREVIEW, PREVIEW_WITH_METADATA = 1, 4  # binary messages
HEADERS = {True: {"type": "feature_flags", "data": {"supports_preview_metadata": True}}, False: {"type": "other"}}


async def previews(client: Client, prompt: Prompt, method: str, metadata: bool) -> list[tuple[Any, bytes]]:
    """(what comes with it, picture) of every preview; the older message has the number of its type only."""
    out = []
    address = f"{client.address.replace('http', 'ws', 1)}/ws?clientId=live"
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
        await socket.send_json(HEADERS[metadata])
        body = {"prompt": prompt, "client_id": "live", "extra_data": {"preview_method": method}}
        async with session.post(f"{client.address}/prompt", json=body) as answer:
            prompt_id = (await answer.json())["prompt_id"]
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                kind, number = (int.from_bytes(message.data[i : i + 4], "big") for i in (0, 4))
                if kind == PREVIEW_WITH_METADATA:
                    out.append((json.loads(message.data[8 : 8 + number]), message.data[8 + number :]))
                elif kind == PREVIEW:
                    out.append((number, message.data[8:]))
            elif (event := json.loads(message.data))["type"].startswith("execution_error"):
                raise AssertionError(event)
            elif event["type"] == "executing" and event["data"] == {"node": None, "prompt_id": prompt_id}:
                return out
    raise AssertionError("the server closed the connection")


def watched(client: Client, nodes: Nodes, method: str, seed: int, metadata: bool = True) -> list[tuple[Any, bytes]]:
    prompt = text_to_video(nodes, prefix="live", steps=STEPS, seed=seed)
    return asyncio.run(asyncio.wait_for(previews(client, prompt, method, metadata), 300))


@pytest.mark.parametrize("metadata", [True, False], ids=["with node", "older clients"])
def test_every_step_shows_different_frames(client: Client, nodes: Nodes, metadata: bool) -> None:
    seen = watched(client, nodes, "auto", 21 + metadata, metadata)
    assert len(seen) == STEPS
    for said, data in seen:
        assert (said["image_type"], said["display_node_id"]) == ("image/png", "sampler") if metadata else said == 2
        picture = Image.open(io.BytesIO(data))
        assert picture.n_frames == 3  # type: ignore[attr-defined]
        first = picture.convert("RGB")
        picture.seek(2)
        assert ImageChops.difference(first, picture.convert("RGB")).getbbox()


def test_none_sends_no_picture(client: Client, nodes: Nodes) -> None:
    assert watched(client, nodes, "none", 31) == []
