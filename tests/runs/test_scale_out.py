"""Several real processes on one database: who is asked need not be who executes."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from processes import FAST, Launch, Process, launcher
from runs.scenes import BEGUN, COMPLETED, MESSAGE, RESUMED, WRITTEN
from runs.wire import WEATHER, Api, Conversation, Event, Json, eventually, names
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall

API_ONLY = {"THREADMILL_EXECUTOR": "false"}
CALL = ToolCall("get_weather", ['{"city"', ': "Paris"}'], id="call_a")


@pytest.fixture
async def launch(database_url: str, model: ScriptedModel, tmp_path: Path) -> AsyncIterator[Launch]:
    async with launcher(database_url, model, tmp_path) as launch:
        yield launch


async def _begin(client: openai.AsyncOpenAI, question: str = "Hi") -> Conversation:
    assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
    return await Conversation.begin(client, assistant.id, question)


def _without_deltas(events: list[Event]) -> list[str]:
    return [name for name in names(events) if not name.endswith(".delta")]


def _text(events: list[Event]) -> str:
    return "".join(
        event.data["delta"]["content"][0]["text"]["value"]
        for event in events
        if event.name == "thread.message.delta"
    )


async def test_what_a_worker_executes_is_streamed_by_who_was_asked(
    launch: Launch, model: ScriptedModel
) -> None:
    """All three ways to ask for a stream, event for event as where it is executed."""
    gate = Gate()
    model.reply(
        Reply(tool_calls=[CALL]),
        Reply(text=["Sun", gate, "ny"]),
        Reply(text=["Hel", "lo"]),
    )
    # One environment for both: a worker works all the same.
    asked, _ = await asyncio.gather(launch(**API_ONLY), launch("worker", **API_ONLY))
    talk = await _begin(asked.client)
    async with Api(asked.address) as api:
        async with api.stream(talk.runs_path, talk.body) as stream:
            calling = await stream.all()
        assert _without_deltas(calling) == [
            *BEGUN,
            "run.step.created",
            "run.step.in_progress",
            "run.requires_action",
            "done",
        ]
        run = calling[0].data
        outputs = {"tool_outputs": [{"tool_call_id": "call_a", "output": "sunny"}]}
        path = f"{talk.runs_path}/{run['id']}/submit_tool_outputs"
        async with api.stream(path, outputs) as stream:
            assert (await stream.until("thread.message.delta")).data["id"]
            gate.set()  # what was said before came without what is said now
            resumed = await stream.all()
        assert _without_deltas(resumed) == [*RESUMED, *MESSAGE, *WRITTEN, *COMPLETED]
        assert _text(resumed) == "Sunny"
        body = {
            "assistant_id": talk.assistant_id,
            "thread": {"messages": [{"role": "user", "content": "Hi"}]},
        }
        async with api.stream("/threads/runs", body) as stream:
            made = await stream.all()
        assert _without_deltas(made) == ["created", *BEGUN, *MESSAGE, *WRITTEN, *COMPLETED]
        assert _text(made) == "Hello"


async def test_a_follower_hears_the_end_though_the_executor_is_killed(
    launch: Launch, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Half", Gate()]), Reply(text=["Whole"]))
    asked, first = await asyncio.gather(launch(**API_ONLY, **FAST), launch("worker", **FAST))
    talk = await _begin(asked.client)
    async with Api(asked.address) as api, api.stream(talk.runs_path, talk.body) as stream:
        await stream.until("thread.message.delta")
        await launch("worker", **FAST)
        await first.dies()
        events = await stream.all()
    assert _without_deltas(events) == [
        *BEGUN,
        *MESSAGE,
        "message.incomplete",
        "run.step.failed",
        "run.in_progress",
        *MESSAGE,
        *WRITTEN,
        *COMPLETED,
    ]
    assert await talk.texts() == ["Hi", "Half", "Whole"]


async def test_a_stream_that_a_stopping_process_cuts_is_picked_up_at_another(
    launch: Launch, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Half", Gate()]), Reply(text=["Whole"]))
    first = await launch(THREADMILL_DRAIN_TIMEOUT_S="0.2")
    talk = await _begin(first.client)
    async with Api(first.address) as api, api.stream(talk.runs_path, talk.body) as stream:
        await stream.until("thread.message.delta")
        second = await launch()
        first.signal(signal.SIGTERM)
        cut = await stream.all()
    assert await first.ended() == 0
    assert names(cut)[-3:] == ["message.incomplete", "run.step.failed", "error"]
    async with Api(second.address) as api, api.follow(cut[0].data, cut[-2].seq) as stream:
        rest = await stream.all()
    assert _without_deltas(rest) == ["run.in_progress", *MESSAGE, *WRITTEN, *COMPLETED]
    assert await Conversation(second.client, talk.assistant_id, talk.thread_id).texts() == [
        "Hi",
        "Half",
        "Whole",
    ]


async def test_many_threads_at_once_over_three_processes_lose_double_and_mix_nothing(
    launch: Launch, model: ScriptedModel
) -> None:
    """Two behind one port, and one that has a port of its own."""

    def echo(body: Json) -> Reply:
        said = [one["content"] for one in body["messages"] if one["role"] == "user"]
        return Reply(text=[f"[{word}]" for word in said[-1].split()])

    model.answer = echo
    limits = {"THREADMILL_MAX_CONCURRENT_RUNS": "20"}  # so that many go elsewhere
    pair, single = await asyncio.gather(
        launch("serve", "--workers", "2", **limits), launch(**limits)
    )
    assistant = await single.client.beta.assistants.create(model="scripted")

    async def talk(api: Api, number: int) -> None:
        said = [f"thread {number} message {n}" for n in range(2)]
        _, thread = await api.post("/threads")
        path = f"/threads/{thread['id']}"
        for text in said:
            await api.post(f"{path}/messages", {"role": "user", "content": text})
            async with api.stream(f"{path}/runs", {"assistant_id": assistant.id}) as stream:
                events = await stream.all()
            assert names(events)[-2:] == ["run.completed", "done"], events[-2:]
            assert _text(events) == _echoed(text)
        _, listed = await api.get(f"{path}/messages?order=asc")
        texts = [message["content"][0]["text"]["value"] for message in listed["data"]]
        assert texts == [said[0], _echoed(said[0]), said[1], _echoed(said[1])]
        _, runs = await api.get(f"{path}/runs")
        assert [run["status"] for run in runs["data"]] == ["completed"] * 2

    async with Api(pair.address) as one, Api(single.address) as other:
        await asyncio.gather(*(talk([one, other][n % 2], n) for n in range(200)))
    assert len(model.requests) == 400, "no turn was taken twice"


def _echoed(text: str) -> str:
    return "".join(f"[{word}]" for word in text.split())


async def test_a_rolling_restart_fails_no_run(launch: Launch, model: ScriptedModel) -> None:
    """One process after the other is stopped while runs are streamed and polled."""
    model.answer = lambda body: Reply(text=["a", "b", "c", "d"], delay_s=0.1)
    patient = {"THREADMILL_DRAIN_TIMEOUT_S": "30"}
    serving = [await launch(**patient), await launch(**patient)]
    assistant = await serving[0].client.beta.assistants.create(model="scripted")
    is_over = asyncio.Event()
    asking: list[Process] = []  # of whom something is asked that has not begun yet
    ended: list[str] = []

    async def stream(number: int) -> None:
        while not is_over.is_set():
            at = serving[number % 2]
            asking.append(at)
            async with Api(at.address) as api:
                _, thread = await api.post("/threads", {"messages": [USER]})
                path = f"/threads/{thread['id']}/runs"
                async with api.stream(path, {"assistant_id": assistant.id}) as stream:
                    await stream.until("thread.run.created")
                    asking.remove(at)
                    events = await stream.all()
                assert _text(events) == "abcd"
                ended.append(names(events)[-2])

    streaming = [asyncio.create_task(stream(number)) for number in range(6)]
    for turn in range(2):
        old, serving[turn] = serving[turn], await launch(**patient)

        async def is_asked_no_more(old: Process = old) -> bool:
            return old not in asking  # as a balancer sees to

        await eventually(is_asked_no_more)
        talk = await Conversation.begin(old.client, assistant.id)
        run = await talk.start()
        old.signal(signal.SIGTERM)
        assert await old.ended() == 0
        polled = Conversation(serving[turn].client, assistant.id, talk.thread_id)
        ended.append("run." + (await polled.stopped(run)).status)
    is_over.set()
    await asyncio.gather(*streaming)
    assert set(ended) == {"run.completed"}
    assert len(ended) > 8


USER: Any = {"role": "user", "content": "Hi"}


async def test_children_share_a_port_and_are_started_again(
    launch: Launch, model: ScriptedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    parent = await launch("serve", "--workers", "2")
    await _has_children(parent, 2)
    first = psutil.Process(parent.pid).children()[0]
    first.kill()
    model.answer = lambda body: Reply(text="Hello")
    talk = await _begin(parent.client)  # the other one answers
    assert (await talk.run()).status == "completed"

    async def is_replaced() -> bool:
        children = psutil.Process(parent.pid).children()
        return len(children) == 2 and first not in children

    await eventually(is_replaced)
    parent.signal(signal.SIGTERM)
    assert await parent.ended() == 0
    assert "process_died" in capfd.readouterr().err


async def test_children_end_with_a_parent_that_is_killed(launch: Launch) -> None:
    parent = await launch("serve", "--workers", "2", THREADMILL_DRAIN_TIMEOUT_S="0")
    await _has_children(parent, 2)
    children = psutil.Process(parent.pid).children()
    await parent.kill()

    async def are_gone() -> bool:
        return not any(child.is_running() for child in children)

    await eventually(are_gone)


async def test_what_is_wrong_with_the_settings_is_said_once(
    launch: Launch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="serve did not start"):
        await launch("serve", "--workers", "3", THREADMILL_HOST="0.0.0.0")
    assert capfd.readouterr().err.count("The server would be open to everybody") == 1


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"THREADMILL_DATABASE_URL": ""}, "Nobody would execute runs"),
        ({"THREADMILL_EVENT_LOG_RETENTION_S": "0"}, "which is turned off"),
    ],
)
async def test_a_process_without_an_executor_needs_others(
    launch: Launch, environment: dict[str, str], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="serve did not start"):
        await launch("serve", "--no-executor", **environment)
    assert told in capfd.readouterr().err


async def _has_children(parent: Process, count: int) -> None:
    async def are_there() -> bool:
        return len(psutil.Process(parent.pid).children()) == count

    await eventually(are_there)
