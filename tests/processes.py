"""Real `threadmill` processes on one database, to be killed and stopped."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import psycopg

from threadmill.demo.scripted_model import ScriptedModel

# What is half written can be seen at once.
FAST = {"THREADMILL_DRAFT_INTERVAL_S": "0.05"}
# A short lease would be lost by whoever is kept waiting for a processor: `Process.dies`.
FOR_EVER = {"THREADMILL_RUN_LEASE_S": "3600"}


class Process:
    """A `threadmill serve` or `worker`."""

    def __init__(
        self, process: asyncio.subprocess.Process, first_line: str, database_url: str
    ) -> None:
        self._process = process
        self._database_url = database_url
        self.address = first_line.partition("listens on ")[2].partition(" ")[0]
        self.client = openai.AsyncOpenAI(
            api_key="any", base_url=f"{self.address}/v1", max_retries=0
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    async def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()  # closes the pipe too

    async def dies(self) -> None:
        """Killed, and missed: nobody has to wait until its lease is over."""
        await self.kill()
        async with await psycopg.AsyncConnection.connect(self._database_url) as connection:
            await connection.execute(
                "UPDATE workers SET lease_until = now() WHERE id LIKE %s", [f"%:{self.pid}:%"]
            )

    async def close(self) -> None:
        await self.client.close()
        await self.kill()

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        async with asyncio.timeout(60):
            return await self._process.wait()


Launch = Callable[..., Coroutine[Any, Any, Process]]


@asynccontextmanager
async def launcher(
    database_url: str, model: ScriptedModel, tmp_path: Path
) -> AsyncIterator[Launch]:
    started: list[Process] = []

    async def launch(command: str = "serve", *more: str, **environment: str) -> Process:
        options = [*(["--port", "0"] if command == "serve" else []), *more]
        own = {
            "THREADMILL_DATABASE_URL": database_url,
            "THREADMILL_DATA_DIR": str(tmp_path),
            "THREADMILL_MODEL_BASE_URL": model.base_url,
            "THREADMILL_MODEL_MAX_RETRY_WAIT_S": "0.05",
            "THREADMILL_DOCKER_HOSTS": "unix:///nonexistent/docker.sock",
            "THREADMILL_SANDBOX_WARM_SESSIONS": "0",
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "threadmill",
            command,
            *options,
            env={**os.environ, **own, **environment},
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            line = (await process.stdout.readline()).decode()
        started.append(Process(process, line, database_url))
        assert line, f"{command} did not start"
        return started[-1]

    try:
        yield launch
    finally:
        for process in started:
            await process.close()


class Terminal:
    """Commands that come to an end by themselves."""

    def __init__(self, database_url: str | None, data_dir: Path) -> None:
        self._environment = {**os.environ, "THREADMILL_DATA_DIR": str(data_dir)}
        if database_url is not None:
            self._environment["THREADMILL_DATABASE_URL"] = database_url

    async def type(self, *words: str) -> tuple[int, str]:
        """How it ended, and all that was printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "threadmill",
            *words,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(120):
                printed, _ = await process.communicate()
        finally:
            if process.returncode is None:  # it was not to stay
                process.kill()
        assert process.returncode is not None
        return process.returncode, printed.decode()
