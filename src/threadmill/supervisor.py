"""Several server processes behind one port: `serve --workers N`.

The parent opens the port and, where it is ours, the database; the children take connections from
the same socket, each whenever it is free. They end when their standard input does, so that none is
left when the parent is killed.
"""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory

import structlog

from threadmill.app import LAST_WORDS_S, bind
from threadmill.embedded_postgres import EmbeddedPostgres
from threadmill.runtime import check_schema
from threadmill.settings import Settings

log = structlog.get_logger()

READY = "ready"  # a child's line when it answers; what it says before is its greeting

_FIRST_PAUSE_S = 1.0  # before a child that has died is started again, then twice as long each time
_LONGEST_PAUSE_S = 30.0
_STEADY_S = 60.0  # who lived so long did not die of being started
_KILL_AFTER_S = 10.0  # beyond the time that a child has to end in good order


class ChildFailed(Exception):
    """The first child did not get so far as to answer; it has said why."""


async def supervise(
    settings: Settings, count: int, options: list[str], *, on_start: Callable[[str], None]
) -> str | None:
    """Serve with so many processes until a signal comes; say so if the database dies before.

    `options` are those of the children's own `serve`.
    """
    with (
        bind(settings.host, settings.port) as listening,
        TemporaryDirectory(prefix="threadmill-") as folder,  # where they find each other
    ):
        listening.set_inheritable(True)
        async with _database(settings) as (url, died):
            environment = os.environ | {"THREADMILL_DATABASE_URL": url}
            shared = ["--socket", str(listening.fileno()), "--folder", folder]
            children = [
                _Child(number, [*options, *shared], environment, listening.fileno())
                for number in range(1, count + 1)
            ]
            stopped = _stopped()
            # The first alone: what is wrong with the settings need not be said by each of them.
            greeting = await children[0].start()
            if greeting is None:
                raise ChildFailed
            keeping = [asyncio.create_task(child.keep()) for child in children]
            on_start(greeting)
            try:
                ends = [stopped, *([died] if died else [])]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                return repr(died.exception()) if died and died.done() else None
            finally:
                for task in keeping:
                    task.cancel()
                await asyncio.gather(*keeping, return_exceptions=True)
                listening.close()  # the children have it as long as they take connections
                drain_s = settings.drain_delay_s + settings.drain_timeout_s
                patience_s = drain_s + LAST_WORDS_S + _KILL_AFTER_S
                await asyncio.gather(*(child.stop(patience_s) for child in children))


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[tuple[str, asyncio.Task[None] | None]]:
    """Its URL and, if it is ours, what tells of its death."""
    if settings.database_url is not None:
        yield settings.database_url, None
        return
    postgres = await EmbeddedPostgres.start(settings.data_dir)
    died = asyncio.create_task(postgres.wait())
    try:
        await check_schema(postgres.url, may_upgrade=True)
        yield postgres.url, died
    finally:
        await postgres.stop()
        await asyncio.gather(died, return_exceptions=True)


def _stopped() -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[None] = loop.create_future()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    return stopped


class _Child:
    def __init__(
        self, number: int, options: list[str], environment: dict[str, str], socket: int
    ) -> None:
        self._number = number
        self._options = [*options, "--number", str(number)]
        self._environment = environment
        self._socket = socket
        self._process: Process | None = None

    async def start(self) -> str | None:
        """Its greeting when it answers; None if it ends before."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "threadmill",
            "serve",
            *self._options,
            stdin=PIPE,
            stdout=PIPE,
            env=self._environment,
            pass_fds=[self._socket],
            start_new_session=True,  # a Ctrl-C is for the parent, who tells them
        )
        assert self._process.stdout is not None
        greeting: list[str] = []
        async for line in self._process.stdout:
            if line.decode().rstrip() == READY:
                return "".join(greeting)
            greeting.append(line.decode())
        await self._process.wait()
        return None

    async def keep(self) -> None:
        """Runs until it is cancelled: a child that dies is told of and started again."""
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        while True:
            started_at = loop.time()
            if self._process is None or self._process.returncode is not None:
                await self.start()
            assert self._process is not None
            status = await self._process.wait()
            if loop.time() - started_at > _STEADY_S:
                pause_s = _FIRST_PAUSE_S
            log.error(
                "process_died", number=self._number, status=status, started_again_in_s=pause_s
            )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def stop(self, patience_s: float) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(patience_s):
                await process.communicate()
        except TimeoutError:
            log.error("process_killed", number=self._number)
            process.kill()
            await process.communicate()
