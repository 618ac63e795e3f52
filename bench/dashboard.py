"""`python -m bench.dashboard`: what the pages weigh, how long they take, and what they cost."""

import argparse
import asyncio
import gzip
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvloop

from bench import million, processes, profiled, table, upstream
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
from bench.stage import Server, Stage, open_stage

_REPOSITORY = Path(__file__).parents[1]
_FIRST_TEXT = f'"value":"{upstream.FIRST_WORD}"'.encode()
_SLOW_WORDS = f"{TEN_WORDS}-every-100ms"
_KILOBYTE = 1000
_ASSET = re.compile(rb'(?:src|href)="(/ui/static/[^"]+)"')
_OWN_SCRIPT = re.compile(r"/(app|playground)\.")
_LIVE_WITHIN_S = 5.0
_BETWEEN_LOOKS_S = 0.75  # of the server at what pages follow


@dataclass
class _Size:
    threads: int
    calls: int  # of each page
    searches: int
    pairs: int
    watched: int
    watching_s: float
    dashboards: int
    under_way: int  # runs, meanwhile
    posts: int


_FULL = _Size(
    threads=1_000_000,
    calls=100,
    searches=20,
    pairs=200,
    watched=12,
    watching_s=30,
    dashboards=50,
    under_way=5,
    posts=400,
)
_QUICK = replace(
    _FULL, threads=50_000, calls=20, searches=5, pairs=30, watched=3, watching_s=6, posts=60
)


async def weight(stage: Stage, size: _Size) -> list[Figure]:
    """Bytes of what a browser loads, as they are served, and of what the wheel grew by."""
    async with stage.server() as server:
        [client] = await connections_to(server.address, 1)
        loaded = {
            address: (await client.send(request("GET", address))).body
            for page in ("/ui/", "/ui/playground")
            for address in await _loaded_by(client, page)
        }
        client.close()
    scripts = {address: body for address, body in loaded.items() if address.endswith(".js")}
    if len(scripts) < 3:
        raise Refused("The scripts are not there: install the project first.")
    own = sum(len(body) for address, body in scripts.items() if _OWN_SCRIPT.search(address))
    return [
        _kilobytes(
            "JavaScript", sum(map(len, scripts.values())), 60, beside=f"{own / 1000:.1f} kB our own"
        ),
        _kilobytes("the same, gzipped", sum(map(len, map(gzip.compress, scripts.values()))), 25),
        _kilobytes(
            "styles", sum(len(one) for name, one in loaded.items() if name.endswith(".css")), 20
        ),
        _kilobytes(
            "growth of the wheel", await asyncio.to_thread(_wheel_share_bytes), 250,
            beside="compressed, of all that is in the folder of the dashboard",
        ),
    ]  # fmt: skip


async def _loaded_by(client: Connection, page: str) -> list[str]:
    answer = await client.send(request("GET", page))
    return [address.decode() for address in _ASSET.findall(answer.body)]


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
    """Lists, searches and one large run, asked for one after the other on one connection; and what
    the index of words costs the API there."""
    print(f"putting in {size.threads:,} threads ...", file=sys.stderr, flush=True)
    url = await asyncio.to_thread(million.new_database, stage, size.threads)
    async with stage.server(settings={"database_url": url}) as server:
        with server.in_profile():
            figures = await _list_figures(server, size)
            figures += await _search_figures(server, size)
            figures += await _run_figures(server, size)
    if stage.profile is None:
        figures += await _index_figures(stage, size, url)
    return figures


@dataclass
class _Asked:
    """What came of asking for one page again and again."""

    first_s: float = 0.0  # not counted with the others
    took_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # of the server, without Postgres
    size_bytes: int = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.took_s)

    @property
    def p95_s(self) -> float:
        return quantile(self.took_s, 0.95)

    @property
    def told(self) -> str:
        cpu_ms = ms(statistics.median(self.cpu_s))
        return (
            f"p95 {ms(self.p95_s):.1f} ms; the first {ms(self.first_s):.0f}; CPU of the server"
            f" {cpu_ms:.1f} ms; {self.size_bytes / _KILOBYTE:.0f} kB"
        )


async def _list_figures(server: Server, size: _Size) -> list[Figure]:
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
    }
    asked = await _ask(server, lists, size.calls)
    slowest = max(asked, key=lambda name: asked[name].p95_s)
    [usage] = (await _ask(server, {"usage": "/ui/usage"}, size.searches)).values()
    return [
        *(
            Figure(f"page: {name}", ms(page.median_s), "ms", 10, beside=page.told)
            for name, page in asked.items()
        ),
        Figure("p95 of the slowest of these", ms(asked[slowest].p95_s), "ms", 25, beside=slowest),
        Figure("page: usage, of 30 days", ms(usage.median_s), "ms", beside=usage.told),
    ]


async def _search_figures(server: Server, size: _Size) -> list[Figure]:
    searches = {
        "a rare word": million.RARE_WORD,
        "a word of two threads in three": million.COMMON_WORD,
        "a word of the older half, in none of the newer": million.OLD_WORD,
        "three words": million.THREE_WORDS.replace(" ", "+"),
        "a word that nobody has said": "nobodyhassaidit",
        "two common words and a user": f"{million.COMMON_WORD}+where+user:{million.USER}",
    }
    addresses = {name: f"/ui/threads?q={query}" for name, query in searches.items()}
    addresses["a part of an assistant's name"] = "/ui/assistants?q=t+9999"
    return [
        Figure(
            f"search: {name}, the longest",
            ms(max(search.took_s)),
            "ms",
            1100,
            beside=f"median {ms(search.median_s):.1f} ms of {len(search.took_s)}",
        )
        for name, search in (await _ask(server, addresses, size.searches)).items()
    ]


async def _run_figures(server: Server, size: _Size) -> list[Figure]:
    address = f"/ui/runs/{million.LONG_RUN}"
    last = f"{address}/turns/{million.LONG_RUN_TURNS}"
    asked = await _ask(server, {"run": address, "turn": last}, size.searches)
    about = (
        f"{million.LONG_RUN_TURNS} turns, a prompt of {million.PROMPT_BYTES / 1e6:.0f} MB in each"
    )
    run, turn = asked["run"], asked["turn"]
    return [
        Figure("page of a long run", ms(run.median_s), "ms", 100, beside=f"{about}; {run.told}"),
        _kilobytes("the same, its size", run.size_bytes, 300),
        Figure("page of one of its prompts", ms(turn.median_s), "ms", beside=turn.told),
    ]


async def _ask(server: Server, addresses: dict[str, str], times: int) -> dict[str, _Asked]:
    """For each, in turns; the first round is not counted."""
    asked = {name: _Asked() for name in addresses}
    [client] = await connections_to(server.address, 1)
    for turn in range(times + 1):
        for name, address in addresses.items():
            before = processes.own_cpu_s(server.pid)
            answer = await client.send(request("GET", address))
            spent = processes.own_cpu_s(server.pid) - before
            if not turn:
                asked[name].first_s = answer.took_s
            else:
                asked[name].took_s.append(answer.took_s)
                asked[name].cpu_s.append(spent)
                asked[name].size_bytes = len(answer.body)
    client.close()
    return asked


async def _index_figures(stage: Stage, size: _Size, url: str) -> list[Figure]:
    """POST message at two servers in turns: one keeps the index of words, one has dropped it."""
    without = await asyncio.to_thread(million.copy_of, stage)
    off = {"database_url": without, "thread_text_search": "off"}
    took: dict[str, list[float]] = {"with": [], "without": []}
    async with (
        stage.server(settings={"database_url": url}) as indexed,
        stage.server(settings=off) as plain,
    ):
        await asyncio.to_thread(million.wait_until_without_words, without)
        posts = {
            "with": await _to_a_thread(indexed.address),
            "without": await _to_a_thread(plain.address),
        }
        for number in range(size.posts + 10):
            for name, (client, post) in posts.items():
                answer = await client.send(post)
                if number >= 10:
                    took[name].append(answer.took_s)
        close_all([client for client, _ in posts.values()])
    merged_s = await asyncio.to_thread(million.merge_words, url) / (size.posts + 10)
    medians = {name: statistics.median(times) for name, times in took.items()}
    return [
        Figure(
            "POST message: what the index of words adds",
            ms(medians["with"] - medians["without"]),
            "ms",
            beside=f"{ms(medians['with']):.2f} ms with it, {ms(medians['without']):.2f} without, in"
            f" turns; merging it later {ms(merged_s):.3f} ms a message",
        )
    ]


async def _to_a_thread(address: str) -> tuple[Connection, bytes]:
    """A connection, and a request that puts a message of 60 words into a new thread."""
    [client] = await connections_to(address, 1)
    made = await client.send(request("POST", "/v1/threads", {}))
    content = " ".join(f"word{number}" for number in range(60))
    path = f"/v1/threads/{made.json['id']}/messages"
    return client, request("POST", path, {"role": "user", "content": content})


# --- what moves ---


async def live(stage: Stage, size: _Size) -> list[Figure]:
    """From an event on the API's own stream to the byte that tells the page of it."""
    delays: list[float] = []
    async with open_scene(stage, _SLOW_WORDS) as scene:
        for number in range(size.watched):
            # From the look that saw the last end: so the next ends fall anywhere between two looks.
            await asyncio.sleep(number / size.watched * _BETWEEN_LOOKS_S)
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
        told = [at for at, piece in page.latest.pieces if b"event: over\n" in piece]
    watching.cancel()
    close_all([client, page])
    if not told:
        raise Refused(f"The page was not told within {_LIVE_WITHIN_S} s.")
    return max(told[0] - ended_at, 0.0)


async def open_dashboards(stage: Stage, size: _Size) -> list[Figure]:
    """What overviews cost that nobody looks away from. Some runs are under way all the time, so
    that the pages change every second; and every second another one begins and ends."""
    lasting = f"words-{int(2 * size.watching_s) + 10}-every-1000ms"
    async with open_scene(stage, lasting) as scene:
        clients = await scene.connect(size.under_way)
        running: list[asyncio.Task[Any]] = [
            asyncio.create_task(client.send(scene.streamed_run(await scene.thread(client))))
            for client in clients
        ]
        running.append(asyncio.create_task(_run_now_and_then(scene)))
        await asyncio.sleep(1)
        quiet = await _share_of_core(scene, size.watching_s)
        streams = await scene.connect(size.dashboards)
        watching: list[asyncio.Task[Any]] = [
            asyncio.create_task(stream.send(request("GET", "/ui/live"))) for stream in streams
        ]
        await asyncio.sleep(2)
        busy = await _share_of_core(scene, size.watching_s)
        told = min(len(stream.latest.pieces) for stream in streams)
        for one in running + watching:
            one.cancel()
        close_all(streams + clients)
    if told < size.watching_s / 2:
        raise Refused(f"A dashboard was told something {told} times in {size.watching_s} s.")
    return [
        Figure(
            f"CPU of {size.dashboards} open dashboards, beyond none",
            max(sum(busy) - sum(quiet), 0.0) * 100,
            "% of a core",
            2,
            beside=f"{told} times told in {size.watching_s:g} s; server {busy[0]:.2%}, Postgres"
            f" {busy[1]:.2%}; without them {quiet[0]:.2%} and {quiet[1]:.2%}",
        )
    ]


async def _run_now_and_then(scene: Scene) -> None:
    quick = await warmed(scene.server, TEN_WORDS)
    [client] = await scene.connect(1)
    while True:
        await client.send(quick.streamed_run(await quick.thread(client)))
        await asyncio.sleep(1)


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


async def _measure(names: list[str], size: _Size, profile: Path | None) -> list[Figure]:
    figures: list[Figure] = []
    async with open_stage() as stage:
        stage.profile = profile
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            for figure in await SCENES[name](stage, size):
                figures.append(replace(figure, waited_share=stage.waited_share))
    return figures


def main() -> int:
    options = _options()
    load, size = os.getloadavg()[0], _QUICK if options.quick else _FULL
    names = ["pages"] if options.profile else options.only or list(SCENES)
    figures = uvloop.run(_measure(names, size, options.profile))
    if options.profile is not None:
        profiled.show(options.profile)
        return 0
    printed = table.rendered(figures)
    print(f"{table.machine(load)}\n\n{printed}")
    if options.write:
        table.write(printed, table.machine(load), "dashboard")
    return int(any(figure.share is not None and figure.share > 1 for figure in figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=SCENES, metavar="NAME", help=", ".join(SCENES)
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in a minute")
    parser.add_argument("--write", action="store_true", help="put the table into bench/README.md")
    parser.add_argument(
        "--profile",
        type=lambda path: Path(path).absolute(),
        metavar="FILE",
        help="sample what the server does while it makes pages, and keep the stacks in FILE",
    )
    options = parser.parse_args()
    if options.write and (options.quick or options.only or options.profile):
        parser.error("the table in the README is of a whole run")
    return options


if __name__ == "__main__":
    sys.exit(main())
