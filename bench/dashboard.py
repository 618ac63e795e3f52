"""`python -m bench.dashboard`: what the pages weigh, how long they take, and what they cost."""

import argparse
import asyncio
import gzip
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import uvloop

import threadmill.dashboard
from bench import million, processes, table, upstream
from bench.client import Connection, Refused, request, streamed_text
from bench.figures import (
    TEN_WORDS,
    Figure,
    Scene,
    close_all,
    connections_to,
    difference,
    ms,
    open_scene,
    quantile,
    warmed,
)
from bench.stage import Stage, open_stage

_STATIC = Path(threadmill.dashboard.__file__).parent / "static"
_REPOSITORY = Path(__file__).parents[1]
_FIRST_TEXT = f'"value":"{upstream.FIRST_WORD}"'.encode()
_SLOW_WORDS = f"{TEN_WORDS}-every-100ms"
_KILOBYTE = 1000
_LIVE_WITHIN_S = 5.0


@dataclass
class _Size:
    threads: int
    calls: int  # of each page
    searches: int
    pairs: int
    watched: int
    watching_s: float
    dashboards: int


_FULL = _Size(
    threads=1_000_000, calls=100, searches=15, pairs=200, watched=10, watching_s=30, dashboards=50
)
_QUICK = _Size(
    threads=50_000, calls=20, searches=4, pairs=30, watched=3, watching_s=6, dashboards=50
)


async def weight(stage: Stage, size: _Size) -> list[Figure]:
    """Bytes of what a browser loads, and of what the wheel grew by."""
    scripts = [path.read_bytes() for path in _STATIC.rglob("*.js")]
    styles = [path.read_bytes() for path in _STATIC.rglob("*.css")]
    if len(scripts) < 3:
        raise Refused("The scripts are not there: install the project first.")
    own = (_STATIC / "app.js").stat().st_size
    return [
        _kilobytes("JavaScript", sum(map(len, scripts)), 60, beside=f"own {own / 1000:.1f} kB"),
        _kilobytes("the same, gzipped", sum(len(gzip.compress(one)) for one in scripts), 25),
        _kilobytes("styles", sum(map(len, styles)), 20),
        _kilobytes(
            "growth of the wheel", await asyncio.to_thread(_wheel_share_bytes), 250,
            beside="compressed, of all that is in the folder of the dashboard",
        ),
    ]  # fmt: skip


def _wheel_share_bytes() -> int:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
        subprocess.run(command, cwd=_REPOSITORY, check=True, capture_output=True)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return sum(
                entry.compress_size
                for entry in archive.infolist()
                if entry.filename.startswith("threadmill/dashboard/")
            )


def _kilobytes(what: str, measured_bytes: int, limit: float, beside: str = "") -> Figure:
    return Figure(what, measured_bytes / _KILOBYTE, "kB", limit, beside=beside)


# --- with a million threads ---


async def pages(stage: Stage, size: _Size) -> list[Figure]:
    """Lists, searches and one large run, asked for one after the other on one connection."""
    print(f"putting in {size.threads:,} threads ...", file=sys.stderr, flush=True)
    url = await asyncio.to_thread(million.new_database, stage, size.threads)
    async with stage.server(settings={"database_url": url}) as server:
        [client] = await connections_to(server.address, 1)
        figures = await _list_figures(client, size)
        figures += await _search_figures(client, size)
        figures += await _run_figures(client, size)
        client.close()
    return figures


async def _list_figures(client: Connection, size: _Size) -> list[Figure]:
    deep = million.thread_id(size.threads // 5)
    lists = {
        "overview": "/ui/",
        "threads": "/ui/threads",
        "threads, deep down": f"/ui/threads?after={deep}",
        "threads that failed": "/ui/threads?status=failed",
        "threads of a user": f"/ui/threads?q=user:{million.USER}",
        "assistants": "/ui/assistants",
        "vector stores": "/ui/vector_stores",
        "files": "/ui/files",
        "usage": "/ui/usage",
    }
    took, sizes = await _asked(client, lists, size.calls)
    p95s = {name: quantile(times, 0.95) for name, times in took.items()}
    slowest = max(p95s, key=lambda name: p95s[name])
    return [
        *(
            Figure(
                f"page: {name}",
                ms(statistics.median(times)),
                "ms",
                10,
                beside=f"p95 {ms(p95s[name]):.1f} ms, {sizes[name] / 1000:.0f} kB",
            )
            for name, times in took.items()
        ),
        Figure("p95 of the slowest of these", ms(p95s[slowest]), "ms", 25, beside=slowest),
    ]


async def _search_figures(client: Connection, size: _Size) -> list[Figure]:
    searches = {
        "a rare word": million.RARE_WORD,
        "a word of two threads in three": million.COMMON_WORD,
        "three words": million.THREE_WORDS.replace(" ", "+"),
        "a word that nobody has said": "nobodyhassaidit",
        "two common words and a user": f"{million.COMMON_WORD}+where+user:{million.USER}",
    }
    addresses = {name: f"/ui/threads?q={query}" for name, query in searches.items()}
    took, _ = await _asked(client, addresses, size.searches)
    return [
        Figure(
            f"search: {name}, the longest",
            ms(max(times)),
            "ms",
            1100,
            beside=f"median {ms(statistics.median(times)):.1f} ms of {len(times)}",
        )
        for name, times in took.items()
    ]


async def _run_figures(client: Connection, size: _Size) -> list[Figure]:
    address = f"/ui/runs/{million.LONG_RUN}"
    last = f"{address}/turns/{million.LONG_RUN_TURNS}"
    took, sizes = await _asked(client, {"run": address, "turn": last}, size.searches)
    about = (
        f"{million.LONG_RUN_TURNS} turns, a prompt of {million.PROMPT_BYTES / 1e6:.0f} MB in each"
    )
    return [
        Figure(
            "page of a long run",
            ms(statistics.median(took["run"])),
            "ms",
            100,
            beside=f"{about}; p95 {ms(quantile(took['run'], 0.95)):.1f} ms",
        ),
        _kilobytes("the same, its size", sizes["run"], 300),
        Figure("page of one of its prompts", ms(statistics.median(took["turn"])), "ms"),
    ]


async def _asked(
    client: Connection, addresses: dict[str, str], times: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds and bytes of each, in turns; the first round is not counted."""
    took: dict[str, list[float]] = {name: [] for name in addresses}
    sizes: dict[str, int] = {}
    for turn in range(times + 1):
        for name, address in addresses.items():
            answer = await client.send(request("GET", address))
            sizes[name] = len(answer.body)
            if turn:
                took[name].append(answer.took_s)
    return took, sizes


# --- what moves ---


async def live(stage: Stage, size: _Size) -> list[Figure]:
    """From an event on the API's own stream to the byte that tells the page of it."""
    delays: list[float] = []
    async with open_scene(stage, _SLOW_WORDS) as scene:
        for _ in range(size.watched):
            delays.append(await _delay_of_end(scene))
    return [
        Figure(
            "a run's end on its page, after the API's own stream told it",
            max(delays),
            "s",
            1,
            beside=f"the longest of {len(delays)}, median {statistics.median(delays):.2f} s",
        )
    ]


async def _delay_of_end(scene: Scene) -> float:
    client, page = await scene.connect(2)
    running = asyncio.create_task(client.send(scene.streamed_run(await scene.thread(client))))
    run_id = ""
    while not run_id:
        await asyncio.sleep(0.01)
        said = client.latest.body
        run_id = said.partition(b'"id":"run_')[2].partition(b'"')[0].decode()
    watching = asyncio.create_task(page.send(request("GET", f"/ui/runs/run_{run_id}/live")))
    answer = await running
    streamed_text(answer)
    ended_at = answer.sent_at + answer.first_s(b"event: thread.run.completed\n")
    deadline = ended_at + _LIVE_WITHIN_S
    told: list[float] = []
    while not told and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
        told = [at for at, piece in page.latest.pieces if b"completed" in piece]
    watching.cancel()
    close_all([client, page])
    if not told:
        raise Refused(f"The page was not told within {_LIVE_WITHIN_S} s.")
    return max(told[0] - ended_at, 0.0)


async def open_dashboards(stage: Stage, size: _Size) -> list[Figure]:
    """What overviews cost that nobody looks away from, while a run goes on now and then."""
    async with open_scene(stage, TEN_WORDS) as scene:
        quiet = await _share_of_core(scene, size.watching_s)
        streams = await scene.connect(size.dashboards)
        watching = [
            asyncio.create_task(stream.send(request("GET", "/ui/live"))) for stream in streams
        ]
        await asyncio.sleep(2)
        busy = await _share_of_core(scene, size.watching_s)
        told = sum(bool(stream.latest.pieces) for stream in streams)
        for one in watching:
            one.cancel()
        close_all(streams)
    if told < size.dashboards:
        raise Refused(f"Only {told} of {size.dashboards} dashboards were told anything.")
    return [
        Figure(
            f"CPU of {size.dashboards} open dashboards, beyond none",
            max(sum(busy) - sum(quiet), 0.0) * 100,
            "% of a core",
            2,
            beside=f"server {busy[0]:.2%}, Postgres {busy[1]:.2%}; without them {quiet[0]:.2%}"
            f" and {quiet[1]:.2%}",
        )
    ]


async def _share_of_core(scene: Scene, for_s: float) -> tuple[float, float]:
    """Of the server and of Postgres."""
    before, began = scene.server.cpu_s(), time.monotonic()
    await asyncio.sleep(for_s)
    server_s, postgres_s = difference(scene.server.cpu_s(), before)
    took_s = time.monotonic() - began
    return server_s / took_s, postgres_s / took_s


async def first_text(stage: Stage, size: _Size) -> list[Figure]:
    """The first text of a streamed run by the pages' way into the API, and by the API, in turns."""
    more: list[float] = []
    own: list[float] = []
    async with open_scene(stage, TEN_WORDS) as scene:
        [client] = await scene.connect(1)
        for _ in range(size.pairs):
            direct, through = [scene.streamed_run(await scene.thread(client)) for _ in range(2)]
            through = through.replace(b"POST /v1/", b"POST /ui/api/v1/", 1)
            answer, by_page = await client.send(direct), await client.send(through)
            own.append(answer.first_s(_FIRST_TEXT))
            more.append(by_page.first_s(_FIRST_TEXT) - own[-1])
    return [
        Figure(
            "first text in the playground, beyond the API's own",
            max(ms(statistics.median(more)), 0.0),
            "ms",
            5,
            beside=f"p95 {ms(quantile(more, 0.95)):.2f} ms; the API's own"
            f" {ms(statistics.median(own)):.2f} ms",
        )
    ]


async def off(stage: Stage, size: _Size) -> list[Figure]:
    """Without the dashboard: no route, nothing of it loaded."""
    memory: dict[str, float] = {}
    for name in ("on", "off"):
        async with stage.server(settings={"dashboard": name}) as server:
            await warmed(server, TEN_WORDS)
            memory[name] = processes.resident_bytes(server.pid) / 1024**2
            if name == "off":
                await _check_nothing_answers(server.address)
    return [
        Figure(
            "memory that the dashboard takes, before a page was opened",
            memory["on"] - memory["off"],
            "MiB",
            beside=f"resident {memory['on']:.0f} MiB with it, {memory['off']:.0f} without",
        ),
    ]


async def _check_nothing_answers(address: str) -> None:
    [client] = await connections_to(address, 1)
    for path in ("/", "/ui", "/ui/", "/ui/threads", "/ui/sign-in", "/ui/api/v1/models"):
        try:
            await client.send(request("GET", path))
        except Refused:
            continue
        raise RuntimeError(f"The dashboard is off, and {path} answers.")
    client.close()


SCENES: dict[str, Callable[[Stage, _Size], Awaitable[list[Figure]]]] = {
    "weight": weight,
    "pages": pages,
    "live": live,
    "open": open_dashboards,
    "first_text": first_text,
    "off": off,
}


async def _measure(names: list[str], size: _Size) -> list[Figure]:
    figures: list[Figure] = []
    async with open_stage() as stage:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            for figure in await SCENES[name](stage, size):
                figures.append(replace(figure, waited_share=stage.waited_share))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
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
