"""What tests stand on: a real Postgres, a scripted model endpoint over HTTP, a live server."""

import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import openai
import psycopg
import pytest
import pytest_asyncio

from shelf import Archive, Shelf, new_project, new_shelf
from threadmill.app import Served, served
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.embedded_postgres import EmbeddedPostgres
from threadmill.settings import Settings
from threadmill.store import migrate
from threadmill.store.database import Database

os.environ.pop("OPENAI_BASE_URL", None)
os.environ.pop("OPENAI_API_KEY", None)

# How long an example takes is for the machine to say.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("patient")

# Nothing here is worth waiting for a disk.
FAST = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}

# Tests of the sandbox say otherwise.
NO_SANDBOX: dict[str, Any] = {
    "docker_hosts": ["unix:///nonexistent/docker.sock"],
    "sandbox_warm_sessions": 0,
}

Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of a server: the one that THREADMILL_TEST_DATABASE_URL names, or our own."""
    if url := os.environ.get("THREADMILL_TEST_DATABASE_URL"):
        yield url
        return
    own = await EmbeddedPostgres.start(tmp_path_factory.mktemp("data"), settings=FAST)
    yield own.url
    await own.stop()


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """The name of a migrated database that every test gets a copy of."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate.upgrade(_url_of(postgres, name))
    return name


@pytest.fixture
def database_url(postgres: str, template: str) -> Any:
    with new_database(postgres, template) as url:
        yield url


@contextmanager
def new_database(postgres: str, template: str) -> Iterator[str]:
    """The URL of a copy of the template."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        # FILE_COPY is the faster strategy for small databases.
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        yield _url_of(postgres, name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """The path of a Unix socket may not be as long as pytest's folders."""
    folder = tempfile.mkdtemp(prefix="tm-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest_asyncio.fixture
async def model() -> AsyncIterator[ScriptedModel]:
    async with ScriptedModel() as model:
        yield model


@pytest.fixture
def settings(database_url: str, model: ScriptedModel, tmp_path: Path) -> Settings:
    return Settings(
        database_url=database_url,
        data_dir=tmp_path,
        port=0,
        model_base_url=model.base_url,
        model_max_retry_wait_s=0.05,
        drain_timeout_s=2,
        **NO_SANDBOX,
    )


@pytest.fixture
def serve(settings: Settings) -> Serve:
    """Start further servers, or one with other settings: `async with serve(run_lease_s=1) as s`."""

    @asynccontextmanager
    async def start(**changes: Any) -> AsyncIterator[Served]:
        async with served(settings.model_copy(update=changes)) as server:
            yield server

    return start


@pytest_asyncio.fixture
async def server(serve: Serve) -> AsyncIterator[Served]:
    async with serve() as server:
        yield server


@pytest_asyncio.fixture
async def client(server: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key="any", base_url=f"{server.address}/v1", max_retries=0
    ) as client:
        yield client


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def archive(
    postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Archive]:
    """A server with embeddings that tests share, all in the loop of the session."""
    folder = tmp_path_factory.mktemp("archive")
    async with shared_server(postgres, template, folder, **NO_SANDBOX) as archive:
        yield archive


@asynccontextmanager
async def shared_server(
    postgres: str, template: str, folder: Path, **changes: Any
) -> AsyncIterator[Archive]:
    name = f"{template}_{folder.name}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    database = Database(_url_of(postgres, name))
    await database.open()
    await new_project(database)  # or the server would demand no key in its first seconds
    async with ScriptedModel() as model:
        settings = Settings(
            database_url=database.url,
            data_dir=folder,
            port=0,
            model_base_url=model.base_url,
            model_max_retry_wait_s=0.05,
            embedding_model="hashing",
            drain_timeout_s=2,
        )
        async with served(settings.model_copy(update=changes)) as server:
            yield Archive(server, model, database)
    await database.close()
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture(loop_scope="session")
async def shelf(archive: Archive) -> AsyncIterator[Shelf]:
    async with new_shelf(archive) as shelf:
        yield shelf


def _url_of(server: str, database: str) -> str:
    return server.replace("/threadmill?", f"/{database}?").replace("/postgres?", f"/{database}?")
