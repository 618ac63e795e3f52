"""What the tests of runs share: the raw stream, a conversation, and waiting for a status."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import openai
from openai.types.beta.threads import Message, Run
from openai.types.beta.threads.runs import RunStep

Json = dict[str, Any]
PATIENCE_S = 30.0
_LOOK_EVERY_S = 0.02
ENDED = {"completed", "incomplete", "failed", "cancelled", "expired"}

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Event:
    def __init__(self, name: str, data: Any, seq: int | None) -> None:
        self.name = name
        self.data = data
        self.seq = seq  # None where the stream was cut short

    def __repr__(self) -> str:
        return f"{self.name} {self.data}"


class Stream:
    """The events of one response, each frame checked to the byte."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0
        self.events: list[Event] = []
        self._rest = b""

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._read()

    async def until(self, name: str) -> Event:
        async with asyncio.timeout(PATIENCE_S):
            async for event in self:
                if event.name == name:
                    return event
        raise AssertionError(f"the stream ended without {name}: {names(self.events)}")

    async def all(self) -> list[Event]:
        """Everything up to the end of the body, with what was read before."""
        async with asyncio.timeout(PATIENCE_S):
            async for _ in self:
                pass
        return self.events

    async def _read(self) -> AsyncIterator[Event]:
        while True:
            while b"\n" in self._rest and self._rest.startswith(b":"):
                _, _, self._rest = self._rest.partition(b"\n")
                self.comments += 1
            if b"\n\n" in self._rest:
                frame, _, self._rest = self._rest.partition(b"\n\n")
                event = _parsed(frame)
                self.events.append(event)
                yield event
                continue
            data = await self.response.content.readany()
            if not data:
                assert self._rest == b"", "the last frame was cut"
                return
            self._rest += data


def _parsed(frame: bytes) -> Event:
    *number, first, second = frame.split(b"\n")  # the data is on one line
    assert first.startswith(b"event: ")
    assert second.startswith(b"data: ")
    name, data = first[7:].decode(), second[6:].decode()
    assert len(number) == (name != "error")
    seq = int(number[0].removeprefix(b"id: ")) if number else None
    if name == "done":
        assert data == "[DONE]"
        return Event(name, data, seq)
    assert data == json.dumps(json.loads(data), separators=(",", ":"), ensure_ascii=False)
    return Event(name, json.loads(data), seq)


class Api:
    """Plain HTTP, for what the SDK hides."""

    def __init__(self, address: str, key: str = "any") -> None:
        self._address = address
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})

    async def __aenter__(self) -> "Api":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @asynccontextmanager
    async def stream(self, path: str, body: Json) -> AsyncIterator[Stream]:
        url = f"{self._address}/v1{path}"
        async with self._session.post(url, json={**body, "stream": True}) as response:
            assert response.status == 200, await response.text()
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            yield Stream(response)

    @asynccontextmanager
    async def follow(
        self, run: Json, after: int | None = None, *, headers: dict[str, str] | None = None
    ) -> AsyncIterator[Stream]:
        """The events of a run behind a number."""
        url = f"{self._address}/v1/threads/{run['thread_id']}/runs/{run['id']}/events"
        query = {} if after is None else {"after": str(after)}
        async with self._session.get(url, params=query, headers=headers) as response:
            assert response.status == 200, await response.text()
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            yield Stream(response)

    async def post(self, path: str, body: Json | None = None) -> tuple[int, Json]:
        async with self._session.post(f"{self._address}/v1{path}", json=body) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, Json]:
        async with self._session.get(f"{self._address}/v1{path}") as response:
            return response.status, await response.json()


class Conversation:
    """One thread with one assistant."""

    def __init__(self, client: openai.AsyncOpenAI, assistant_id: str, thread_id: str) -> None:
        self.client = client
        self.assistant_id = assistant_id
        self.thread_id = thread_id

    @classmethod
    async def begin(
        cls, client: openai.AsyncOpenAI, assistant_id: str, question: str = "Hi"
    ) -> "Conversation":
        thread = await client.beta.threads.create(messages=[{"role": "user", "content": question}])
        return cls(client, assistant_id, thread.id)

    @property
    def runs_path(self) -> str:
        return f"/threads/{self.thread_id}/runs"

    @property
    def body(self) -> Json:
        return {"assistant_id": self.assistant_id}

    async def say(self, text: Any, **more: Any) -> Message:
        return await self.client.beta.threads.messages.create(
            self.thread_id, role="user", content=text, **more
        )

    async def start(self, **more: Any) -> Run:
        return await self.client.beta.threads.runs.create(
            self.thread_id, assistant_id=self.assistant_id, **more
        )

    async def run(self, **more: Any) -> Run:
        """Start a run and wait until it stops."""
        return await self.stopped(await self.start(**more))

    async def look(self, run_id: str) -> Run:
        return await self.client.beta.threads.runs.retrieve(run_id, thread_id=self.thread_id)

    async def reaches(self, run: Run | str, *wanted: str) -> Run:
        run_id = run if isinstance(run, str) else run.id
        found = await self.look(run_id)
        async with asyncio.timeout(PATIENCE_S):
            while found.status not in wanted:
                assert found.status not in ENDED, f"{found.status}: {found.last_error}"
                await asyncio.sleep(_LOOK_EVERY_S)
                found = await self.look(run_id)
        return found

    async def stopped(self, run: Run | str) -> Run:
        """The run when it has ended or waits for the client."""
        return await self.reaches(run, *ENDED, "requires_action")

    async def answer(self, run: Run, *outputs: str) -> Run:
        """Submit outputs for the calls of the run, in their order."""
        return await self.client.beta.threads.runs.submit_tool_outputs(
            run.id, thread_id=self.thread_id, tool_outputs=outputs_for(run, *outputs)
        )

    async def cancel(self, run: Run | str) -> Run:
        run_id = run if isinstance(run, str) else run.id
        return await self.client.beta.threads.runs.cancel(run_id, thread_id=self.thread_id)

    async def runs(self) -> list[Run]:
        page = await self.client.beta.threads.runs.list(self.thread_id)
        return page.data

    async def messages(self) -> list[Message]:
        """Oldest first."""
        page = await self.client.beta.threads.messages.list(self.thread_id, order="asc", limit=100)
        return page.data

    async def steps(self, run: Run | str) -> list[RunStep]:
        """Oldest first."""
        run_id = run if isinstance(run, str) else run.id
        page = await self.client.beta.threads.runs.steps.list(
            run_id, thread_id=self.thread_id, order="asc", limit=100
        )
        return page.data

    async def texts(self) -> list[str]:
        return [text_of(message) for message in await self.messages()]


def outputs_for(run: Run, *outputs: str) -> list[Any]:
    assert run.required_action is not None
    calls = run.required_action.submit_tool_outputs.tool_calls
    return [
        {"tool_call_id": call.id, "output": output}
        for call, output in zip(calls, outputs or ["sunny"] * len(calls), strict=True)
    ]


def text_of(message: Message) -> str:
    return "".join(part.text.value for part in message.content if part.type == "text")


def names(events: list[Event]) -> list[str]:
    """Without the prefix that nearly all of them share."""
    return [event.name.removeprefix("thread.") for event in events]


async def eventually(holds: Callable[[], Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    """Look again until it holds: for what nothing tells us of."""
    async with asyncio.timeout(patience_s):
        while not await holds():  # noqa: ASYNC110 (the other side is a server)
            await asyncio.sleep(_LOOK_EVERY_S)


async def refused(call: Awaitable[Any]) -> str:
    """The message with which a request is refused as 400."""
    try:
        await call
    except openai.BadRequestError as refusal:
        body: Any = refusal.body
        assert body["type"] == "invalid_request_error"
        return str(body["message"])
    raise AssertionError("the request was not refused")
