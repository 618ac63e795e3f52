"""What the code interpreter costs: a run with one small cell beside the same run without it.

Through HTTP, into `threadmill serve` with real containers on the engine that is configured, room
there for all of them, else its default settings. It needs the image (`threadmill sandbox build`).

    python -m bench.code [--quick]
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import docker
import psycopg
import uvloop

from bench import table, upstream
from bench.client import Answer, Connection, Refused, request, streamed_text
from bench.figures import TEN_WORDS, WORDS, Figure
from bench.stage import Server, Stage, open_stage
from threadmill.sandbox.docker import EngineAway, hosts, look
from threadmill.settings import Settings

_MEBIBYTE = 1024**2
_ONE_CELL = f"cells-1-{TEN_WORDS}"
_MORE_CELLS = 9
_MANY_CELLS = f"cells-{_MORE_CELLS}-{TEN_WORDS}"
_AT_ONCE = 8
_WARM_WITHIN_S = 30
_LOOK_EVERY_S = 0.05
_ROLE = "threadmill.role"
_OWNER = "threadmill.owner"


@dataclass
class _Amounts:
    firsts: int
    following: int
    bursts: int


_FULL = _Amounts(firsts=10, following=40, bursts=3)
_QUICK = _Amounts(firsts=3, following=10, bursts=1)


async def code(stage: Stage, amounts: _Amounts) -> list[Figure]:
    async with _workshop(stage) as workshop:
        first = [await workshop.first() for _ in range(amounts.firsts)]
        following, cells = await workshop.following(amounts.following)
        memory_bytes = workshop.idle_memory_bytes()
        bursts = [await workshop.at_once() for _ in range(amounts.bursts)]
    figures = [
        Figure(
            "a run with one small cell beyond the same run without, first of its thread",
            _ms(statistics.median(first)),
            "ms",
            600,
            beside=f"one container was warm; most {_ms(max(first)):.0f} ms",
        ),
        Figure(
            "the same, on a thread that has its container",
            _ms(statistics.median(following)),
            "ms",
            100,
            beside=f"most {_ms(max(following)):.0f} ms",
        ),
        Figure(
            "a further cell of the same turn",
            _ms(statistics.median(cells)),
            "ms",
            5,
            beside=f"of {_MORE_CELLS - 1}; with the look at the files behind each",
        ),
        Figure(
            f"{_AT_ONCE} threads at once, each its first cell, to the last answer",
            statistics.median(bursts),
            "s",
            3,
            beside=f"most {max(bursts):.2f} s, none failed; one container was warm",
        ),
        Figure(
            "memory of an idle sandbox, pandas and pyplot imported",
            memory_bytes / _MEBIBYTE,
            "MiB",
            100,
            beside="of its control group, without the cache of files",
        ),
    ]
    return [replace(figure, waited_share=stage.waited_share) for figure in figures]


class _Workshop:
    def __init__(
        self,
        server: Server,
        database_url: str,
        client: Connection,
        assistant: str,
        engine: docker.DockerClient,
    ) -> None:
        self._server = server
        self._database_url = database_url
        self._client = client
        self._assistant = assistant
        self._engine = engine

    async def first(self) -> float:
        """Seconds that a cell adds to a run on a thread that has no container yet."""
        await self._until_warm()
        without = await self._run(await self._thread(), TEN_WORDS)
        return (await self._run(await self._thread(), _ONE_CELL)).took_s - without.took_s

    async def following(self, count: int) -> tuple[list[float], list[float]]:
        """The same with a container, and what each further cell of a turn adds."""
        thread = await self._thread()
        await self._run(thread, _ONE_CELL)
        runs, cells = [], []
        for _ in range(count):
            without = await self._run(thread, TEN_WORDS)
            one = await self._run(thread, _ONE_CELL)
            many = await self._run(thread, _MANY_CELLS)
            runs.append(one.took_s - without.took_s)
            cells.append((many.took_s - one.took_s) / (_MORE_CELLS - 1))
        return runs, cells

    async def at_once(self) -> float:
        await self._until_warm()
        threads = [await self._thread() for _ in range(_AT_ONCE)]
        clients = [await Connection.open(self._server.address) for _ in threads]
        began = time.monotonic()
        answers = await asyncio.gather(
            *(
                client.send(self._request(thread, _ONE_CELL))
                for client, thread in zip(clients, threads, strict=True)
            )
        )
        took_s = time.monotonic() - began
        for client, answer in zip(clients, answers, strict=True):
            client.close()
            _check(answer, _ONE_CELL)
        return took_s

    def idle_memory_bytes(self) -> int:
        """Of the largest container that was warm and has been used, and is not used just now."""
        return max(
            _memory_bytes(container.stats(stream=False)["memory_stats"])
            for container in self._warmed()
            if container.name in self._taken()
        )

    def _warmed(self) -> list[Any]:
        """This server's (the engine may have those of others) that wait or rest."""
        wanted = {"label": f"{_ROLE}=warm", "status": "paused"}
        return [
            container
            for container in self._engine.containers.list(filters=wanted, ignore_removed=True)
            if f":{self._server.pid}:" in container.labels[_OWNER]
        ]

    def _taken(self) -> set[str]:
        """The names of the containers that threads have."""
        with psycopg.connect(self._database_url) as connection:
            rows = connection.execute("SELECT container FROM sandbox_sessions").fetchall()
        return {name for (name,) in rows}

    async def _thread(self) -> str:
        message = {"role": "user", "content": "What is the sum of the first ten numbers?"}
        made = await self._client.send(request("POST", "/v1/threads", {"messages": [message]}))
        return str(made.json["id"])

    async def _run(self, thread: str, model: str) -> Answer:
        answer = await self._client.send(self._request(thread, model))
        _check(answer, model)
        return answer

    def _request(self, thread: str, model: str) -> bytes:
        wanted = {"assistant_id": self._assistant, "model": model, "stream": True}
        return request("POST", f"/v1/threads/{thread}/runs", wanted)

    async def _until_warm(self) -> None:
        await asyncio.to_thread(self._wait_until_warm)

    def _wait_until_warm(self) -> None:
        deadline = time.monotonic() + _WARM_WITHIN_S
        while not {container.name for container in self._warmed()} - self._taken():
            if time.monotonic() > deadline:
                raise Refused("No container became warm.")
            time.sleep(_LOOK_EVERY_S)


def _check(answer: Answer, model: str) -> None:
    """The words are right, and as many cells were run as the model asked for."""
    if streamed_text(answer) != upstream.words(WORDS):
        raise Refused("A stream is not what the upstream sent.")
    wanted = {TEN_WORDS: 0, _ONE_CELL: 1, _MANY_CELLS: _MORE_CELLS}[model]
    outputs = answer.body.count(b'"logs":"45')
    # Once in a delta, once in the step at its end.
    if outputs != 2 * wanted:
        raise Refused(f"{wanted} cells gave {outputs} outputs: {answer.body[-2000:].decode()}")


def _memory_bytes(stats: dict[str, Any]) -> int:
    """As `docker stats` counts, for both versions of control groups."""
    cache = stats["stats"].get("total_inactive_file", stats["stats"].get("inactive_file", 0))
    return int(stats["usage"]) - int(cache)


@asynccontextmanager
async def _workshop(stage: Stage) -> AsyncIterator[_Workshop]:
    engine = docker.from_env()
    async with stage.server(settings={"sandbox_max_sessions": 100}) as server:
        client = await Connection.open(server.address)
        wanted = {"model": TEN_WORDS, "tools": [{"type": "code_interpreter"}]}
        made = await client.send(request("POST", "/v1/assistants", wanted))
        yield _Workshop(server, stage.database_url, client, str(made.json["id"]), engine)
        client.close()
    engine.close()


async def _alone(amounts: _Amounts) -> list[Figure]:
    async with open_stage() as stage:
        return await code(stage, amounts)


def _ms(seconds: float) -> float:
    return seconds * 1000


def _why_not() -> str | None:
    settings = Settings()
    try:
        facts = asyncio.run(look(hosts(settings.docker_hosts)[0], settings.sandbox_image, 10))
    except EngineAway as away:
        return f"no Docker engine ({away})"
    return facts.fault_of(settings.sandbox_image)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.code", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    amounts, load = _QUICK if parser.parse_args().quick else _FULL, os.getloadavg()[0]
    if reason := _why_not():
        print(f"The code interpreter is not measured: {reason}.")
        return 0
    figures = uvloop.run(_alone(amounts))
    print(f"{table.machine(load)}\n\n{table.rendered(figures)}")
    return int(any(figure.share is not None and figure.share > 1 for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
