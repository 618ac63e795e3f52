from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from api.wire import Wire
from threadmill.app import Served

ServeWire = Callable[..., AbstractAsyncContextManager[Wire]]


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest_asyncio.fixture
async def wire(server: Served, session: aiohttp.ClientSession) -> Wire:
    return Wire(session, server.address)


@pytest.fixture
def serve_wire(
    serve: Callable[..., AbstractAsyncContextManager[Served]], session: aiohttp.ClientSession
) -> ServeWire:
    """A server with other settings: `async with serve_wire(require_beta_header=True) as wire`."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[Wire]:
        async with serve(**changes) as server:
            yield Wire(session, server.address)

    return start
