"""Projects and keys with limits, and two servers on one database to try them against."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import aiohttp
import openai
import pytest_asyncio

from threadmill.app import Served
from threadmill.store import projects
from threadmill.store.database import Database

Json = dict[str, Any]


class Answer(NamedTuple):
    status: int
    headers: Any
    json: Json


class Tenant:
    """One key, on one server or several."""

    def __init__(self, addresses: list[str], project_id: str, key_id: str, key: str) -> None:
        self.addresses = addresses
        self.project_id = project_id
        self.key_id = key_id
        self.key = key
        self.session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})
        self.clients = [
            openai.AsyncOpenAI(api_key=key, base_url=f"{address}/v1", max_retries=0)
            for address in addresses
        ]
        self.client = self.clients[0]

    async def send(self, method: str, path: str, body: Any = None, *, server: int = 0) -> Answer:
        url = f"{self.addresses[server % len(self.addresses)]}/v1{path}"
        async with self.session.request(method, url, json=body) as response:
            return Answer(response.status, response.headers, await response.json())

    async def upload(self, size_bytes: int, *, server: int = 0) -> Answer:
        form = aiohttp.FormData()
        form.add_field("purpose", "assistants")
        form.add_field("file", b"x" * size_bytes, filename="notes.txt")
        url = f"{self.addresses[server % len(self.addresses)]}/v1/files"
        async with self.session.post(url, data=form) as response:
            return Answer(response.status, response.headers, await response.json())

    async def close(self) -> None:
        await self.session.close()
        for client in self.clients:
            await client.close()


NewTenant = Callable[..., Awaitable[Tenant]]


@pytest_asyncio.fixture
async def servers(
    serve: Callable[..., Any], database: Database
) -> AsyncIterator[tuple[Served, Served]]:
    """Each with executors, connections and a memory of keys of its own."""
    async with database.connection() as connection:  # or keys would not be demanded at first
        owner = await projects.get_or_create(connection, "first")
        await projects.create_key(connection, owner, "first")
    async with serve() as one, serve() as other:
        yield one, other


@pytest_asyncio.fixture
async def tenant(servers: tuple[Served, Served], database: Database) -> AsyncIterator[NewTenant]:
    """`await tenant(max_stored_bytes=100)`: a new project with that limit, and a key of it;
    `key={...}` are limits of the key, `project` names an older project."""
    async with AsyncExitStack() as stack:

        async def make(
            project: str | None = None, key: dict[str, int] | None = None, **limits: int
        ) -> Tenant:
            async with database.connection() as connection:
                name = project or projects.new_key()
                owner = await projects.get_or_create(connection, name)
                owner = await projects.modify(connection, owner.id, dict(limits))
                row, secret = await projects.create_key(connection, owner, "test", **(key or {}))
            addresses = [server.address for server in servers]
            made = Tenant(addresses, owner.id, row.id, secret)
            stack.push_async_callback(made.close)
            return made

        yield make
