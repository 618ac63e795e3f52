"""Fills a server with what its pages are to show: by the public API, as clients would, and then
moved into the past."""

import asyncio
import json
import random
import struct
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from threadmill.app import Served
from threadmill.demo import clock, company, documents
from threadmill.demo.client import client_of, events
from threadmill.demo.company import AssistantPlan, Conversation
from threadmill.demo.stand_in import Exchange, StandIn
from threadmill.lifecycle import RunStatus
from threadmill.store import backdate, projects, runs
from threadmill.store.projects import DEFAULT_PROJECT_ID

Json = dict[str, Any]

_DAY_S = 86_400.0
_LOOK_EVERY_S = 0.05
_ANSWER_WITHIN_S = 600
_PAUSES_S = (25.0, 240.0)  # between an answer and the next question
_SEED = 20  # the same month each time

_SMALL_CHUNKS: Json = {
    "type": "static",
    "static": {"max_chunk_size_tokens": 160, "chunk_overlap_tokens": 40},
}


class Filling:
    def __init__(self, server: Served, model: StandIn, *, has_sandbox: bool) -> None:
        self._server = server
        self._database = server.runtime.database
        self._model = model
        self._has_sandbox = has_sandbox
        self._clients: dict[str, aiohttp.ClientSession] = {}
        self._assistants: dict[str, str] = {}
        self._stores: dict[str, str] = {}
        self._chance = random.Random(_SEED)
        self._now = time.time()

    async def make_key(self, name: str) -> str:
        """For whoever looks at the pages."""
        async with self._database.connection() as connection:
            project = await projects.get(connection, DEFAULT_PROJECT_ID)
            return (await projects.create_key(connection, project, name))[1]

    @asynccontextmanager
    async def clients(self) -> AsyncIterator[None]:
        """The programs of the company, each with a key of its own."""
        async with self._database.connection() as connection:
            project = await projects.get(connection, DEFAULT_PROJECT_ID)
            for days_ago, name in enumerate((*company.KEYS, company.OLD_KEY), 30):
                row, key = await projects.create_key(connection, project, name)
                await backdate.move_key(connection, row.id, self._ago(days_ago))
                if name == company.OLD_KEY:
                    await projects.revoke_key(connection, row.id)
                else:
                    self._clients[name] = client_of(
                        self._server.address, key, within_s=_ANSWER_WITHIN_S
                    )
        try:
            yield
        finally:
            for client in self._clients.values():
                await client.close()

    async def fill(self) -> None:
        """Everything but the run that goes on."""
        pace_s, self._model.pace_s = self._model.pace_s, 0.0
        try:
            await self._make_stores()
            for plan in company.ASSISTANTS:
                await self._make_assistant(plan)
            for conversation in company.CONVERSATIONS:
                await self._hold(conversation)
        finally:
            self._model.pace_s = pace_s
        async with self._database.connection() as connection:
            await backdate.count_usage_again(connection, DEFAULT_PROJECT_ID)

    async def keep_one_going(self) -> None:
        """A run that goes on while somebody looks, until it is cancelled."""
        conversation = company.LIVE
        client = self._clients[conversation.key]
        while True:
            thread = await self._begin(client, conversation)
            for exchange in conversation.exchanges:
                await self._ask(client, conversation, thread, exchange)

    # --- what the assistants know ---

    async def _make_stores(self) -> None:
        markdown = {
            "returns.md": documents.RETURNS,
            "shipping.md": documents.SHIPPING,
            "warranty.md": documents.WARRANTY,
            "sizes.md": documents.SIZES,
        }
        help_centre = {name: text.encode() for name, text in markdown.items()}
        manuals = {
            "workshop.pdf": documents.workshop_pdf(),
            "scan of the old manual.pdf": documents.scanned_pdf(),
        }
        playbook = {"how we write.docx": documents.staff_docx()}
        for name, days_ago, files, more in (
            (company.HELP_CENTRE, 30, help_centre, {"metadata": {"owner": "support"}}),
            (company.MANUALS, 28, manuals, {"metadata": {"owner": "workshop"}}),
            (company.PLAYBOOK, 12, playbook,
             {"expires_after": {"anchor": "last_active_at", "days": 30}}),
        ):  # fmt: skip
            await self._make_store(name, days_ago, files, more)

    async def _make_store(
        self, name: str, days_ago: float, files: Mapping[str, bytes], more: Json
    ) -> None:
        client = self._clients[company.BACK_OFFICE]
        store = await _post(client, "vector_stores", {"name": name} | more)
        self._stores[name] = store["id"]
        file_ids = []
        for at, (filename, content) in enumerate(files.items()):
            file_ids.append(await self._upload(filename, content))
            attributes = {"language": "en", "year": 2024 + at % 3, "kind": filename[-4:].strip(".")}
            body = {"file_id": file_ids[-1], "attributes": attributes}
            path = f"vector_stores/{store['id']}/files"
            await _post(client, path, body | {"chunking_strategy": _SMALL_CHUNKS})
        await _settled(client, f"vector_stores/{store['id']}", "in_progress")
        async with self._database.connection() as connection:
            await backdate.move_files(connection, file_ids, self._ago(days_ago))
            await backdate.move_store(
                connection, store["id"], created_at=self._ago(days_ago), active_at=self._now
            )

    async def _upload(self, filename: str, content: bytes, purpose: str = "assistants") -> str:
        form = aiohttp.FormData({"purpose": purpose}, quote_fields=False)
        form.add_field("file", content, filename=filename)
        async with self._clients[company.BACK_OFFICE].post("files", data=form) as response:
            return str((await response.json())["id"])

    async def _make_assistant(self, plan: AssistantPlan) -> None:
        client = self._clients[company.BACK_OFFICE]
        first, *changes = plan.versions
        body: Json = {"name": plan.name, **first}
        if plan.stores:
            ids = [self._stores[name] for name in plan.stores]
            body["tool_resources"] = {"file_search": {"vector_store_ids": ids}}
        assistant = await _post(client, "assistants", body)
        self._assistants[plan.name] = assistant["id"]
        for change in changes:
            await _post(client, f"assistants/{assistant['id']}", change)
        async with self._database.connection() as connection:
            saved_at = [self._ago(days) for days in plan.days_ago]
            await backdate.move_assistant(connection, assistant["id"], saved_at)

    # --- what was said ---

    async def _hold(self, conversation: Conversation) -> None:
        client = self._clients[conversation.key]
        began_at = now = self._ago(conversation.days_ago)
        thread = await self._begin(client, conversation)
        for exchange in conversation.exchanges:
            message, run = await self._ask(client, conversation, thread, exchange)
            if exchange.end is RunStatus.EXPIRED:
                await self._let_expire(run["thread_id"], run["id"])
            now = await self._move_into_past(run["id"], message, now)
        async with self._database.connection() as connection:
            await backdate.move_thread(connection, thread, created_at=began_at, active_at=now)

    async def _begin(self, client: aiohttp.ClientSession, conversation: Conversation) -> str:
        thread = await _post(client, "threads", {"metadata": dict(conversation.metadata)})
        return str(thread["id"])

    async def _ask(
        self,
        client: aiohttp.ClientSession,
        conversation: Conversation,
        thread: str,
        exchange: Exchange,
    ) -> tuple[str, Json]:
        """The ids of the question, and the run as it was last heard of."""
        body: Json = {"role": "user", "content": exchange.question}
        if exchange is conversation.exchanges[0] and conversation.attached:
            body["attachments"] = [
                {
                    "file_id": await self._upload(name, text.encode()),
                    "tools": [{"type": "code_interpreter"}],
                }
                for name, text in conversation.attached.items()
            ]
        message = await _post(client, f"threads/{thread}/messages", body)
        path = f"threads/{thread}/runs"
        started = {"assistant_id": self._assistants[conversation.assistant], "stream": True}
        run = await _listen(client, path, started | dict(exchange.options), exchange.end)
        waits = (RunStatus.REQUIRES_ACTION, RunStatus.EXPIRED)
        while run["status"] == RunStatus.REQUIRES_ACTION and not (
            exchange.end in waits and not _outputs(run, exchange)
        ):
            path = f"threads/{thread}/runs/{run['id']}/submit_tool_outputs"
            outputs = {"tool_outputs": _outputs(run, exchange), "stream": True}
            run = await _listen(client, path, outputs, exchange.end)
        if exchange.question == company.CHART_QUESTION and not self._has_sandbox:
            await self._put_chart(client, thread)
        return message["id"], run

    async def _put_chart(self, client: aiohttp.ClientSession, thread: str) -> None:
        """What the code would have drawn, where there is nothing to run it in."""
        picture = await self._upload("chart.png", drawn(company.WEEKS), "vision")
        content = [
            {"type": "image_file", "image_file": {"file_id": picture}},
            {"type": "text", "text": "(Put here by the demo: there is no engine to run code in.)"},
        ]
        path = f"threads/{thread}/messages"
        await _post(client, path, {"role": "assistant", "content": content})

    async def _move_into_past(self, run_id: str, message_id: str, now: float) -> float:
        """When the next question comes."""
        async with self._database.connection() as connection:
            steps = await runs.steps_of(connection, run_id)
            kinds = {
                call_id: given["name"]
                for step in steps
                for call_id, given in (step.given or {}).items()
            }
            records = await backdate.records(connection, run_id)
            turned, ended_at = clock.told_again(records, kinds, now, self._chance)
            await backdate.move_message(connection, message_id, now)
            await backdate.move_run(
                connection, run_id, created_at=now, ended_at=ended_at, turns=turned
            )
        return ended_at + self._chance.uniform(*_PAUSES_S)

    async def _let_expire(self, thread: str, run_id: str) -> None:
        async with self._database.connection() as connection:
            await backdate.let_expire(connection, run_id)
        path = f"threads/{thread}/runs/{run_id}"
        await _settled(self._clients[company.BACK_OFFICE], path, RunStatus.REQUIRES_ACTION)

    def _ago(self, days: float) -> float:
        return self._now - days * _DAY_S


async def _post(client: aiohttp.ClientSession, path: str, body: Json) -> Json:
    async with client.post(path, json=body) as response:
        created: Json = await response.json()
    return created


async def _settled(client: aiohttp.ClientSession, path: str, from_status: str) -> None:
    """Wait until the object has another status."""
    status = from_status
    while status == from_status:
        await asyncio.sleep(_LOOK_EVERY_S)
        async with client.get(path) as response:
            status = (await response.json())["status"]


async def _listen(client: aiohttp.ClientSession, path: str, body: Json, end: RunStatus) -> Json:
    """The run as the last event showed it; cancelled in its midst, if that is to be its end."""
    run: Json = {}
    async with client.post(path, json=body) as response:
        async for name, data in events(response):
            if data.get("object") == "thread.run":
                run = data
            is_midst = name == "thread.message.delta" and run["status"] == RunStatus.IN_PROGRESS
            if is_midst and end is RunStatus.CANCELLED:
                run = await _post(client, f"{path}/{run['id']}/cancel", {})
    return run


def _outputs(run: Json, exchange: Exchange) -> list[Json]:
    """What the client's functions return; nothing if it has none of that name."""
    outputs = []
    for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]:
        name = call["function"]["name"]
        if name not in exchange.outputs:
            return []
        output = json.dumps(exchange.outputs[name])
        outputs.append({"tool_call_id": call["id"], "output": output})
    return outputs


def drawn(values: list[int]) -> bytes:
    """A PNG of bars."""
    width, height, margin = 640, 320, 24
    bar = (width - 2 * margin) // len(values)
    rows = []
    for y in range(height):
        row = bytearray(b"\xff" * (3 * width))
        for at, value in enumerate(values):
            top = height - margin - value * (height - 2 * margin) // max(values)
            if top <= y < height - margin:
                left = margin + at * bar
                row[3 * left : 3 * (left + bar - 8)] = b"\x2f\x6f\x6a" * (bar - 8)
        rows.append(b"\0" + bytes(row))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
