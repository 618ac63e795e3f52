"""What open pages are told: by how many looks, in what order, and until when."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from starlette.types import Message

from conftest import Serve
from dashboard.conftest import COOKIE, Desk
from threadmill.api.deps import Keys
from threadmill.app import Served
from threadmill.dashboard.live import Live, LiveStream, Shown
from threadmill.dashboard.session import Viewer
from threadmill.errors import Unavailable
from threadmill.store import projects, sign_ins
from threadmill.store.database import Connection

PATIENCE_S = 30
HERE = Viewer(projects.DEFAULT_PROJECT_ID, key_hash=None)


class Clock:
    """A topic that has changed at every look, or only when told so."""

    def __init__(self) -> None:
        self.looks = 0
        self.shows = 0
        self.asked: list[list[str]] = []
        self.stands: int | None = None
        self.gone: set[str] = set()
        self.fault: Exception | None = None
        self._looked = asyncio.Condition()

    async def looked(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S), self._looked:
            await self._looked.wait_for(lambda: self.looks >= count)

    async def look(self, connection: Connection, subjects: list[str]) -> dict[str, int]:
        async with self._looked:
            self.looks += 1
            self._looked.notify_all()
        self.asked.append(subjects)
        if self.fault is not None:
            raise self.fault
        seen = self.looks if self.stands is None else self.stands
        return {subject: seen for subject in subjects if subject not in self.gone}

    async def show(self, subject: str, seen: int) -> Shown:
        self.shows += 1
        parts = {"time": f"<p id=time>{seen}</p>", "name": f"<p id=name>{subject}\r\n</p>"}
        return Shown(parts, is_over=seen < 0)


class Reader:
    """A browser at the other end."""

    def __init__(self, stream: LiveStream) -> None:
        self.frames: list[str] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._heard = asyncio.Condition()
        self._left = asyncio.Event()
        self.reading = asyncio.create_task(stream({"type": "http"}, self._receive, self._send))

    async def _receive(self) -> Message:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await self.may_read.wait()
        if message["type"] == "http.response.body":
            async with self._heard:
                self.frames.append(message["body"].decode())
                self._heard.notify_all()

    async def heard(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S), self._heard:
            await self._heard.wait_for(lambda: len(self.frames) >= count)

    async def leave(self) -> None:
        self._left.set()
        await self.ended()

    async def ended(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self.reading


@pytest_asyncio.fixture
async def live(server: Served) -> AsyncIterator[Live]:
    yield _live(server)


def _live(server: Served, **options: Any) -> Live:
    return Live(server.runtime, Keys(server.runtime.settings, server.runtime.database), **options)


@asynccontextmanager
async def following(live: Live, topic: Clock, *subjects: str) -> AsyncIterator[list[Reader]]:
    readers = [Reader(live.follow(HERE, topic, subject)) for subject in subjects]
    try:
        yield readers
    finally:
        for reader in readers:
            await reader.leave()


async def test_fifty_pages_are_one_look_a_second(live: Live) -> None:
    clock = Clock()
    async with following(live, clock, *["proj_a"] * 30, *["proj_b"] * 20) as readers:
        for reader in readers:
            await reader.heard(3)
        # Whoever followed from the beginning got a frame by each look: there were no others.
        assert max(len(reader.frames) for reader in readers) <= clock.looks
        assert clock.looks <= 1 + min(len(reader.frames) for reader in readers)
        assert clock.shows <= 2 * clock.looks
        assert sorted(clock.asked[-1]) == ["proj_a", "proj_b"]
        assert all(">proj_b" in reader.frames[0] for reader in readers[30:])
        assert all(">proj_a" not in "".join(reader.frames) for reader in readers[30:])


async def test_nobody_looks_when_nobody_follows(live: Live) -> None:
    clock = Clock()
    async with following(live, clock, "proj_a") as [reader]:
        await reader.heard(2)
    looks = clock.looks
    other = Clock()
    async with following(live, other, "proj_a") as [reader]:
        await reader.heard(4)  # three seconds later
    assert clock.looks <= looks + 1
    async with following(live, clock, "proj_a") as [reader]:  # and it is begun anew
        await reader.heard(2)


async def test_what_has_not_changed_is_not_sent(live: Live) -> None:
    clock = Clock()
    async with following(live, clock, "proj_a") as [reader]:
        await reader.heard(2)
        assert "id=name" in reader.frames[0]
        assert "id=name" not in reader.frames[1]
        clock.stands = 77
        await reader.heard(3)
        while "77" not in reader.frames[-1]:
            await reader.heard(len(reader.frames) + 1)
        looks, frames = clock.looks, len(reader.frames)
        await clock.looked(looks + 3)
        assert len(reader.frames) == frames
        async with following(live, clock, "proj_a") as [late]:  # and is told how things stand
            await late.heard(1)
            assert "77" in late.frames[0]
            assert "id=name" in late.frames[0]


async def test_a_frame_is_an_event_whatever_is_in_it(live: Live) -> None:
    async with following(live, Clock(), "proj_a\n\ndata: x") as [reader]:
        await reader.heard(1)
    [event, rest] = reader.frames[0].split("\n\n", 1)
    assert rest == ""
    assert all(line.startswith("data: ") for line in event.split("\n"))
    assert '<hx-partial hx-target="#time" hx-swap="outerMorph"><p id=time>1</p>' in event


async def test_a_slow_reader_gets_the_newest_of_each_part(live: Live) -> None:
    clock = Clock()
    async with following(live, clock, "proj_a", "proj_a") as [slow, quick]:
        await slow.heard(1)
        slow.may_read.clear()
        await quick.heard(5)
        newest = clock.looks
        slow.may_read.set()
        await slow.heard(4)
        # One was held in its hand, one was waiting.
        numbers = [int(frame.split("id=time>")[1].split("<")[0]) for frame in slow.frames]
        assert numbers[2] >= newest - 1


async def test_what_is_over_or_gone_is_told_and_not_followed_again(live: Live) -> None:
    clock = Clock()
    over = "event: over\ndata: over\n\n"
    async with following(live, clock, "run_a", "run_b") as [gone, stays]:
        await stays.heard(1)
        clock.gone = {"run_a"}
        await gone.ended()
        assert gone.frames[-1] == over
        await stays.heard(len(stays.frames) + 1)
        clock.stands = -1
        await stays.ended()
        assert stays.frames[-1] == over
        assert ">-1<" in stays.frames[-2]


async def test_a_fault_ends_the_streams_and_the_next_ones_begin(live: Live) -> None:
    clock = Clock()
    async with following(live, clock, "proj_a") as [reader]:
        await reader.heard(1)
        clock.fault = ValueError("a fault of ours")
        await reader.ended()
        assert reader.frames[-1] == ""  # it may come back
        clock.fault = None
        async with following(live, clock, "proj_a") as [again]:
            await again.heard(2)


async def test_a_stream_ends_with_its_sign_in(server: Served) -> None:
    database = server.runtime.database
    live = _live(server, sign_ins_looked_at_every_s=0)
    async with database.connection() as connection:
        project = await projects.get(connection, projects.DEFAULT_PROJECT_ID)
        row, key = await projects.create_key(connection, project, "one")
        hashed = projects.key_hash(key)
        tokens = [await sign_ins.create(connection, hashed, project.id) for _ in range(2)]
        found = [await sign_ins.find(connection, token, []) for token in tokens]
    viewers = [Viewer(project.id, hashed, one.token_hash) for one in found if one]
    clock = Clock()
    [first, second] = [Reader(live.follow(viewer, clock, project.id)) for viewer in viewers]
    await first.heard(3)
    await second.heard(3)
    async with database.connection() as connection:
        await sign_ins.remove(connection, tokens[0])
    await first.ended()
    assert "You are signed out." in first.frames[-2]
    assert first.frames[-1].startswith("event: over")
    await second.heard(len(second.frames) + 2)
    async with database.connection() as connection:
        await projects.revoke_key(connection, row.id)
    await second.ended()
    assert "You are signed out." in second.frames[-2]
    # And without a sign-in once one is needed.
    nobody = Reader(_live(server, sign_ins_looked_at_every_s=0).follow(HERE, clock, project.id))
    await nobody.ended()


async def test_an_open_page_does_not_make_a_sign_in_last(server: Served) -> None:
    async with server.runtime.database.connection() as connection:
        project = await projects.get(connection, projects.DEFAULT_PROJECT_ID)
        _, key = await projects.create_key(connection, project, "one")
        token = await sign_ins.create(connection, projects.key_hash(key), project.id)
        found = await sign_ins.find(connection, token, [])
        assert found is not None
        await connection.execute("UPDATE sign_ins SET used_at = used_at - 1000")
        lasting = await sign_ins.lasting(connection, [found.token_hash], [])
        assert lasting == {found.token_hash}
        cursor = await connection.execute("SELECT used_at FROM sign_ins")
        assert await cursor.fetchall() == [(found.used_at - 1000,)]


async def test_streams_end_with_the_server_and_none_begins_then(serve: Serve) -> None:
    async with aiohttp.ClientSession() as session:
        async with serve(drain_timeout_s=PATIENCE_S) as server:
            live = _live(server)
            answer = await session.get(f"{server.address}/ui/live")
            assert answer.content_type == "text/event-stream"
            assert b"hx-partial" in await answer.content.readuntil(b"\n\n")
            stopped_at = asyncio.get_running_loop().time()
        await answer.content.read()
        assert asyncio.get_running_loop().time() - stopped_at < PATIENCE_S
    with pytest.raises(Unavailable, match="shutting down"):
        live.follow(HERE, Clock(), "proj_a")


async def test_the_database_is_asked_for_fifty_overviews_as_for_one(desk: Desk) -> None:
    """Counted by the database: how often it goes through the table of runs."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        answers: list[aiohttp.ClientResponse] = []
        scans_a_second: list[float] = []
        for number in (1, 50):
            while len(answers) < number:
                answers.append(
                    await session.get(
                        f"{desk.address}/ui/live", headers={"Cookie": f"{COOKIE}={desk.token}"}
                    )
                )
                assert answers[-1].status == 200
                await answers[-1].content.readuntil(b"\n\n")
            scans_a_second.append(await _scans_a_second(desk))
        for answer in answers:
            answer.close()
    for_one, for_fifty = scans_a_second
    assert for_fifty < 5 * for_one


async def _scans_a_second(desk: Desk) -> float:
    """Over so long that the database has counted several looks (it does so once a second)."""
    clock = asyncio.get_running_loop().time
    before, began = await _scans(desk), clock()
    scans = 0
    async with asyncio.timeout(2 * PATIENCE_S):
        while scans < 10 or clock() < began + 4:
            await asyncio.sleep(0.2)
            scans = await _scans(desk) - before
    return scans / (clock() - began)


async def _scans(desk: Desk) -> int:
    async with desk.database.connection() as connection:
        cursor = await connection.execute(
            "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'runs'"
        )
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])
