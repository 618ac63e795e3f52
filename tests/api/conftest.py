"""Most tests here share one server and have a project of their own on it: starting one, with a
database, takes longer than all that a test asks of it. `serve_wire` starts one for the few others.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import openai
import psycopg
import pytest
import pytest_asyncio

from api.rows import Rows
from api.wire import Wire
from threadmill.app import Served, served
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.settings import Settings
from threadmill.store import projects
from threadmill.store.database import Database

RERANK_URL = "http://reranker.example/rerank"  # that stores may name
ServeWire = Callable[..., AbstractAsyncContextManager[Wire]]


class Shared(NamedTuple):
    server: Served
    model: ScriptedModel
    database: Database
    session: aiohttp.ClientSession


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who uses the shared server has to live in its loop."""
    for item in items:
        if "wire" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared(
    postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shared]:
    name = f"{template}_shared"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    url = postgres.replace("/threadmill?", f"/{name}?").replace("/postgres?", f"/{name}?")
    async with ScriptedModel() as model, aiohttp.ClientSession() as session:
        settings = _settings(url, model, tmp_path_factory.mktemp("shared"))
        database = Database(url)
        await database.open()
        await new_key(database)  # or the server would demand none in its first seconds
        async with served(settings) as server:
            yield Shared(server, model, database, session)
        await database.close()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(loop_scope="session")
async def wire(shared: Shared) -> Wire:
    """HTTP with the key of a new project."""
    return await new_wire(shared)


@pytest_asyncio.fixture(loop_scope="session")
async def other_wire(shared: Shared) -> Wire:
    """HTTP with the key of another new project."""
    return await new_wire(shared)


@pytest.fixture
def rows(shared: Shared, wire: Wire) -> Rows:
    return Rows(shared.database, wire.project_id)


@pytest.fixture
def script(shared: Shared) -> ScriptedModel:
    """The model that the shared server asks, with nothing left of an earlier test that failed."""
    shared.model.answer = None
    shared.model._queue.clear()
    return shared.model


@pytest_asyncio.fixture(loop_scope="session")
async def sdk(wire: Wire) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, in the project of `wire`."""
    async with openai.AsyncOpenAI(
        api_key=wire.key, base_url=f"{wire.address}/v1", max_retries=0
    ) as sdk:
        yield sdk


@pytest.fixture
def serve_wire(serve: Callable[..., AbstractAsyncContextManager[Served]]) -> ServeWire:
    """A server with other settings and without keys:
    `async with serve_wire(require_beta_header=True) as wire`."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[Wire]:
        async with serve(**changes) as server, aiohttp.ClientSession() as session:
            yield Wire(session, server.address, "any", projects.DEFAULT_PROJECT_ID)

    return start


async def new_wire(shared: Shared) -> Wire:
    project_id, key = await new_key(shared.database)
    return Wire(shared.session, shared.server.address, key, project_id)


async def new_key(database: Database, project_name: str | None = None) -> tuple[str, str]:
    """A project's id and a key of it; without a name it is a new project."""
    async with database.connection() as connection:
        name = project_name or projects.new_key()
        project = await projects.get_or_create(connection, name)
        _, key = await projects.create_key(connection, project, "test")
    return project.id, key


def _settings(url: str, model: ScriptedModel, data_dir: Path) -> Settings:
    return Settings(
        rerank_urls=[RERANK_URL],
        database_url=url,
        data_dir=data_dir,
        port=0,
        model_base_url=model.base_url,
        model_max_retry_wait_s=0.05,
        drain_timeout_s=2,
    )
