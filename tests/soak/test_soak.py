"""Minutes of everything at once, on several processes: what they hold does not grow.

THREADMILL_SOAK_S makes it longer. Afterwards everything is at rest, so that what is still held is
held by nobody. Of the three rounds the first one warms up: pools fill, caches too.
"""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from processes import Launch, Process, launcher
from runs.wire import eventually
from sandbox.conftest import engine as engine
from soak.clients import Clients, Model
from soak.sight import Sight, connected, counts, look, value
from threadmill.demo.scripted_model import ScriptedModel
from threadmill.sandbox.docker import Engine
from threadmill.settings import Settings
from threadmill.store import sandboxes
from threadmill.store.database import Database
from webhooks.receiver import Receiver

SOAK_S = float(os.environ.get("THREADMILL_SOAK_S", "120"))
ROUND_S = SOAK_S / 3
WARM_UP_S = max(ROUND_S, 65)  # the first round: what is done once a minute was done by then
CLIENTS = 12
POOL_MAX_CONNECTIONS = 4
# Beside the pool: the lease, hints, the event log.
CONNECTIONS_MAX = 3 * (POOL_MAX_CONNECTIONS + 3)
KEPT_S = 5

GROWTH_MAX_MIB = 16.0  # of a process, from the first round to the last; it grows in steps of 5
GROWTH_MAX_DESCRIPTORS = 5
GROWTH_MAX_THREADS = 4  # of the default executor, which fills up slowly

LOOK_EVERY_S = 0.5
REST_MAX_S = 120.0  # connections are kept for 15 s after their last use, by either side
SWEPT_AFTER_S = KEPT_S + 60 + 15  # the log is swept every minute

SETTINGS = {
    "THREADMILL_DATABASE_POOL_MAX_CONNECTIONS": str(POOL_MAX_CONNECTIONS),
    "THREADMILL_EMBEDDING_MODEL": "hashing",
    "THREADMILL_EVENT_LOG_RETENTION_S": str(KEPT_S),
    "THREADMILL_WEBHOOK_ALLOW_PRIVATE_ADDRESSES": "true",
    "THREADMILL_WEBHOOK_RETRY_WAITS_S": "0.1,0.5,1,2,5",
    "THREADMILL_TOKENIZER_DOWNLOAD_TIMEOUT_S": "0",  # an encoding takes 80 MB when it is loaded
    "THREADMILL_LOG_LEVEL": "warning",
}
SANDBOX = {
    "THREADMILL_SANDBOX_IDLE_S": "10",
    "THREADMILL_SANDBOX_LIFETIME_S": "30",
    "THREADMILL_SANDBOX_MAX_SESSIONS": "3",  # fewer than threads: sessions are evicted
}


class Site:
    """The servers and what can be seen of them."""

    def __init__(self, launched: dict[str, Process], database_url: str) -> None:
        self.launched = launched
        self.database_url = database_url
        children = psutil.Process(launched["serve"].pid).children()
        self.processes = {f"serve {n}": child for n, child in enumerate(children, 1)}
        self.processes["worker"] = psutil.Process(launched["worker"].pid)

    async def rest(self, runs: int) -> Sight:
        """Look, once everything is done and every connection closed."""

        loop = asyncio.get_running_loop()
        until = loop.time() + REST_MAX_S
        while restless := self._restless():
            assert loop.time() < until, restless
            await asyncio.sleep(LOOK_EVERY_S)
        return look(runs, self.processes, self.database_url)

    def _restless(self) -> list[str]:
        now = counts(self.database_url)
        waiting = [name for name in ("webhooks due", "busy threads") if now[name]]
        return waiting + [
            f"{name}: {connection}"
            for name, process in self.processes.items()
            for connection in connected(process, self.database_url)
        ]

    async def stop(self) -> None:
        for process in self.launched.values():
            process.signal(signal.SIGTERM)
        for process in self.launched.values():
            assert await process.ended() == 0


@pytest.fixture
async def launch(database_url: str, model: ScriptedModel, tmp_path: Path) -> AsyncIterator[Launch]:
    async with launcher(database_url, model, tmp_path) as launch:
        yield launch


@pytest.fixture
def sandbox_host(request: pytest.FixtureRequest) -> str | None:
    """Without an engine everything else is soaked all the same."""
    with suppress(pytest.skip.Exception):
        return str(request.getfixturevalue("engine"))
    return None


async def test_what_is_held_does_not_grow(
    launch: Launch,
    model: ScriptedModel,
    database_url: str,
    tmp_path: Path,
    sandbox_host: str | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model.answer = Model()
    settings = dict(SETTINGS)
    if sandbox_host:
        settings |= SANDBOX | {"THREADMILL_DOCKER_HOSTS": sandbox_host}
    serving, working = await asyncio.gather(
        launch("serve", "--workers", "2", **settings), launch("worker", **settings)
    )
    sights: list[Sight] = []
    clients = Clients(serving.address, has_sandbox=sandbox_host is not None)
    async with Receiver() as receiver:
        await clients.prepare(receiver.address)
        site = Site({"serve": serving, "worker": working}, database_url)
        for round_s in (WARM_UP_S, ROUND_S, ROUND_S):
            receiver.statuses = [500, 503]
            await clients.visit(CLIENTS, round_s)
            sights.append(await site.rest(len(clients.ended)))
        _agree(clients, receiver, database_url)
    await _the_log_is_swept(database_url)
    await clients.compute()  # so that there are sessions when the servers are stopped
    await site.stop()
    with capfd.disabled():
        sys.stdout.write("\n" + "\n".join(map(str, [*sights, dict(clients.told)])) + "\n")
    _are_flat(sights)
    said = capfd.readouterr().err
    assert not re.findall(r"Traceback.*|\[(?:error|critical) *\].*", said), said[-5000:]
    assert value(database_url, "SELECT count(*) FROM workers") == 0
    if sandbox_host:
        assert await _containers(sandbox_host, database_url) == []
    _bytes_are_those_of_files(database_url, tmp_path)


def _are_flat(sights: list[Sight]) -> None:
    warm, last = sights[0], sights[-1]
    for name, before in warm.processes.items():
        after = last.processes[name]
        grown = f"{name}: {before} became {after}"
        assert after.memory_mib - before.memory_mib <= GROWTH_MAX_MIB, grown
        assert after.descriptors - before.descriptors <= GROWTH_MAX_DESCRIPTORS, grown
        assert after.threads - before.threads <= GROWTH_MAX_THREADS, grown
        assert after.children <= before.children, grown
    for sight in sights:
        assert sight.database["connections"] <= CONNECTIONS_MAX, sight


def _agree(clients: Clients, receiver: Receiver, database_url: str) -> None:
    """Clients, database and receiver have seen the same ends, each of them once."""
    told: dict[str, tuple[str, str]] = {}
    for one in receiver.taken:
        run = one.event["data"]
        assert told.setdefault(run["id"], (one.id, run["status"])) == (one.id, run["status"])
    assert {run_id: status for run_id, (_, status) in told.items() if run_id in clients.ended} == (
        clients.ended
    )
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT id, status FROM runs").fetchall()
    assert dict(rows).items() <= {run_id: status for run_id, (_, status) in told.items()}.items()


async def _the_log_is_swept(database_url: str) -> None:
    async def is_swept() -> bool:
        return counts(database_url)["log rows"] == 0

    await eventually(is_swept, SWEPT_AFTER_S)


async def _containers(host: str, database_url: str) -> list[str]:
    database = Database(database_url)
    await database.open()
    async with database.connection() as connection:
        installation = await sandboxes.installation(connection)
    await database.close()
    engine = Engine(host, Settings(), installation, "the test")
    await engine.connect()
    try:
        return [container.name for container in await engine.containers()]
    finally:
        engine.close()


def _bytes_are_those_of_files(database_url: str, data_dir: Path) -> None:
    kept = {path.name for path in (data_dir / "files").rglob("*") if path.is_file()}
    with psycopg.connect(database_url) as connection:
        known = {str(row[0]) for row in connection.execute("SELECT id FROM files")}
    assert kept == known
