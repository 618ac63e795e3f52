"""What tests of the sandbox do with containers, and to them."""

import io
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import docker

from runs.wire import eventually
from threadmill.metrics import Metrics
from threadmill.sandbox.docker import Engine
from threadmill.sandbox.session import CellEnd, Image, Output, Session, Text
from threadmill.sandbox.sessions import Sandboxes
from threadmill.settings import Settings
from threadmill.store import sandboxes, workers
from threadmill.store.database import Database


class Yard:
    """Several holders of sandboxes on one database, as if each were a process."""

    def __init__(self, host: str, database: Database) -> None:
        self.host = host
        self.database = database
        self.settings = Settings(docker_hosts=[host], sandbox_warm_sessions=0)
        self._threads = itertools.count(1)
        self._opened: dict[str, Sandboxes] = {}

    async def __aenter__(self) -> "Yard":
        async with self.database.connection() as connection:
            installation = await sandboxes.installation(connection)
            await connection.execute(
                "INSERT INTO projects (id, name, created_at) VALUES ('proj_1', 'one', 1)"
            )
        # Another owner: what it sees is everybody's.
        self.engine = Engine(self.host, self.settings, installation, "the test")
        await self.engine.connect()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in await self.containers():
            await self.engine.remove(name)
        for one in self._opened.values():
            one.close()
        self.engine.close()

    async def open(self, name: str = "one", **changes: Any) -> Sandboxes:
        async with self.database.connection() as connection:
            await workers.renew(connection, name, 600)
        settings = self.settings.model_copy(update=changes)
        self._opened[name] = Sandboxes(settings, self.database, name, Metrics())
        return self._opened[name]

    async def close(self) -> None:
        """In good order; the last one removes what is left."""
        for name, one in self._opened.items():
            await one.stop()
            await self.dies(name)

    async def sweep(self) -> None:
        """What those have left whose engine was away when they stopped."""
        for name in self._opened:
            await self.dies(name)
        await (await self.open("broom")).sweep_once()

    async def dies(self, name: str) -> None:
        """Its lease is over."""
        async with self.database.connection() as connection:
            await workers.remove(connection, name)

    async def thread(self) -> str:
        thread_id = f"thread_{next(self._threads):024d}"
        async with self.database.connection() as connection:
            await connection.execute(
                "INSERT INTO threads (id, project_id, created_at, tool_resources, active_at)"
                " VALUES (%s, 'proj_1', 1, '{}', 1)",
                [thread_id],
            )
        return thread_id

    async def execute(self, statement: str) -> None:
        async with self.database.connection() as connection:
            await connection.execute(statement)  # type: ignore[call-overload]

    async def rows(self) -> list[tuple[Any, ...]]:
        """Owner, whether held, and container."""
        async with self.database.connection() as connection:
            cursor = await connection.execute(
                "SELECT owner, is_held, container FROM sandbox_sessions ORDER BY thread_id"
            )
            return await cursor.fetchall()

    async def containers(self) -> list[str]:
        return sorted(container.name for container in await self.engine.containers())

    async def until(self, containers: int, within_s: float = 30) -> None:
        """There are as many containers."""

        async def are_there() -> bool:
            return len(await self.containers()) == containers

        await eventually(are_there, within_s)

    def status(self, container: str) -> str:
        """What Docker calls it: running, paused..."""
        with self._client() as client:
            return str(client.inspect_container(container)["State"]["Status"])

    def kill(self, container: str) -> None:
        with self._client() as client:
            client.remove_container(container, force=True)

    @contextmanager
    def image(self, program: str) -> Iterator[str]:
        """The sandbox's image with another driver: a Python program that means harm."""
        tag = "threadmill-sandbox-hostile:test"
        entry = json.dumps(["/opt/venv/bin/python", "-c", program])
        dockerfile = f"FROM {self.settings.sandbox_image}\nENTRYPOINT {entry}\n"
        with self._client() as client:
            built = list(client.build(fileobj=io.BytesIO(dockerfile.encode()), tag=tag, rm=True))
            assert not any(b"error" in line for line in built), built
            try:
                yield tag
            finally:
                client.remove_image(tag, force=True)

    @contextmanager
    def _client(self) -> Iterator[docker.APIClient]:
        client = docker.APIClient(self.host)
        try:
            yield client
        finally:
            client.close()


async def hold(one: Sandboxes, thread_id: str) -> Session:
    return await one.hold(project_id="proj_1", thread_id=thread_id)


async def let_go(one: Sandboxes, session: Session) -> None:
    """And until it is."""
    await one.release(session)
    await one.until_quiet()


async def run(session: Session, code: str, timeout_s: float = 60) -> tuple[CellEnd, str, int]:
    """The end, the text, and how many images there were."""
    outputs: list[Output] = []
    end = await session.run(code, timeout_s=timeout_s, on_output=outputs.append)
    text = "".join(output.text for output in outputs if isinstance(output, Text))
    return end, text, sum(isinstance(output, Image) for output in outputs)


async def said(session: Session, code: str) -> str:
    end, text, _ = await run(session, code)
    assert end.status == "ok", (end, text)
    return text.strip()
