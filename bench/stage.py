"""The processes of a measurement: Postgres, the upstream, and servers, on the loopback address."""

import asyncio
import os
import re
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import psycopg

from bench import processes
from threadmill.embedded_postgres import EmbeddedPostgres
from threadmill.store import migrate

_REPOSITORY = Path(__file__).parents[1]
_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 30


class Server:
    def __init__(
        self, address: str, process: Process, postmaster: int | None, *, is_profiled: bool
    ) -> None:
        self.address = address
        self.pid = process.pid
        self._process = process
        self._postmaster = postmaster
        self._is_profiled = is_profiled
        self.is_killed = False

    def kill(self) -> None:
        self.is_killed = True
        self._process.kill()

    def cpu_s(self) -> tuple[float, float]:
        """Of the server and of its Postgres."""
        assert self._postmaster is not None
        return processes.cpu_s(self.pid), processes.cpu_s(self._postmaster)

    @contextmanager
    def in_profile(self) -> Iterator[None]:
        """What the server does meanwhile is what its profile shows, if there is to be one."""
        self._toggle_profile()
        yield
        self._toggle_profile()

    def _toggle_profile(self) -> None:
        if self._is_profiled:
            self._process.send_signal(signal.SIGUSR1)


class Commits:
    """How long it takes to write one row and to be sure of it: the measure of this disk, now."""

    def __init__(self, url: str) -> None:
        self.took_s: list[float] = []
        self._connection = psycopg.connect(url, autocommit=True, prepare_threshold=0)
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS bench_commits (id bigserial, filling text)"
        )
        self.measure()
        self.took_s.clear()

    def measure(self) -> None:
        began = time.monotonic()
        self._connection.execute("INSERT INTO bench_commits (filling) VALUES (%s)", ["x" * 200])
        self.took_s.append(time.monotonic() - began)

    @property
    def median_s(self) -> float:
        return statistics.median(self.took_s)

    def close(self) -> None:
        self._connection.close()


class Stage:
    def __init__(self, folder: Path, postgres: EmbeddedPostgres, upstream: str, pid: int) -> None:
        self.upstream = upstream
        self.upstream_pid = pid
        self.folder = folder
        self.profile: Path | None = None  # where servers write what they were doing
        self.waited_share = 0.0  # of the last server, see processes.waited_share
        self._postgres = postgres
        self._servers = 0

    @property
    def postmaster(self) -> int:
        return int((self.folder / "postgres" / "postmaster.pid").read_text().split()[0])

    @property
    def database_url(self) -> str:
        return self._postgres.url

    @asynccontextmanager
    async def commits(self) -> AsyncIterator[Commits]:
        commits = Commits(self._postgres.url)
        try:
            yield commits
        finally:
            commits.close()

    @asynccontextmanager
    async def server(
        self, *, embedded: Path | None = None, settings: Mapping[str, object] | None = None
    ) -> AsyncIterator[Server]:
        """A `threadmill serve` of its own; with `embedded`, on a Postgres of its own there."""
        self._servers += 1
        if embedded is None:
            database = {"THREADMILL_DATABASE_URL": self._postgres.url}
            data_dir = self.folder / f"server{self._servers}"
        else:
            database, data_dir = {}, embedded
        environment = _environment() | database
        environment["THREADMILL_DATA_DIR"] = str(data_dir)
        environment["THREADMILL_CONFIG"] = os.devnull
        environment["THREADMILL_PORT"] = "0"
        environment["THREADMILL_MODEL_BASE_URL"] = f"{self.upstream}/v1"
        for name, value in (settings or {}).items():
            environment[f"THREADMILL_{name.upper()}"] = str(value)
        command = [str(Path(sys.executable).with_name("threadmill")), "serve"]
        if self.profile is not None:
            command = [sys.executable, "-m", "bench.profiled", str(self.profile), "serve"]
        log_path = self.folder / f"server{self._servers}.log"
        with _opened(log_path) as log:
            process = await _spawn(*command, environment=environment, stderr=log)
        try:
            address = await _said(process, rb"listens on (http://\S+)", log_path)
            postmaster = None if embedded else self.postmaster
            server = Server(address, process, postmaster, is_profiled=self.profile is not None)
            yield server
            if not server.is_killed:
                self.waited_share = processes.waited_share(process.pid)
        finally:
            await _end(process)
        if process.returncode and not server.is_killed:
            raise RuntimeError(f"The server ended with {process.returncode}:\n{_end_of(log_path)}")


@asynccontextmanager
async def open_stage() -> AsyncIterator[Stage]:
    _allow_many_connections()
    folder = Path(tempfile.mkdtemp(prefix="threadmill-bench-"))
    try:
        postgres = await EmbeddedPostgres.start(folder)
        try:
            await asyncio.to_thread(migrate.upgrade, postgres.url)
            upstream = await _spawn(sys.executable, "-m", "bench.upstream", stdin=PIPE)
            try:
                address = await _said(upstream, rb"(http://\S+)", None)
                yield Stage(folder, postgres, address, upstream.pid)
            finally:
                await _end(upstream)
        finally:
            await postgres.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _allow_many_connections() -> None:
    """Children inherit it: five hundred streams are a thousand connections of the server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 16_384 if hard == resource.RLIM_INFINITY else min(16_384, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _environment() -> dict[str, str]:
    """Ours, without what would set the server up in another way than its defaults."""
    foreign = re.compile("THREADMILL_|OPENAI_|PG|PYTHON(?!PATH)")
    return {name: value for name, value in os.environ.items() if not foreign.match(name)}


async def _spawn(
    *command: str,
    environment: dict[str, str] | None = None,
    stdin: int = DEVNULL,
    stderr: IO[bytes] | None = None,
) -> Process:
    setpriv = shutil.which("setpriv")  # it becomes the command, under the same process number
    dying_with_us = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    return await asyncio.create_subprocess_exec(
        *dying_with_us,
        *command,
        stdin=stdin,
        stdout=PIPE,
        stderr=stderr,
        cwd=_REPOSITORY,
        env=environment,
    )


async def _said(process: Process, pattern: bytes, log_path: Path | None) -> str:
    """What the pattern's group finds in the first lines that a process prints."""
    assert process.stdout is not None
    async with asyncio.timeout(_START_TIMEOUT_S):
        async for line in process.stdout:
            if found := re.search(pattern, line):
                return found[1].decode()
    said = _end_of(log_path) if log_path else ""
    raise RuntimeError(f"A process ended before it was ready:\n{said}")


async def _end(process: Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _opened(path: Path) -> IO[bytes]:
    return path.open("wb")


def _end_of(path: Path) -> str:
    return path.read_text(errors="replace")[-3000:]
