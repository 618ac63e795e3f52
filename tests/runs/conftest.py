"""A conversation to test with: an assistant, a thread with one question, and the raw stream."""

from collections.abc import AsyncIterator

import openai
import pytest_asyncio
from openai.types.beta import Assistant

from runs.wire import WEATHER, Api, Conversation
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
