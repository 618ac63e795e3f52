"""What clients do all day: each visit is a small story that knows how it has to end."""

import asyncio
import itertools
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import openai

from runs.coding import CODE, outputs_in
from runs.wire import WEATHER, Api, Conversation, Event, Json, eventually, names, text_of
from threadmill.demo.scripted_model import Reply, ToolCall

WORDS = [" one", " two", " three", " four"]
SLOW = "slow"  # words of questions, by which the model knows what it is to do
BUSY, DROPPED, CUT = "busy", "dropped", "cut"
CALLING, SEARCHING, COMPUTING = "calling", "searching", "computing"
SEARCH: Any = {"type": "file_search"}
RUN_EVENTS: Any = [
    f"thread.run.{how}" for how in ("completed", "incomplete", "failed", "cancelled", "expired")
]

_VISIT_MAX_S = 90.0  # a container may have to be waited for
_PAUSE_S = 0.02
_CODING_THREADS = 4
_CODING_VISITS = 12  # of one thread, which is deleted then
_MARKER = re.compile(r"【\d+:\d+†[^【】\n]*】")


def question(number: int, *words: str) -> str:
    return " ".join(["question", str(number), *words])


def answer(number: int, *outputs: str) -> str:
    return "".join([f"[{number}]", *WORDS, *outputs])


class Model:
    """Answers each question with its number, and has its moods: once for each question."""

    def __init__(self) -> None:
        self._moods: set[str] = set()

    def __call__(self, request: Json) -> Reply:
        asked = [one["content"] for one in request["messages"] if one["role"] == "user"][-1]
        _, number, *words = asked.split()
        if asked not in self._moods and {BUSY, DROPPED, CUT} & set(words):
            self._moods.add(asked)
            if BUSY in words:
                return Reply(status=429, headers={"retry-after": "0"})
            if DROPPED in words:
                return Reply(drop_before_headers=True)
            return Reply(text=[f"[{number}]", *WORDS], drop_after_chunks=2)
        said = outputs_in(request)
        if not said:
            if CALLING in words:
                return Reply(tool_calls=[ToolCall("get_weather", '{"city": "Paris"}')])
            if SEARCHING in words:
                return Reply(tool_calls=[ToolCall("file_search", {"queries": ["pizza"]})])
            if COMPUTING in words:
                code = {"code": f"print({number} * 2)"}
                return Reply(tool_calls=[ToolCall("code_interpreter", code)])
        markers = _MARKER.findall(said[-1])[:1] if SEARCHING in words else said
        text = [f"[{number}]", *WORDS, *(output.strip() for output in markers)]
        return Reply(text=text, delay_s=0.03 if SLOW in words else 0)


class _Lines:
    """Threads that code is run in: few, so that they are come back to."""

    def __init__(self) -> None:
        self.free: asyncio.Queue[tuple[str, int] | None] = asyncio.Queue()
        for _ in range(_CODING_THREADS):
            self.free.put_nowait(None)  # one that is yet to be made


@dataclass
class Clients:
    """`visits` says how often each story is told, compared with the others."""

    address: str
    has_sandbox: bool
    ended: dict[str, str] = field(default_factory=dict)  # run id: how
    told: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(7)
        self._numbers = itertools.count(1)
        self._lines = _Lines()
        self._assistants: dict[str, str] = {}
        self._store_id = ""
        self._visits: dict[Callable[[Api, int], Awaitable[None]], int] = {
            self._streamed: 6,
            self._polled: 5,
            self._calls: 4,
            self._searches: 3,
            self._cancels: 4,
            self._leaves: 4,
            self._comes_back: 4,
            self._meets_faults: 4,
            self._repeats: 3,
            self._passes_through: 2,
            self._brings_a_file: 1,
            **({self._computes: 2} if self.has_sandbox else {}),
        }

    async def prepare(self, receiver_address: str) -> None:
        async with self._new_client() as self.client:
            await self.client.webhooks.create(
                name="soak", url=receiver_address, event_types=RUN_EVENTS
            )
            await self._make_assistants()

    def _new_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key="any", base_url=f"{self.address}/v1", max_retries=0, timeout=_VISIT_MAX_S
        )

    async def _make_assistants(self) -> None:
        store = await self.client.vector_stores.create()
        await self.client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id,
            file=("foods.txt", b"Anna likes pizza with olives. Ben likes sushi."),
            poll_interval_ms=50,
        )
        self._store_id = store.id
        tools: dict[str, list[Any]] = {
            "": [],
            CALLING: [WEATHER],
            SEARCHING: [SEARCH],
            COMPUTING: [CODE],
        }
        for name, wanted in tools.items():
            made = await self.client.beta.assistants.create(
                model="scripted",
                tools=wanted,
                tool_resources={"file_search": {"vector_store_ids": [store.id]}}
                if name == SEARCHING
                else {},
            )
            self._assistants[name] = made.id

    async def visit(self, at_once: int, for_s: float) -> None:
        """So many clients, one story after the other, until the time is over."""
        until = asyncio.get_running_loop().time() + for_s
        async with self._new_client() as self.client, asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(self._one(until))

    async def compute(self) -> None:
        """In every thread that code is run in, if there is a sandbox."""
        async with self._new_client() as self.client, Api(self.address) as api:
            if self.has_sandbox:
                numbers = itertools.islice(self._numbers, _CODING_THREADS)
                await asyncio.gather(*(self._computes(api, number) for number in numbers))

    async def _one(self, until: float) -> None:
        while asyncio.get_running_loop().time() < until:
            [story] = self._random.choices(list(self._visits), list(self._visits.values()))
            number = next(self._numbers)
            try:
                # Each comes with connections of its own.
                async with asyncio.timeout(_VISIT_MAX_S), Api(self.address) as api:
                    await story(api, number)
            except BaseException as fault:
                fault.add_note(f"in {story.__name__}, question {number}")
                raise
            self.told[story.__name__.strip("_")] += 1
            await asyncio.sleep(_PAUSE_S)

    # --- the stories ---

    async def _streamed(self, api: Api, number: int) -> None:
        talk = await self._begin(question(number))
        for again in (number, -number):
            if again != number:
                await talk.say(question(again))
            async with api.stream(talk.runs_path, talk.body) as stream:
                events = [event async for event in stream]
            assert _text(events) == answer(again)
            self._ends(events, "completed")
        await self._close(
            talk, question(number), answer(number), question(-number), answer(-number)
        )

    async def _polled(self, api: Api, number: int) -> None:
        talk = await self._begin(question(number))
        await self._ended(talk, (await talk.start()).id, "completed")
        await self._close(talk, question(number), answer(number))

    async def _calls(self, api: Api, number: int) -> None:
        """A function, the output of which is given to another stream, or polled for."""
        talk = await self._begin(question(number, CALLING), CALLING)
        async with api.stream(talk.runs_path, talk.body) as stream:
            events = [event async for event in stream]
        run = events[-2].data
        [call] = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        outputs = {"tool_outputs": [{"tool_call_id": call["id"], "output": f" sun {number}"}]}
        path = f"{talk.runs_path}/{run['id']}/submit_tool_outputs"
        if number % 2:
            async with api.stream(path, outputs) as stream:
                self._ends([event async for event in stream], "completed")
        else:
            assert (await api.post(path, outputs))[0] == 200
            await self._ended(talk, run["id"], "completed")
        await self._close(talk, question(number, CALLING), answer(number, f"sun {number}"))

    async def _searches(self, api: Api, number: int) -> None:
        talk = await self._begin(question(number, SEARCHING), SEARCHING)
        async with api.stream(talk.runs_path, talk.body) as stream:
            events = [event async for event in stream]
        self._ends(events, "completed")
        messages = await talk.messages()
        said, found = text_of(messages[-1]), messages[-1].content[0]
        assert said.startswith(answer(number))
        assert found.type == "text"
        assert [one.type for one in found.text.annotations] == ["file_citation"]
        await self._close(talk, question(number, SEARCHING), said)

    async def _computes(self, api: Api, number: int) -> None:
        line = await self._lines.free.get()
        thread_id, visits = line or ((await self.client.beta.threads.create()).id, 0)
        talk = Conversation(self.client, self._assistants[COMPUTING], thread_id)
        await talk.say(question(number, COMPUTING))
        async with api.stream(talk.runs_path, talk.body) as stream:
            events = [event async for event in stream]
        assert _text(events) == answer(number, str(2 * number))
        self._ends(events, "completed")
        if visits + 1 == _CODING_VISITS:
            await self.client.beta.threads.delete(thread_id)
            self._lines.free.put_nowait(None)
        else:
            self._lines.free.put_nowait((thread_id, visits + 1))

    async def _cancels(self, api: Api, number: int) -> None:
        """In the middle of the answer, which stays as far as it came."""
        talk = await self._begin(question(number, SLOW))
        async with api.stream(talk.runs_path, talk.body) as stream:
            run = (await _until(stream, "thread.message.delta"))[0].data
            with suppress(openai.BadRequestError):  # it was faster
                await talk.cancel(run["id"])
            async for _ in stream:
                pass
        self._ends(stream.events, "cancelled", "completed")
        said = await talk.texts()
        assert said[0] == question(number, SLOW)
        assert answer(number).startswith(said[1])
        await self._close(talk, *said)
        assert len(said) == 2

    async def _leaves(self, api: Api, number: int) -> None:
        """The run goes on without its client."""
        talk = await self._begin(question(number, SLOW))
        async with Api(self.address) as own, own.stream(talk.runs_path, talk.body) as stream:
            run = (await _until(stream, "thread.message.delta"))[0].data
        await self._ended(talk, run["id"], "completed")
        await self._close(talk, question(number, SLOW), answer(number))

    async def _comes_back(self, api: Api, number: int) -> None:
        """And reads on, at whatever process answers."""
        talk = await self._begin(question(number, SLOW))
        async with Api(self.address) as own, own.stream(talk.runs_path, talk.body) as stream:
            seen = list(await _until(stream, "thread.message.delta"))
        async with api.follow(seen[0].data, seen[-1].seq) as stream:
            events = seen + [event async for event in stream]
        assert _text(events) == answer(number)
        assert len({event.seq for event in events}) == len(events)
        self._ends(events, "completed")
        await self._close(talk, question(number, SLOW), answer(number))

    async def _meets_faults(self, api: Api, number: int) -> None:
        """Of the model endpoint: some are hidden, one ends the run."""
        how = self._random.choice([BUSY, DROPPED, CUT])
        talk = await self._begin(question(number, how))
        async with api.stream(talk.runs_path, talk.body) as stream:
            events = [event async for event in stream]
        self._ends(events, "failed" if how == CUT else "completed")
        said = f"[{number}]{WORDS[0]}" if how == CUT else answer(number)
        assert _text(events) == said
        await self._close(talk, question(number, how), said)

    async def _repeats(self, api: Api, number: int) -> None:
        """What is sent again under its key is not done again."""
        talk = await self._begin(question(number))
        key = {"Idempotency-Key": f"message {number}"}
        more = question(-number)
        first, second = [await talk.say(more, extra_headers=key) for _ in range(2)]
        assert first.id == second.id
        key = {"Idempotency-Key": f"run {number}"}
        run, same = [await talk.start(extra_headers=key) for _ in range(2)]
        assert run.id == same.id
        await self._ended(talk, run.id, "completed")
        assert [one.id for one in await talk.runs()] == [run.id]
        await self._close(talk, question(number), more, answer(-number))

    async def _passes_through(self, api: Api, number: int) -> None:
        """Not a run at all; every other client does not wait for the end."""
        stream = await self.client.chat.completions.create(
            model="scripted",
            messages=[{"role": "user", "content": question(number, SLOW)}],
            stream=True,
        )
        said = ""
        async for chunk in stream:
            said += chunk.choices[0].delta.content or "" if chunk.choices else ""
            if said and number % 2:
                break
        await stream.close()
        assert said == (f"[{number}]" if number % 2 else answer(number))

    async def _brings_a_file(self, api: Api, number: int) -> None:
        file = await self.client.files.create(
            file=(f"{number}.txt", f"File {number} is about olives.".encode() * 200),
            purpose="assistants",
        )
        put = await self.client.vector_stores.files.create_and_poll(
            file.id, vector_store_id=self._store_id, poll_interval_ms=100
        )
        assert put.status == "completed", put.last_error
        await self.client.vector_stores.files.delete(file.id, vector_store_id=self._store_id)
        await self.client.files.delete(file.id)

    # --- what they share ---

    async def _begin(self, asked: str, tool: str = "") -> Conversation:
        return await Conversation.begin(self.client, self._assistants[tool], asked)

    def _ends(self, events: list[Event], *expected: str) -> None:
        *_, last, done = events
        assert done.name == "done", names(events)
        assert last.name.removeprefix("thread.run.") in expected, names(events)
        self._note(last.data["id"], last.data["status"])

    async def _ended(self, talk: Conversation, run_id: str, expected: str) -> None:
        async def is_over() -> bool:
            status = (await talk.look(run_id)).status
            assert status in ("queued", "in_progress", expected), status
            return status == expected

        await eventually(is_over, _VISIT_MAX_S)
        self._note(run_id, expected)

    def _note(self, run_id: str, status: str) -> None:
        assert self.ended.setdefault(run_id, status) == status

    async def _close(self, talk: Conversation, *expected: str) -> None:
        """All that was said is there, once and in order; half of the threads are deleted then."""
        page = self.client.beta.threads.messages.list(talk.thread_id, limit=1, order="asc")
        assert [text_of(message) async for message in page] == list(expected)
        if self._random.random() < 0.5:
            await self.client.beta.threads.delete(talk.thread_id)


def _text(events: list[Event]) -> str:
    return "".join(
        event.data["delta"]["content"][0]["text"]["value"]
        for event in events
        if event.name == "thread.message.delta"
    )


async def _until(stream: Any, name: str) -> list[Event]:
    async for event in stream:
        if event.name == name:
            return list(stream.events)
    raise AssertionError(f"the stream ended without {name}: {names(stream.events)}")
