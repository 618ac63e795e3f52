"""A conversation to test with: an assistant, a thread with one question, and the raw stream."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.beta import Assistant

from conftest import shared_server
from runs.wire import WEATHER, Api, Conversation
from sandbox.conftest import engine as engine
from shelf import Archive, Shelf, new_shelf
from threadmill.app import Served


@pytest_asyncio.fixture
async def api(server: Served) -> AsyncIterator[Api]:
    async with Api(server.address) as api:
        yield api


@pytest_asyncio.fixture
async def assistant(client: openai.AsyncOpenAI) -> Assistant:
    return await client.beta.assistants.create(
        model="scripted", instructions="Be brief.", tools=[WEATHER]
    )


@pytest_asyncio.fixture
async def talk(client: openai.AsyncOpenAI, assistant: Assistant) -> Conversation:
    return await Conversation.begin(client, assistant.id)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def workshop(
    engine: str, postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Archive]:
    """A server with a sandbox that tests share, all in the loop of the session."""
    folder = tmp_path_factory.mktemp("workshop")
    changes: dict[str, Any] = {"docker_hosts": [engine], "sandbox_cell_timeout_s": 20.0}
    # Where no encodings are at hand, tokens are estimated, and a long code is taken for many.
    changes["context_window_tokens"] = 4_000_000
    async with shared_server(postgres, template, folder, **changes) as workshop:
        yield workshop


@pytest_asyncio.fixture(loop_scope="session")
async def bench(workshop: Archive) -> AsyncIterator[Shelf]:
    async with new_shelf(workshop) as bench:
        yield bench
