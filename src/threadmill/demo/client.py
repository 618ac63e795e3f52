"""The API as a program sees it that has no SDK."""

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

Json = dict[str, Any]


def client_of(address: str, key: str, *, within_s: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        f"{address}/v1/",
        headers={"Authorization": f"Bearer {key}", "OpenAI-Beta": "assistants=v2"},
        timeout=aiohttp.ClientTimeout(total=within_s),
        raise_for_status=True,
    )


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Json]]:
    """Server-sent events, as far as Threadmill sends them: a name, then one line of data."""
    name = ""
    async for line in response.content:
        field, _, value = line.decode().rstrip().partition(": ")
        if field == "event":
            name = value
        elif field == "data" and name != "done":
            yield name, json.loads(value)
