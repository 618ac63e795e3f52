"""Postgres is stopped and started while clients are at work: some are refused, nothing that was
acknowledged is lost, and nobody has to do anything about it."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest_asyncio

from conftest import FAST, Serve
from runs.wire import Api, Conversation, eventually, names
from threadmill.app import Served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel
from threadmill.embedded_postgres import EmbeddedPostgres
from threadmill.store import migrate

HEADERS = {"Authorization": "Bearer any"}


class Outage:
    """A Postgres that can be taken away."""

    def __init__(self, folder: Path, postgres: EmbeddedPostgres) -> None:
        self.url = postgres.url
        self._folder = folder
        self._postgres: EmbeddedPostgres | None = postgres

    async def begin(self) -> None:
        assert self._postgres is not None
        postgres, self._postgres = self._postgres, None
        await postgres.stop()

    async def end(self) -> None:
        self._postgres = await EmbeddedPostgres.start(self._folder, settings=FAST)
        assert self._postgres.url == self.url

    async def close(self) -> None:
        if self._postgres is not None:
            await self._postgres.stop()


@pytest_asyncio.fixture
async def outage() -> AsyncIterator[Outage]:
    folder = Path(tempfile.mkdtemp())  # the path of a socket must be short
    outage = Outage(folder, await EmbeddedPostgres.start(folder, settings=FAST))
    await asyncio.to_thread(migrate.upgrade, outage.url)
    yield outage
    await outage.close()
    shutil.rmtree(folder)


@pytest_asyncio.fixture
async def away(serve: Serve, outage: Outage) -> AsyncIterator[Served]:
    async with serve(database_url=outage.url, run_lease_s=2) as server:
        yield server


class Client:
    """Writes messages and runs into threads of its own, and keeps what was acknowledged."""

    def __init__(self, session: aiohttp.ClientSession, assistant_id: str) -> None:
        self.messages: dict[str, list[str]] = {}
        self.runs: dict[str, str] = {}
        self.refusals: list[tuple[int, str | None]] = []
        self._session = session
        self._assistant_id = assistant_id

    async def work(self, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            thread = await self._post("/v1/threads", {})
            if thread is None:
                continue
            kept = self.messages[thread["id"]] = []
            path = f"/v1/threads/{thread['id']}"
            for text in ("one", "two"):
                sent = {"role": "user", "content": text}
                if message := await self._post(f"{path}/messages", sent):
                    kept.append(message["id"])
            if kept and (
                run := await self._post(f"{path}/runs", {"assistant_id": self._assistant_id})
            ):
                self.runs[run["id"]] = thread["id"]

    async def _post(self, path: str, body: Any) -> Any:
        async with self._session.post(path, json=body) as response:
            if response.status == 200:
                return await response.json()
            self.refusals.append((response.status, response.headers.get("x-should-retry")))
            await asyncio.sleep(0.02)
            return None


async def test_nothing_acknowledged_is_lost_and_all_goes_on(
    away: Served, outage: Outage, model: ScriptedModel
) -> None:
    model.answer = lambda body: Reply(text=["Hel", "lo"], delay_s=0.05)
    is_over = asyncio.Event()
    async with (
        openai.AsyncOpenAI(api_key="any", base_url=f"{away.address}/v1", max_retries=0) as sdk,
        aiohttp.ClientSession(away.address, headers=HEADERS) as session,
    ):
        assistant = await sdk.beta.assistants.create(model="scripted")
        clients = [Client(session, assistant.id) for _ in range(4)]
        working = [asyncio.create_task(client.work(is_over)) for client in clients]
        for count in (5, 10):
            await model.received(count)
            await outage.begin()
            before = len(model.requests)
            await outage.end()
            await model.received(before + 5)  # new runs are executed, without being asked
        is_over.set()
        await asyncio.gather(*working)
        refusals = [refusal for client in clients for refusal in client.refusals]
        assert {status for status, _ in refusals} <= {500, 503}
        assert all(should_retry in ("true", "false") for _, should_retry in refusals)
        assert refusals, "the outage was seen"
        for client in clients:
            for thread_id, kept in client.messages.items():
                page = await sdk.beta.threads.messages.list(thread_id, limit=100, order="asc")
                listed = [message.id for message in page.data]
                assert [one for one in listed if one in kept] == kept
            for run_id, thread_id in client.runs.items():
                talk = Conversation(sdk, assistant.id, thread_id)
                ended = await talk.stopped(run_id)
                assert ended.status == "completed", ended.last_error
                answers = [one for one in await talk.messages() if one.run_id == run_id]
                assert [one.status for one in answers][-1] == "completed"
        assert sum(len(client.runs) for client in clients) > 5


async def test_streams_and_followers_go_through_an_outage(
    away: Served, outage: Outage, model: ScriptedModel
) -> None:
    """Pieces of text need no database; what is to be written waits until it is there again."""
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    async with (
        openai.AsyncOpenAI(api_key="any", base_url=f"{away.address}/v1", max_retries=0) as sdk,
        Api(away.address) as api,
    ):
        assistant = await sdk.beta.assistants.create(model="scripted")
        talk = await Conversation.begin(sdk, assistant.id)
        async with api.stream(talk.runs_path, talk.body) as stream:
            run = (await stream.until("thread.run.created")).data
            await stream.until("thread.message.delta")
            async with api.follow(run) as followed:
                await followed.until("thread.message.delta")
                await outage.begin()
                gate.set()
                await stream.until("thread.message.delta")
                await outage.end()
                whole, followed_whole = await asyncio.gather(stream.all(), followed.all())
        assert names(whole)[-2:] == ["run.completed", "done"]
        assert names(followed_whole) == names(whole)
        assert [event.seq for event in followed_whole] == [event.seq for event in whole]

        async def hints_arrive() -> bool:
            return away.worker._hints.listening.is_set()

        await eventually(hints_arrive)
