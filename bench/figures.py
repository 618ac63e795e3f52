"""The figures: what is done, what is counted, and the limit.

Each function makes the rows of one name on the command line. It begins with a server of its own, so
that nothing it measures depends on what was measured before. Whatever is streamed is also checked.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bench import processes, upstream
from bench.client import Answer, Connection, Refused, request, streamed_text
from bench.stage import Server, Stage

WORDS = 10  # of the answer of a usual run
TEN_WORDS = f"words-{WORDS}"

_MEBIBYTE = 1024**2
_WARM_UP_RUNS = 20
_TOKENIZER_LOADS_S = 3  # in a thread, when first a prompt is long enough to be counted
_FIRST_TOKEN = f'"content":"{upstream.FIRST_WORD}"'.encode()
_FIRST_TOKEN_OF_RUN = f'"value":"{upstream.FIRST_WORD}"'.encode()
_INSTRUCTIONS = "You are a patient assistant of a small library. Answer briefly and in English."
_QUESTIONS = ["Which books about looms do you have?", "And which of them are for children?"]


@dataclass
class Figure:
    what: str
    measured: float
    unit: str
    limit: float | None = None
    at_least: bool = False  # the limit is the least, not the most
    beside: str = ""  # what helps to judge it
    waited_share: float = 0.0  # of the server for a core: how much others were in its way

    @property
    def share(self) -> float | None:
        """Of the limit: up to 1 is within it, whichever way it counts."""
        if self.limit is None:
            return None
        if self.at_least:
            return self.limit / self.measured if self.measured else float("inf")
        return self.measured / self.limit


@dataclass
class Size:
    pairs: int
    runs: int
    rate_runs: int
    calls: int
    reads: int
    streams: int
    stream_chunks: int
    ramp_s: float
    burst_streams: int
    long_pairs: int
    starts: int
    polled: int


FULL = Size(
    pairs=300,
    runs=600,
    rate_runs=2000,
    calls=300,
    reads=6000,
    streams=500,
    stream_chunks=100,
    ramp_s=3,
    burst_streams=100,
    long_pairs=40,
    starts=3,
    polled=20,
)
QUICK = Size(
    pairs=60,
    runs=100,
    rate_runs=200,
    calls=60,
    reads=600,
    streams=100,
    stream_chunks=30,
    ramp_s=0.8,
    burst_streams=20,
    long_pairs=8,
    starts=1,
    polled=5,
)


# --- one run ---


async def run(stage: Stage, size: Size) -> list[Figure]:
    """A durable streamed run against the bare streamed call, in turns, with commits between."""
    whole: list[float] = []
    first: list[float] = []
    bare_whole: list[float] = []
    async with open_scene(stage, TEN_WORDS) as scene, stage.commits() as commits:
        [client], [bare] = await scene.connect(1), await connections_to(stage.upstream, 1)
        call = _bare_call(TEN_WORDS)
        requests = await scene.streamed_runs([client], size.pairs)
        with scene.server.in_profile():
            for sent in requests:
                commits.measure()
                called = await bare.send(call)
                ran = await client.send(sent)
                commits.measure()
                check_words(ran)
                whole.append(ran.took_s - called.took_s)
                first.append(ran.first_s(_FIRST_TOKEN_OF_RUN) - called.first_s(_FIRST_TOKEN))
                bare_whole.append(called.took_s)
        commit_s = commits.median_s
    over, over_first = statistics.median(whole), statistics.median(first)
    commit = f"a commit {ms(commit_s):.2f} ms"
    return [
        Figure(
            "a durable streamed run beyond the bare streamed call",
            ms(over),
            "ms",
            4,
            beside=f"p90 {ms(quantile(whole, 0.9)):.2f} ms,"
            f" the bare call {ms(statistics.median(bare_whole)):.2f} ms",
        ),
        Figure("the same in commits", over / commit_s, "commits", 12, beside=commit),
        Figure(
            "its first token beyond the upstream's first token",
            ms(over_first),
            "ms",
            2,
            beside=f"p90 {ms(quantile(first, 0.9)):.2f} ms",
        ),
        Figure("the same in commits", over_first / commit_s, "commits", 6, beside=commit),
    ]


async def cpu(stage: Stage, size: Size) -> list[Figure]:
    """CPU of the server with its Postgres for each streamed run on a thread made before."""
    figures = []
    async with open_scene(stage, TEN_WORDS) as scene:
        for clients in (1, 4):
            connections = await scene.connect(clients)
            requests = await scene.streamed_runs(connections, size.runs)
            stage_before, before = _stage_cpu_s(stage), scene.server.cpu_s()
            with scene.server.in_profile():
                answers = await share_out(connections, requests)
            server_s, postgres_s = difference(scene.server.cpu_s(), before)
            around_s = _stage_cpu_s(stage) - stage_before
            for answer in answers:
                check_words(answer)
            figures.append(
                Figure(
                    f"CPU of a streamed run, {_clients(clients)}, Postgres included",
                    ms(server_s + postgres_s) / size.runs,
                    "ms",
                    4,
                    beside=f"server {ms(server_s) / size.runs:.2f},"
                    f" Postgres {ms(postgres_s) / size.runs:.2f};"
                    f" client and upstream, not counted, {ms(around_s) / size.runs:.2f}",
                )
            )
            close_all(connections)
    return figures


async def rate(stage: Stage, size: Size) -> list[Figure]:
    """Streamed runs a second: sent, streamed and closed, each on a thread made before."""
    figures = []
    async with open_scene(stage, TEN_WORDS) as scene:
        for clients in (16, 64):
            connections = await scene.connect(clients)
            requests = await scene.streamed_runs(connections, size.rate_runs)
            began, before = time.monotonic(), scene.server.cpu_s()
            with scene.server.in_profile():
                answers = await share_out(connections, requests)
            took_s = time.monotonic() - began
            server_s, postgres_s = difference(scene.server.cpu_s(), before)
            for answer in answers:
                check_words(answer)
            took = [answer.took_s for answer in answers]
            figures.append(
                Figure(
                    f"streamed runs, {_clients(clients)}",
                    len(answers) / took_s,
                    "runs/s",
                    200,
                    at_least=True,
                    beside=f"p50 {ms(statistics.median(took)):.0f} ms,"
                    f" p99 {ms(quantile(took, 0.99)):.0f} ms;"
                    f" the server took {server_s / took_s:.2f} cores, Postgres"
                    f" {postgres_s / took_s:.2f}",
                )
            )
            close_all(connections)
    return figures


async def polled(stage: Stage, size: Size) -> list[Figure]:
    """A run without stream, looked at as the SDK's `create_and_poll` does it."""
    took: list[float] = []
    looks = 0
    async with open_scene(stage, TEN_WORDS) as scene:
        [client] = await scene.connect(1)
        for _ in range(size.polled):
            thread = await scene.thread(client)
            answer = await client.send(scene.run(thread))
            began, run = answer.sent_at, answer.json
            path = f"/v1/threads/{thread}/runs/{run['id']}"
            while True:
                answer = await client.send(request("GET", path))
                looks += 1
                if answer.json["status"] not in ("queued", "in_progress"):
                    break
                await asyncio.sleep(int(answer.headers.get(b"openai-poll-after-ms", 1000)) / 1000)
            took.append(answer.ended_at - began)
            if answer.json["status"] != "completed":
                raise Refused(f"A polled run is {answer.json['status']}.")
    return [
        Figure(
            "a run that is polled as the SDK polls, create to completed",
            ms(statistics.median(took)),
            "ms",
            beside=f"{looks / size.polled:.1f} looks a run",
        )
    ]


async def long(stage: Stage, size: Size) -> list[Figure]:
    """A streamed run on a thread of 1,000 messages against one on a thread of two."""
    more: list[float] = []
    async with open_scene(stage, TEN_WORDS) as scene:
        [client] = await scene.connect(1)
        long_thread = await scene.long_thread(client, 1000)
        for turn in range(size.long_pairs + 3):
            if turn == 1:
                await asyncio.sleep(_TOKENIZER_LOADS_S)
            short_thread = await scene.thread(client)
            short = await client.send(scene.streamed_run(short_thread))
            long = await client.send(scene.streamed_run(long_thread))
            check_words(short)
            check_words(long)
            if turn >= 3:  # the tokenizer is loaded and the messages are counted by then
                more.append(long.took_s - short.took_s)
    return [
        Figure(
            "a streamed run on a thread of 1,000 messages beyond one of 2",
            ms(statistics.median(more)),
            "ms",
            15,
            beside=f"p90 {ms(quantile(more, 0.9)):.1f} ms",
        )
    ]


# --- calls without a run ---


async def calls(stage: Stage, size: Size) -> list[Figure]:
    """Latency of usual calls on one kept connection, in turns, and reads with sixteen clients."""
    async with open_scene(stage, TEN_WORDS) as scene, stage.commits() as commits:
        connections = await scene.connect(16)
        client = connections[0]
        thread = await scene.long_thread(client, 30)
        answer = await client.send(scene.run(thread))
        run_id = answer.json["id"]
        await until_ended(client, thread, run_id)
        post = request("POST", f"/v1/threads/{thread}/messages", _message(_QUESTIONS[0]))
        get = request("GET", f"/v1/threads/{thread}/runs/{run_id}")
        list_20 = request("GET", f"/v1/threads/{thread}/messages?limit=20")
        kinds = {"POST message": post, "GET run": get, "list 20 messages": list_20}
        took: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(size.calls):
            for kind, sent in kinds.items():
                took[kind].append((await client.send(sent)).took_s)
            commits.measure()
        commit_s = commits.median_s
        began, before = time.monotonic(), scene.server.cpu_s()
        with scene.server.in_profile():
            answers = await share_out(connections, [get, list_20] * (size.reads // 2))
        reading_s = time.monotonic() - began
        server_s, postgres_s = difference(scene.server.cpu_s(), before)
    limits = {"POST message": 2, "GET run": 1.2, "list 20 messages": 1.5}
    return [
        *(
            Figure(
                f"{kind}, one client",
                ms(statistics.median(took[kind])),
                "ms",
                limits[kind],
                beside=f"p90 {ms(quantile(took[kind], 0.9)):.2f} ms"
                + (f", a commit {ms(commit_s):.2f} ms" if kind.startswith("POST") else ""),
            )
            for kind in kinds
        ),
        Figure(
            "reads (GET run and list 20 in turns), 16 clients",
            len(answers) / reading_s,
            "reads/s",
            1200,
            at_least=True,
            beside=f"CPU of a read {ms(server_s) / len(answers):.2f} +"
            f" {ms(postgres_s) / len(answers):.2f} ms",
        ),
    ]


# --- many streams ---


async def streams(stage: Stage, size: Size) -> list[Figure]:
    """Many streams at ten chunks a second each. Every chunk says when it was sent."""
    model = f"stamps-{size.stream_chunks}-every-100ms"
    bare_delays = await _bare_delays(stage, size)
    async with open_scene(stage, model) as scene:
        makers = await scene.connect(8)
        requests = await scene.streamed_runs(makers, size.streams)
        clients = await scene.connect(size.streams)
        memory_before = processes.resident_bytes(scene.server.pid)
        running = [
            asyncio.create_task(send_after(at * size.ramp_s / size.streams, client, sent))
            for at, (client, sent) in enumerate(zip(clients, requests, strict=True))
        ]
        await asyncio.sleep(size.ramp_s + 0.3)
        begin, before = time.monotonic(), scene.server.cpu_s()
        with scene.server.in_profile():
            await asyncio.sleep(size.stream_chunks / 10 - size.ramp_s - 0.5)
        end, (server_s, postgres_s) = time.monotonic(), scene.server.cpu_s()
        memory_bytes = processes.resident_bytes(scene.server.pid) - memory_before
        server_s, postgres_s = server_s - before[0], postgres_s - before[1]
        answers = await asyncio.gather(*running)
        close_all(clients)
    late: list[tuple[float, float]] = []  # when a chunk came and how late it was
    seen: set[int] = set()
    for answer in answers:
        stream, sent_at = upstream.read_stamps(streamed_text(answer))
        if len(sent_at) == size.stream_chunks:
            seen.add(stream)
        arrived_at = arrivals(answer, b"event: thread.message.delta\n")
        late += [(came, came - went) for came, went in zip(arrived_at, sent_at, strict=True)]
    delays = [delay for _, delay in late]
    delays_between = [delay for came, delay in late if begin <= came < end]
    in_window = len(delays_between)
    p99, bare_p99 = quantile(delays, 0.99), quantile(bare_delays, 0.99)
    return [
        Figure(
            f"of {size.streams} open streams at 10 chunks/s complete, every byte right",
            len(seen),
            "streams",
            size.streams,
            at_least=True,
            beside=f"{len(delays)} chunks over {size.stream_chunks / 10:.0f} s",
        ),
        Figure(
            "CPU of the server for a chunk, all streams open",
            server_s / in_window * 1e6,
            "µs",
            90,
            beside=f"{in_window / (end - begin):.0f} chunks/s;"
            f" Postgres, not counted, {postgres_s / in_window * 1e6:.1f} µs",
        ),
        Figure(
            "p99 delay of a chunk beyond that of the bare streams",
            ms(p99 - bare_p99),
            "ms",
            50,
            beside=f"p99 {ms(p99):.1f} ms (between start and end of the streams"
            f" {ms(quantile(delays_between, 0.99)):.1f}), bare {ms(bare_p99):.1f} ms;"
            f" median {ms(statistics.median(delays)):.1f} ms",
        ),
        Figure(
            "memory of a stream",
            memory_bytes / size.streams / 1000,
            "kB",
            150,
            beside=f"resident {memory_before / _MEBIBYTE:.0f} MiB before",
        ),
    ]


async def burst(stage: Stage, size: Size) -> list[Figure]:
    """Streams of 500 chunks, all at once and as fast as they go."""
    count = size.burst_streams
    async with open_scene(stage, "words-500") as scene:
        clients = await scene.connect(count)
        requests = await scene.streamed_runs(clients, count)
        began, before = time.monotonic(), scene.server.cpu_s()
        with scene.server.in_profile():
            answers = await share_out(clients, requests)
        took_s = time.monotonic() - began
        server_s, postgres_s = difference(scene.server.cpu_s(), before)
    text = upstream.words(500)
    if any(streamed_text(answer) != text for answer in answers):
        raise Refused("A stream of the burst is not what the upstream sent.")
    chunks = count * 500
    return [
        Figure(
            f"CPU of the server for a chunk, a burst of {count} streams of 500 chunks",
            server_s / chunks * 1e6,
            "µs",
            20,
            beside=f"with start and end of the runs; {took_s:.2f} s,"
            f" {statistics.mean(len(answer.pieces) for answer in answers):.0f} pieces a stream,"
            f" Postgres {postgres_s / chunks * 1e6:.1f} µs",
        )
    ]


# --- the process ---


async def idle(stage: Stage, size: Size) -> list[Figure]:
    """A server that was started and left alone, on an embedded Postgres that exists already."""
    started: list[float] = []
    folder = stage.folder / "embedded"
    for turn in range(size.starts + 1):
        began = time.monotonic()
        async with stage.server(embedded=folder) as server:
            [client] = await connections_to(server.address, 1)
            await client.send(request("GET", "/v1/assistants"))
            if turn > 0:  # the first one made the database
                started.append(time.monotonic() - began)
            client.close()
            if turn == size.starts:
                await asyncio.sleep(2)
                resident = processes.resident_bytes(server.pid)
                proportional = processes.proportional_bytes(server.pid)
                before = processes.cpu_s(server.pid)
                await asyncio.sleep(2)
                idle_s = (processes.cpu_s(server.pid) - before) / 2
    return [
        Figure(
            "memory of an idle `serve`, without Postgres",
            resident / _MEBIBYTE,
            "MiB",
            150,
            beside=f"resident; proportional {proportional / _MEBIBYTE:.0f} MiB;"
            f" with Postgres it takes {ms(idle_s):.1f} ms of CPU a second",
        ),
        Figure(
            "from the command to the first answer, the database being there",
            statistics.median(started),
            "s",
        ),
    ]


SCENES: dict[str, Callable[[Stage, Size], Awaitable[list[Figure]]]] = {
    "run": run,
    "cpu": cpu,
    "rate": rate,
    "calls": calls,
    "streams": streams,
    "burst": burst,
    "long": long,
    "polled": polled,
    "idle": idle,
}


# --- what they share ---


class Scene:
    """A server with an assistant of the model that is asked for."""

    def __init__(self, server: Server, assistant: str) -> None:
        self.server = server
        self._assistant = assistant

    async def connect(self, count: int) -> list[Connection]:
        return await connections_to(self.server.address, count)

    async def thread(self, client: Connection) -> str:
        made = await client.send(
            request("POST", "/v1/threads", {"messages": [_message(text) for text in _QUESTIONS]})
        )
        return str(made.json["id"])

    async def long_thread(self, client: Connection, count: int) -> str:
        filling = random.Random(7)
        made = await client.send(request("POST", "/v1/threads", {}))
        thread = str(made.json["id"])
        for number in range(count):
            words = " ".join(f"{filling.choice(_VOCABULARY)}" for _ in range(36))
            message = _message(f"{number}: {words}", "user" if number % 2 == 0 else "assistant")
            await client.send(request("POST", f"/v1/threads/{thread}/messages", message))
        return thread

    def run(self, thread: str) -> bytes:
        return request("POST", f"/v1/threads/{thread}/runs", {"assistant_id": self._assistant})

    def streamed_run(self, thread: str) -> bytes:
        wanted = {"assistant_id": self._assistant, "stream": True}
        return request("POST", f"/v1/threads/{thread}/runs", wanted)

    async def streamed_runs(self, clients: list[Connection], count: int) -> list[bytes]:
        """As many requests, each on a new thread."""
        new = request("POST", "/v1/threads", {"messages": [_message(text) for text in _QUESTIONS]})
        made = await share_out(clients, [new] * count)
        return [self.streamed_run(str(answer.json["id"])) for answer in made]


_VOCABULARY = [
    "loom",
    "warp",
    "weft",
    "shuttle",
    "thread",
    "spindle",
    "cloth",
    "bobbin",
    "heddle",
    "reed",
    "yarn",
    "mill",
]


@asynccontextmanager
async def open_scene(
    stage: Stage, model: str, settings: Mapping[str, object] | None = None
) -> AsyncIterator[Scene]:
    async with stage.server(settings=settings) as server:
        yield await warmed(server, model)


async def warmed(server: Server, model: str) -> Scene:
    [client] = await connections_to(server.address, 1)
    assistants = [
        await client.send(
            request("POST", "/v1/assistants", {"model": name, "instructions": _INSTRUCTIONS})
        )
        for name in (TEN_WORDS, model)
    ]
    warm, scene = (Scene(server, str(answer.json["id"])) for answer in assistants)
    for _ in range(_WARM_UP_RUNS):
        check_words(await client.send(warm.streamed_run(await warm.thread(client))))
    client.close()
    return scene


async def connections_to(address: str, count: int) -> list[Connection]:
    return [await Connection.open(address) for _ in range(count)]


def close_all(connections: list[Connection]) -> None:
    for connection in connections:
        connection.close()


async def share_out(clients: list[Connection], requests: list[bytes]) -> list[Answer]:
    """Every client sends the next request when its last one was answered; answers in the order of
    the requests."""
    answers: dict[int, Answer] = {}
    numbers = itertools.count()

    async def send(client: Connection) -> None:
        while (number := next(numbers)) < len(requests):
            answers[number] = await client.send(requests[number])

    await asyncio.gather(*(send(client) for client in clients))
    return [answers[number] for number in range(len(requests))]


async def send_after(delay_s: float, client: Connection, sent: bytes) -> Answer:
    await asyncio.sleep(delay_s)
    return await client.send(sent)


async def _bare_delays(stage: Stage, size: Size) -> list[float]:
    """How late chunks are when the same client reads as many streams from the upstream itself."""
    chunks = max(size.stream_chunks // 3, 10)
    clients = await connections_to(stage.upstream, size.streams)
    call = _bare_call(f"stamps-{chunks}-every-100ms")
    answers = await asyncio.gather(
        *(
            send_after(at * size.ramp_s / 2 / size.streams, client, call)
            for at, client in enumerate(clients)
        )
    )
    close_all(clients)
    return [
        came - went
        for answer in answers
        for came, went in zip(arrivals(answer, b'"delta":{"content":"'), _sent(answer), strict=True)
    ]


def _sent(answer: Answer) -> list[float]:
    """The times of sending in a bare answer of the kind `stamps`."""
    pieces = answer.body.split(b'"delta":{"content":"')[1:]
    text = b"".join(piece.partition(b'"}')[0] for piece in pieces)
    return upstream.read_stamps(text.decode().replace("\\n", "\n"))[1]


def arrivals(answer: Answer, marker: bytes) -> list[float]:
    """When each marker came in: the time of the piece in which it ends."""
    times: list[float] = []
    rest = b""
    for arrived_at, piece in answer.pieces:
        rest += piece
        found = rest.count(marker)
        times += [arrived_at] * found
        rest = rest[rest.rfind(marker) + len(marker) :] if found else rest[-len(marker) :]
    return times


async def until_ended(client: Connection, thread: str, run_id: str) -> None:
    while True:
        answer = await client.send(request("GET", f"/v1/threads/{thread}/runs/{run_id}"))
        if answer.json["status"] == "completed":
            return
        await asyncio.sleep(0.02)


def _bare_call(model: str) -> bytes:
    """What the server asks the upstream for a run."""
    messages = [{"role": "system", "content": _INSTRUCTIONS}, *map(_message, _QUESTIONS)]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return request("POST", "/v1/chat/completions", {"model": model, "messages": messages} | options)


def _message(text: str, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": text}


def check_words(answer: Answer) -> None:
    if streamed_text(answer) != upstream.words(WORDS):
        raise Refused("A stream is not what the upstream sent.")


def _stage_cpu_s(stage: Stage) -> float:
    return time.process_time() + processes.cpu_s(stage.upstream_pid)


def difference(now: tuple[float, float], before: tuple[float, float]) -> tuple[float, float]:
    return now[0] - before[0], now[1] - before[1]


def _clients(count: int) -> str:
    return "one client" if count == 1 else f"{count} clients"


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def ms(seconds: float) -> float:
    return seconds * 1000
