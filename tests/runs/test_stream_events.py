"""The events of a streamed run, byte for byte: their order, and what is in them."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai.types.beta import Assistant

from conftest import Serve
from runs.scenes import BEGUN, NAMES, RESUMED, Scene, scene_of
from runs.wire import WEATHER, Api, Conversation, Event, eventually, names
from threadmill.app import Served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall


@pytest_asyncio.fixture
async def staged(
    request: pytest.FixtureRequest, serve: Serve, model: ScriptedModel
) -> AsyncIterator[tuple[Scene, Api, Conversation]]:
    scene = scene_of(request.param)
    model.reply(*scene.replies)
    async with (
        serve(**scene.settings) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0) as client,
        Api(server.address) as api,
    ):
        assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
        yield scene, api, await Conversation.begin(client, assistant.id)


@pytest.mark.parametrize("staged", NAMES, indirect=True)
async def test_events_come_in_the_originals_order(staged: tuple[Scene, Api, Conversation]) -> None:
    scene, api, talk = staged
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        if scene.meanwhile is not None:
            await stream.until(
                "thread.message.delta"
                if "message.delta" in scene.events
                else "thread.run.step.delta"
            )
            await scene.meanwhile(talk, run["id"])
        await stream.all()
    assert names(stream.events) == scene.events
    _check_shapes(stream.events)

    if scene.after_outputs is not None:
        waiting = await talk.look(run["id"])
        path = f"{talk.runs_path}/{run['id']}/submit_tool_outputs"
        assert waiting.required_action is not None
        calls = waiting.required_action.submit_tool_outputs.tool_calls
        outputs = [{"tool_call_id": call.id, "output": "sunny"} for call in calls]
        async with api.stream(path, {"tool_outputs": outputs}) as second:
            await second.all()
        assert names(second.events) == scene.after_outputs
        _check_shapes(second.events)

    ended = await talk.look(run["id"])
    assert ended.status == scene.status
    messages = [message for message in await talk.messages() if message.run_id == run["id"]]
    said = [part for part in messages[-1].content if part.type == "text"] if messages else []
    assert "".join(part.text.value for part in said) == (scene.text or "")
    assert bool(messages) == (scene.text is not None)


def _check_shapes(events: list[Event]) -> None:
    """What holds in every stream, read as the SDKs' helpers read it."""
    assert events[-1].name == "done"
    assert events[-2].name.startswith("thread.run.")
    opened: dict[str, list[Any]] = {}  # contents of messages as their deltas make them
    steps: dict[str, list[Any]] = {}
    is_open: str | None = None
    for event in events[:-1]:
        kind, data = event.name.removeprefix("thread."), event.data
        if kind == "message.created":
            assert is_open is None, "two messages are open"
            assert data["content"] == []
            assert data["status"] == "in_progress"
            step = [step for step in steps if step.startswith("step_")][-1]
            assert steps[step] == data["id"], "the step comes before its message"
            opened[data["id"]], is_open = [], data["id"]
        elif kind == "message.delta":
            assert set(data) == {"id", "object", "delta"}
            assert data["object"] == "thread.message.delta"
            assert data["id"] == is_open
            _add(opened[data["id"]], data["delta"]["content"])
        elif kind in ("message.completed", "message.incomplete"):
            assert data["content"] == opened[data["id"]], "the whole content, as it was said"
            assert data["status"] == kind.removeprefix("message.")
            is_open = None
        elif kind == "run.step.created":
            details = data["step_details"]
            assert data["status"] == "in_progress"
            assert data["usage"] is None
            is_message = details["type"] == "message_creation"
            steps[data["id"]] = details["message_creation"]["message_id"] if is_message else []
            assert is_message or details["tool_calls"] == []
        elif kind == "run.step.delta":
            assert set(data) == {"id", "object", "delta"}
            _add_calls(steps[data["id"]], data["delta"]["step_details"]["tool_calls"])
    assert is_open is None, "a message was left open"


def _add(content: list[Any], parts: list[Any]) -> None:
    [part] = parts
    kind = part["type"]
    if part["index"] == len(content):
        if kind == "text":
            assert part["text"]["annotations"] == [], "in the first delta"
            content.append({"type": "text", "text": dict(part["text"])})
        else:
            content.append({"type": "refusal", "refusal": part["refusal"]})
    elif kind == "text":
        assert set(part["text"]) == {"value"}, "no annotations in later deltas"
        content[part["index"]]["text"]["value"] += part["text"]["value"]
    else:
        content[part["index"]]["refusal"] += part["refusal"]


def _add_calls(calls: list[Any], parts: list[Any]) -> None:
    [part] = parts
    if part["index"] == len(calls):
        assert set(part) == {"index", "id", "type", "function"}
        assert part["function"] | {"name": ""} == {"name": "", "arguments": "", "output": None}
        assert part["function"]["name"]
        calls.append(part)
    else:
        assert set(part) == {"index", "type", "function"}, "id and name come once"
        assert set(part["function"]) == {"arguments"}


async def test_a_thread_made_with_the_run_is_told_of_first(
    api: Api, assistant: Assistant, model: ScriptedModel
) -> None:
    model.say("Hello", "!", " How are you?")
    body = {
        "assistant_id": assistant.id,
        "thread": {"messages": [{"role": "user", "content": "Hi"}]},
    }
    async with api.stream("/threads/runs", body) as stream:
        events = await stream.all()
    assert names(events) == ["created", *scene_of("text").events]
    thread, run = events[0].data, events[1].data
    assert thread["object"] == "thread"
    assert thread["id"] == run["thread_id"]
    _check_shapes(events)


async def test_the_objects_of_a_plain_run(
    api: Api, talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(
        Reply(
            text=["Hello", "!"],
            usage={
                "prompt_tokens": 20,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 16},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        )
    )
    async with api.stream(talk.runs_path, talk.body) as stream:
        events = await stream.all()
    by_name = {event.name.removeprefix("thread."): event.data for event in events}
    created, queued = by_name["run.created"], by_name["run.queued"]
    assert created == queued
    assert (created["status"], created["started_at"], created["usage"]) == ("queued", None, None)
    assert created["expires_at"] == created["created_at"] + 600
    running = by_name["run.in_progress"]
    assert running["status"] == "in_progress"
    assert running["started_at"] is not None
    message = by_name["message.created"]
    assert message == by_name["message.in_progress"]
    assert message["assistant_id"] == talk.assistant_id
    assert message["run_id"] == created["id"]
    assert by_name["run.step.created"] == by_name["run.step.in_progress"]
    whole = by_name["message.completed"]
    assert whole["content"] == [{"type": "text", "text": {"value": "Hello!", "annotations": []}}]
    assert whole["completed_at"] is not None
    usage = {
        "prompt_tokens": 20,
        "completion_tokens": 5,
        "total_tokens": 25,
        "prompt_token_details": {"cached_tokens": 16},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    step, run = by_name["run.step.completed"], by_name["run.completed"]
    assert step["usage"] == run["usage"] == usage
    assert (run["expires_at"], run["last_error"], run["required_action"]) == (None, None, None)
    assert run["completed_at"] is not None
    # What was told last is what is stored.
    assert (await api.get(f"{talk.runs_path}/{run['id']}"))[1] == run
    assert (await api.get(f"{talk.runs_path}/{run['id']}/steps/{step['id']}"))[1] == step
    path = f"/threads/{talk.thread_id}/messages/{whole['id']}"
    assert (await api.get(path))[1] == whole


async def test_the_objects_of_a_run_with_a_call(
    api: Api, talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(Reply(tool_calls=[ToolCall("get_weather", {"city": "Paris"}, id="call_a")]))
    model.say("Sunny.")
    async with api.stream(talk.runs_path, talk.body) as stream:
        waiting = (await stream.until("thread.run.requires_action")).data
        await stream.all()
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    assert waiting["required_action"] == {
        "type": "submit_tool_outputs",
        "submit_tool_outputs": {
            "tool_calls": [{"id": "call_a", "type": "function", "function": function}]
        },
    }
    assert waiting["usage"] is None
    _, stored = await api.get(f"{talk.runs_path}/{waiting['id']}")
    assert stored == waiting
    _, steps = await api.get(f"{talk.runs_path}/{waiting['id']}/steps")
    [open_step] = steps["data"]
    assert (open_step["status"], open_step["usage"]) == ("in_progress", None)
    assert open_step["step_details"]["tool_calls"][0]["function"] == function | {"output": None}

    path = f"{talk.runs_path}/{waiting['id']}/submit_tool_outputs"
    outputs = [{"tool_call_id": "call_a", "output": "22 degrees"}]
    async with api.stream(path, {"tool_outputs": outputs}) as second:
        events = await second.all()
    closed, queued, running = (event.data for event in events[:3])
    assert names(events[:3]) == RESUMED
    assert closed["id"] == open_step["id"]
    assert closed["step_details"]["tool_calls"][0]["function"]["output"] == "22 degrees"
    assert closed["usage"] is not None
    assert (queued["status"], queued["required_action"]) == ("queued", None)
    assert running["started_at"] is not None
    run = events[-2].data
    _, steps = await api.get(f"{talk.runs_path}/{run['id']}/steps?order=asc")
    used = [step["usage"]["total_tokens"] for step in steps["data"]]
    assert sum(used) == run["usage"]["total_tokens"]


async def test_comments_keep_a_silent_stream_alive(serve: Serve, model: ScriptedModel) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    async with (
        serve(stream_keep_alive_s=0.05) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1") as client,
        Api(server.address) as api,
    ):
        assistant = await client.beta.assistants.create(model="scripted")
        talk = await Conversation.begin(client, assistant.id)
        async with api.stream(talk.runs_path, talk.body) as stream:
            reading = asyncio.create_task(stream.all())

            async def are_there() -> bool:
                return stream.comments >= 3

            await eventually(are_there)
            gate.set()
            assert names(await reading)[-2:] == ["run.completed", "done"]


async def test_the_sdk_reads_past_comments(serve: Serve, model: ScriptedModel) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    async with (
        serve(stream_keep_alive_s=0.05) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1") as client,
        Api(server.address) as api,
    ):
        assistant = await client.beta.assistants.create(model="scripted")
        talk = await Conversation.begin(client, assistant.id)
        said = await client.beta.threads.runs.create(
            talk.thread_id, assistant_id=assistant.id, stream=True
        )
        created = await anext(said)
        assert created.event == "thread.run.created"
        # Where another that is as silent has comments, the SDK's has them, too.
        async with api.follow(created.data.to_dict()) as follower:
            reading = asyncio.create_task(follower.all())

            async def are_there() -> bool:
                return follower.comments >= 3

            await eventually(are_there)
            gate.set()
            assert [event.event async for event in said][-1] == "thread.run.completed"
            await reading


async def test_text_after_a_call_makes_a_message_of_its_own(
    api: Api, talk: Conversation, model: ScriptedModel
) -> None:
    """Some models speak when they have called."""
    model.reply(Reply(raw=[*_chunks(_CALL, {"content": "I am "}, {"content": "asking."})]))
    async with api.stream(talk.runs_path, talk.body) as stream:
        events = await stream.all()
    assert names(events) == [
        *BEGUN,
        "run.step.created",
        "run.step.in_progress",
        "run.step.delta",
        "run.step.delta",
        "run.step.created",
        "run.step.in_progress",
        "message.created",
        "message.in_progress",
        "message.delta",
        "message.delta",
        "message.completed",
        "run.step.completed",
        "run.requires_action",
        "done",
    ]


_CALL = {
    "tool_calls": [
        {"index": 0, "id": "call_a", "function": {"name": "get_weather", "arguments": "{}"}}
    ]
}


def _chunks(*deltas: Any) -> list[bytes]:
    bodies = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    bodies.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    return [b"data: %b\n\n" % json.dumps(body).encode() for body in bodies] + [b"data: [DONE]\n\n"]


async def test_faults_before_the_stream_are_plain_errors(
    api: Api, talk: Conversation, model: ScriptedModel
) -> None:
    status, body = await api.post(talk.runs_path, {"assistant_id": "asst_missing", "stream": True})
    assert status == 404
    assert body["error"]["message"] == "No assistant found with id 'asst_missing'."
    assert model.requests == []


async def test_a_client_that_hangs_up_does_not_stop_the_run(
    server: Served, api: Api, talk: Conversation, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        await stream.until("thread.message.delta")
        stream.response.close()

    async def is_forgotten() -> bool:
        return server.worker.events._listeners == {}

    await eventually(is_forgotten)
    gate.set()
    assert (await talk.stopped(run["id"])).status == "completed"
    assert await talk.texts() == ["Hi", "Hello"]
    assert model.disconnects == 0


async def test_a_client_that_does_not_read_loses_only_its_stream(
    serve: Serve, model: ScriptedModel
) -> None:
    gate = Gate()
    piece = "x" * 100_000
    model.reply(Reply(text=["Hel", gate, *[piece] * 200]))
    async with (
        serve(stream_backlog_max_bytes=200_000) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1") as client,
        Api(server.address) as api,
    ):
        assistant = await client.beta.assistants.create(model="scripted")
        talk = await Conversation.begin(client, assistant.id)
        async with api.stream(talk.runs_path, talk.body) as stream:
            run = (await stream.until("thread.run.created")).data
            await stream.until("thread.message.delta")
            gate.set()
            assert (await talk.stopped(run["id"])).status == "completed"
            assert (await talk.texts())[1] == "Hel" + piece * 200
            assert names(await stream.all())[-1] == "error"
