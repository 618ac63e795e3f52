"""`python -m bench.scale`: what several processes cost and give, and what the event log costs.

Whatever is compared is measured in turns, so that what else the machine does hits both.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import uvloop

from bench import table, upstream
from bench.client import Answer, Refused, request, streamed_text
from bench.figures import (
    TEN_WORDS,
    Figure,
    Scene,
    arrivals,
    check_words,
    close_all,
    connections_to,
    difference,
    ms,
    open_scene,
    quantile,
    send_after,
    share_out,
    until_ended,
    warmed,
)
from bench.stage import Stage, open_stage

_NO_LOG = {"event_log_retention_s": 0}
_API_ONLY = {"executor": "false"}
_READ_PAUSE_S = 0.001  # a client that reads, not one that does nothing else
_SLOW_WORDS = f"{TEN_WORDS}-every-100ms"


@dataclass
class _Size:
    turns: int  # of each side of a comparison
    streams: int
    stream_chunks: int
    ramp_s: float
    runs: int
    reads: int
    watched: int
    deaths: int


_FULL = _Size(
    turns=4,
    streams=500,
    stream_chunks=100,
    ramp_s=3,
    runs=1000,
    reads=1500,
    watched=40,
    deaths=3,
)
_QUICK = _Size(
    turns=2, streams=200, stream_chunks=50, ramp_s=1.2, runs=200, reads=300, watched=10, deaths=1
)


async def log_cost(stage: Stage, size: _Size) -> list[Figure]:
    """The paced streams of `python -m bench --only streams`, with the log and without."""
    with_log: list[tuple[float, float]] = []
    without: list[tuple[float, float]] = []
    for _ in range(size.turns):
        without.append(await _paced_cpu_s(stage, size, _NO_LOG))
        with_log.append(await _paced_cpu_s(stage, size, {}))
    own, own_without = (_median(side, 0) for side in (with_log, without))
    postgres, postgres_without = (_median(side, 1) for side in (with_log, without))
    return [
        Figure(
            f"CPU of the server for the event log, of {size.streams} streams at 10 chunks/s",
            (own / own_without - 1) * 100,
            "%",
            10,
            beside=f"{own * 1e6:.1f} µs a chunk, {own_without * 1e6:.1f} without the log; Postgres"
            f" {postgres * 1e6:.1f}, {postgres_without * 1e6:.1f} without",
        ),
        Figure(
            "the same, Postgres included",
            ((own + postgres) / (own_without + postgres_without) - 1) * 100,
            "%",
            beside=f"medians of {size.turns} measurements each, in turns",
        ),
    ]


async def _paced_cpu_s(
    stage: Stage, size: _Size, settings: Mapping[str, object]
) -> tuple[float, float]:
    """For a chunk, of the server and of Postgres, while all streams are open."""
    async with open_scene(stage, f"stamps-{size.stream_chunks}-every-100ms", settings) as scene:
        requests = await scene.streamed_runs(await scene.connect(8), size.streams)
        async with _streaming(scene, requests, size.ramp_s) as running:
            begin, before = time.monotonic(), scene.server.cpu_s()
            await asyncio.sleep(size.stream_chunks / 10 - size.ramp_s - 0.5)
            end, spent = time.monotonic(), difference(scene.server.cpu_s(), before)
        chunks = sum(
            begin <= came < end
            for answer in await asyncio.gather(*running)
            for came in arrivals(answer, b"event: thread.message.delta\n")
        )
    return spent[0] / chunks, spent[1] / chunks


async def two_executors(stage: Stage, size: _Size) -> list[Figure]:
    """Streamed runs a second, with one process and with two that are asked in turns."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(size.turns):
        async with stage.server() as first:
            scene = await warmed(first, TEN_WORDS)
            rates[1].append(await _rate(scene, [first.address], size.runs))
            async with stage.server() as second:
                await warmed(second, TEN_WORDS)
                rates[2].append(await _rate(scene, [first.address, second.address], size.runs))
    one, two = (statistics.median(rates[count]) for count in (1, 2))
    return [
        Figure(
            "streamed runs of two executor processes, of those of one, 32 clients",
            two / one,
            "times",
            1,
            at_least=True,
            beside=f"{two:.0f} and {one:.0f} runs/s; client, upstream and Postgres share the cores",
        )
    ]


async def _rate(scene: Scene, addresses: list[str], runs: int) -> float:
    clients = [
        client
        for pair in zip(*[await connections_to(one, 32) for one in addresses], strict=True)
        for client in pair
    ][:32]
    requests = await scene.streamed_runs(clients, runs)
    began = time.monotonic()
    answers = await share_out(clients, requests)
    took_s = time.monotonic() - began
    for answer in answers:
        check_words(answer)
    close_all(clients)
    return runs / took_s


async def recovery(stage: Stage, size: _Size) -> list[Figure]:
    """From the death of the process that executes a run to its end by another one. The model takes
    a second for its answer."""
    took: list[float] = []
    async with open_scene(stage, _SLOW_WORDS) as survivor:
        [client] = await survivor.connect(1)
        for _ in range(size.deaths):
            async with stage.server() as doomed:
                [other] = await connections_to(doomed.address, 1)
                thread = await survivor.thread(client)
                run = (await other.send(survivor.run(thread))).json
                await asyncio.sleep(0.5)
                doomed.kill()
                died_at = time.monotonic()
                await until_ended(client, thread, run["id"])
                took.append(time.monotonic() - died_at)
                other.close()
    return [
        Figure(
            "a run ends after `kill -9` of its executor",
            max(took),
            "s",
            15,
            beside=f"the longest of {len(took)}; the lease is 10 s, the model takes 1 s",
        )
    ]


async def reads_beside_streams(stage: Stage, size: _Size) -> list[Figure]:
    """GET run by one client, with 200 streams open and without."""
    streams = min(200, size.streams)
    quiet: list[float] = []
    beside: list[float] = []
    async with open_scene(stage, f"stamps-{size.stream_chunks}-every-100ms") as scene:
        [client] = await scene.connect(1)
        thread = await scene.thread(client)
        run_id = (await client.send(scene.run(thread))).json["id"]
        await until_ended(client, thread, run_id)
        get = request("GET", f"/v1/threads/{thread}/runs/{run_id}")
        makers = await scene.connect(8)
        for _ in range(size.turns):
            for _ in range(size.reads):
                quiet.append((await client.send(get)).took_s)
                await asyncio.sleep(_READ_PAUSE_S)
            requests = await scene.streamed_runs(makers, streams)
            async with _streaming(scene, requests, size.ramp_s) as running:
                while not any(one.done() for one in running):
                    beside.append((await client.send(get)).took_s)
                    await asyncio.sleep(_READ_PAUSE_S)
            await asyncio.gather(*running)
    p95, quiet_p95 = quantile(beside, 0.95), quantile(quiet, 0.95)
    return [
        Figure(
            f"p95 of GET run with {streams} open streams, of that without",
            p95 / quiet_p95,
            "times",
            1.5,
            beside=f"{ms(p95):.2f} and {ms(quiet_p95):.2f} ms; medians"
            f" {ms(statistics.median(beside)):.2f} and {ms(statistics.median(quiet)):.2f}",
        )
    ]


async def through_the_log(stage: Stage, size: _Size) -> list[Figure]:
    """Chunks of a run that another process executes, against those of one that is executed by the
    process that streams it; both on the same executor."""
    model = "stamps-20-every-100ms"
    async with open_scene(stage, model) as here, stage.server(settings=_API_ONLY) as api_only:
        [direct], [through] = await here.connect(1), await connections_to(api_only.address, 1)
        delays: dict[bool, list[float]] = {True: [], False: []}
        for at in range(size.watched):
            sent = here.streamed_run(await here.thread(direct))
            is_through = at % 2 == 1
            answer = await (through if is_through else direct).send(sent)
            delays[is_through] += _delays(answer)
    added = statistics.median(delays[True]) - statistics.median(delays[False])
    added_p99 = quantile(delays[True], 0.99) - quantile(delays[False], 0.99)
    return [
        Figure(
            "delay added to a chunk that another process executes and streams, p99",
            ms(added_p99),
            "ms",
            100,
            beside=f"median {ms(added):.1f} ms; where it is executed"
            f" {ms(statistics.median(delays[False])):.1f}, p99"
            f" {ms(quantile(delays[False], 0.99)):.1f} ms",
        )
    ]


SCENES: dict[str, Callable[[Stage, _Size], Awaitable[list[Figure]]]] = {
    "log_cost": log_cost,
    "two_executors": two_executors,
    "recovery": recovery,
    "reads": reads_beside_streams,
    "through_the_log": through_the_log,
}


# --- what they share ---


@asynccontextmanager
async def _streaming(
    scene: Scene, requests: list[bytes], ramp_s: float
) -> AsyncIterator[list[asyncio.Task[Answer]]]:
    """The block begins when all streams are open; afterwards they are waited for."""
    clients = await scene.connect(len(requests))
    running = [
        asyncio.create_task(send_after(at * ramp_s / len(requests), client, sent))
        for at, (client, sent) in enumerate(zip(clients, requests, strict=True))
    ]
    await asyncio.sleep(ramp_s + 0.3)
    yield running
    await asyncio.gather(*running)
    close_all(clients)


def _delays(answer: Answer) -> list[float]:
    sent_at = upstream.read_stamps(streamed_text(answer))[1]
    came_at = arrivals(answer, b"event: thread.message.delta\n")
    if len(sent_at) != len(came_at):
        raise Refused("The chunks of a stream were not sent one by one.")
    return [came - went for came, went in zip(came_at, sent_at, strict=True)]


def _median(pairs: list[tuple[float, float]], side: int) -> float:
    return statistics.median(pair[side] for pair in pairs)


async def _measure(names: list[str], size: _Size) -> list[Figure]:
    figures: list[Figure] = []
    async with open_stage() as stage:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            for figure in await SCENES[name](stage, size):
                figures.append(replace(figure, waited_share=stage.waited_share))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=SCENES, metavar="NAME", help=", ".join(SCENES)
    )
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    load, size = os.getloadavg()[0], _QUICK if options.quick else _FULL
    figures = uvloop.run(_measure(options.only or list(SCENES), size))
    print(f"{table.machine(load)}\n\n{table.rendered(figures)}")
    return int(any(figure.share is not None and figure.share > 1 for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
