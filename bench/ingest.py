"""How fast documents get into a vector store, and what memory that takes of the server.

Through HTTP, into `threadmill serve` with a Postgres that writes to the disk for real, and with an
embedder that answers at once: what is measured is reading, counting of tokens, chunking, and
writing. Timed is from the request that attaches a file until it is `completed`; the upload is not.

    python -m bench.ingest [--quick]
"""

import argparse
import asyncio
import contextlib
import io
import itertools
import os
import pydoc_data.topics
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import uvloop
from reportlab.pdfgen import canvas  # type: ignore[import-untyped]

from bench import processes, table
from bench.client import Refused
from bench.figures import Figure
from bench.stage import Server, Stage, open_stage

_MEGABYTE = 1000**2
_MEBIBYTE = 1024**2
_EMBEDDER: dict[str, object] = {"embedding_model": "bench"}
# So that nothing but the time ends the reading of the large file.
_NO_LIMITS: dict[str, object] = {"file_max_tokens": 10**9, "parse_output_max_bytes": 4 * 1024**3}
_RARE_WORDS = 30_000
_RARE_SHARE = 0.05
_LINES_OF_PAGE = 50
_WORDS_OF_LINE = 14
_LOOKS = 100  # at the status, within the limit
_LET_GO_S = 5


@dataclass
class _Amounts:
    starts: int
    turns: int
    text_megabytes: int
    pages: int
    large_mebibytes: int
    large_s: float


_FULL = _Amounts(starts=3, turns=5, text_megabytes=20, pages=200, large_mebibytes=512, large_s=60)
_QUICK = _Amounts(starts=1, turns=2, text_megabytes=4, pages=40, large_mebibytes=64, large_s=10)


async def ingest(stage: Stage, amounts: _Amounts) -> list[Figure]:
    words = _Words()
    figures = await _times(stage, amounts, words)
    waited = stage.waited_share
    memory = await _memory(stage, amounts, words)
    return [
        *(replace(figure, waited_share=waited) for figure in figures),
        replace(memory, waited_share=stage.waited_share),
    ]


async def _times(stage: Stage, amounts: _Amounts, words: "_Words") -> list[Figure]:
    megabyte = words.text(_MEGABYTE)
    firsts = []
    for _ in range(amounts.starts):
        async with _library(stage) as library:
            firsts.append(await library.ingest("first.txt", megabyte, limit_s=2))
    async with _library(stage) as library:
        await library.ingest("first.txt", megabyte, limit_s=2)
        small = [
            await library.ingest(f"small{turn}.txt", megabyte, limit_s=2)
            for turn in range(amounts.turns)
        ]
        text_limit_s = 2.0 * amounts.text_megabytes
        large_text = words.text(amounts.text_megabytes * _MEGABYTE)
        text = await library.ingest("large.txt", large_text, text_limit_s)
        pdf, pages_limit_s = words.pdf(amounts.pages), amounts.pages / 40
        pages = [
            await library.ingest(f"pages{turn}.pdf", pdf, pages_limit_s)
            for turn in range(amounts.turns)
        ]
    return [
        Figure(
            "1 MB of text",
            statistics.median(one.took_s for one in small),
            "s",
            2,
            beside=f"{small[0].chunks:,} chunks; {_mean_cost(small)}",
        ),
        Figure(
            "1 MB of text, the reader not being there yet",
            statistics.median(one.took_s for one in firsts),
            "s",
            2,
            beside=f"the first file of a server, or after a minute without; {_mean_cost(firsts)}",
        ),
        Figure(
            f"{amounts.text_megabytes} MB of text",
            text.took_s,
            "s",
            text_limit_s,
            beside=f"{text.chunks:,} chunks, {text.chunks / text.took_s:.0f}/s;"
            f" {_mean_cost([text])}",
        ),
        Figure(
            f"a PDF of {amounts.pages} pages with text",
            statistics.median(one.took_s for one in pages),
            "s",
            pages_limit_s,
            beside=f"{len(pdf) / _MEGABYTE:.1f} MB, {pages[0].chunks:,} chunks;"
            f" {_mean_cost(pages)}",
        ),
    ]


async def _memory(stage: Stage, amounts: _Amounts, words: "_Words") -> Figure:
    """Of the server process while it takes in a file that it is never given the time to end."""
    async with _library(stage, _NO_LIMITS) as library:
        pid = library.server.pid
        await asyncio.sleep(2)
        idle_bytes = processes.resident_bytes(pid)
        path = stage.folder / "large.txt"
        words.write(path, amounts.large_mebibytes * _MEBIBYTE)
        file_id = await library.upload_from(path)
        path.unlink()
        upload_bytes = processes.peak_bytes(pid) - idle_bytes
        processes.forget_peak(pid)
        store_id = await library.store()
        began = time.monotonic()
        await library.attach(store_id, file_id)
        reader_bytes = 0
        while time.monotonic() - began < amounts.large_s:
            reader_bytes = max(reader_bytes, library.reader_bytes())
            await asyncio.sleep(1)
        status = (await library.file(store_id, file_id))["status"]
        chunks, read_bytes = library.progress(file_id)
        await library.detach(store_id, file_id)
        await asyncio.sleep(_LET_GO_S)
        peak_bytes = processes.peak_bytes(pid)
        after_bytes = processes.resident_bytes(pid)
        if status not in ("in_progress", "completed"):
            raise Refused(f"The file of {amounts.large_mebibytes} MiB is {status}.")
    return Figure(
        f"memory while a text of {amounts.large_mebibytes} MiB goes in, above idle",
        (peak_bytes - idle_bytes) / _MEGABYTE,
        "MB",
        400,
        beside=f"idle {idle_bytes / _MEGABYTE:.0f}, {_LET_GO_S} s after"
        f" {(after_bytes - idle_bytes) / _MEGABYTE:.0f} above, the upload before at most"
        f" {upload_bytes / _MEGABYTE:.0f} above; the reader's processes, not counted,"
        f" {reader_bytes / _MEGABYTE:.0f}; ended by removing the file after {amounts.large_s:g} s"
        f" at {chunks:,} chunks, some {read_bytes / _MEGABYTE:.0f} MB of the text",
    )


@dataclass
class _Ingested:
    took_s: float
    chunks: int
    reader_s: float  # of CPU, as what follows
    server_s: float
    postgres_s: float
    embedder_s: float


def _mean_cost(done: list[_Ingested]) -> str:
    reader, server, postgres, embedder = (
        statistics.mean(costs)
        for costs in zip(
            *((one.reader_s, one.server_s, one.postgres_s, one.embedder_s) for one in done),
            strict=True,
        )
    )
    return (
        f"CPU: reader {reader:.2f} s, server {server:.2f}, Postgres {postgres:.2f},"
        f" embedder {embedder:.2f}"
    )


class _Library:
    def __init__(self, stage: Stage, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._stage = stage
        self._session = session

    async def ingest(self, filename: str, content: bytes, limit_s: float) -> _Ingested:
        """Into a store of its own."""
        store_id, file_id = await self.store(), await self._upload(filename, io.BytesIO(content))
        before, began = self._clocks(), time.monotonic()
        await self.attach(store_id, file_id)
        file = await self._ended(store_id, file_id, limit_s / _LOOKS)
        took_s = time.monotonic() - began
        if file["status"] != "completed":
            raise Refused(f"{filename} is {file['status']}: {file['last_error']}")
        spent = [after - before for after, before in zip(self._clocks(), before, strict=True)]
        return _Ingested(took_s, self.progress(file_id)[0], *spent)

    async def upload_from(self, path: Path) -> str:
        with _opened(path) as file:
            return await self._upload(path.name, file)

    async def store(self) -> str:
        return str((await self._call("POST", "vector_stores", json={}))["id"])

    async def attach(self, store_id: str, file_id: str) -> None:
        await self._call("POST", f"vector_stores/{store_id}/files", json={"file_id": file_id})

    async def file(self, store_id: str, file_id: str) -> dict[str, Any]:
        return await self._call("GET", f"vector_stores/{store_id}/files/{file_id}")

    async def detach(self, store_id: str, file_id: str) -> None:
        await self._call("DELETE", f"vector_stores/{store_id}/files/{file_id}")

    def progress(self, file_id: str) -> tuple[int, int]:
        """Chunks that are written, and about as many bytes of text: by default each is in two."""
        with psycopg.connect(self._stage.database_url) as connection:
            found = connection.execute(
                "SELECT count(*), coalesce(sum(octet_length(text)), 0) / 2 FROM chunks"
                " WHERE file_id = %s",
                [file_id],
            ).fetchone()
        assert found is not None
        return int(found[0]), int(found[1])

    def reader_bytes(self) -> int:
        total = 0
        for pid in processes.descendants(self.server.pid):
            with contextlib.suppress(OSError, ValueError):  # it may just have ended
                total += processes.proportional_bytes(pid)
        return total

    async def _ended(self, store_id: str, file_id: str, look_every_s: float) -> dict[str, Any]:
        while True:
            file = await self.file(store_id, file_id)
            if file["status"] != "in_progress":
                return file
            await asyncio.sleep(look_every_s)

    def _clocks(self) -> tuple[float, float, float, float]:
        """CPU time of the reader, the server itself, Postgres and the embedder."""
        own_s, (server_s, postgres_s) = (
            processes.own_cpu_s(self.server.pid),
            self.server.cpu_s(),
        )
        return server_s - own_s, own_s, postgres_s, processes.cpu_s(self._stage.upstream_pid)

    async def _upload(self, filename: str, file: Any) -> str:
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", file, filename=filename)
        return str((await self._call("POST", "files", data=form))["id"])

    async def _call(self, method: str, path: str, **sent: Any) -> dict[str, Any]:
        async with self._session.request(method, f"/v1/{path}", **sent) as answer:
            if answer.status != 200:
                raise Refused(f"{answer.status}: {await answer.text()}")
            found: dict[str, Any] = await answer.json()
            return found


@asynccontextmanager
async def _library(
    stage: Stage, settings: dict[str, object] | None = None
) -> AsyncIterator[_Library]:
    async with stage.server(settings=_EMBEDDER | (settings or {})) as server:
        headers = {"Authorization": "Bearer bench", "OpenAI-Beta": "assistants=v2"}
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            server.address, headers=headers, timeout=timeout
        ) as session:
            yield _Library(stage, server, session)


class _Words:
    """English words, as frequent as they are in what Python says of itself, in random order, and
    rare ones that are invented: a text of many megabytes has more words than Python knows."""

    def __init__(self) -> None:
        said = " ".join(pydoc_data.topics.topics.values())
        counts = Counter(re.findall(r"(?<= )[a-z]{1,14}(?= )", said))
        self._random = random.Random(1)
        self._words = [*counts, *(self._invented() for _ in range(_RARE_WORDS))]
        rare = sum(counts.values()) * _RARE_SHARE / _RARE_WORDS
        each = [*counts.values(), *[rare] * _RARE_WORDS]
        self._weights = list(itertools.accumulate(each))

    def text(self, size_bytes: int) -> bytes:
        lines: list[str] = []
        length = 0
        while length < size_bytes:
            lines.append(self._line() + (".\n\n" if len(lines) % 6 == 5 else "\n"))
            length += len(lines[-1])
        return "".join(lines).encode()[:size_bytes]

    def write(self, path: Path, size_bytes: int) -> None:
        part = self.text(min(size_bytes, 16 * _MEBIBYTE))
        with path.open("wb") as file:
            for at in range(0, size_bytes, len(part)):
                file.write(part[: size_bytes - at])

    def pdf(self, pages: int) -> bytes:
        made = io.BytesIO()
        page = canvas.Canvas(made)
        for _ in range(pages):
            text = page.beginText(50, 780)
            for _ in range(_LINES_OF_PAGE):
                text.textLine(self._line())
            page.drawText(text)
            page.showPage()
        page.save()
        return made.getvalue()

    def _line(self) -> str:
        return " ".join(self._chosen())

    def _chosen(self) -> list[str]:
        return self._random.choices(self._words, cum_weights=self._weights, k=_WORDS_OF_LINE)

    def _invented(self) -> str:
        return "".join(
            self._random.choice("bdfklmnprstv") + self._random.choice("aeiou") for _ in range(4)
        )


def _opened(path: Path) -> io.BufferedReader:
    return path.open("rb")


async def _alone(amounts: _Amounts) -> list[Figure]:
    async with open_stage() as stage:
        return await ingest(stage, amounts)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ingest", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    amounts = _QUICK if parser.parse_args().quick else _FULL
    load = os.getloadavg()[0]
    figures = uvloop.run(_alone(amounts))
    print(f"{table.machine(load)}\n\n{table.rendered(figures)}")
    return int(any(figure.share is not None and figure.share > 1 for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
