"""The SDK's own stream helpers, sync and async, read every kind of stream to its end."""

import asyncio
from typing import Any

import openai
import pytest
from openai import AssistantEventHandler, AsyncAssistantEventHandler
from openai.types.beta.threads import Message, Run
from openai.types.beta.threads.runs import RunStep, ToolCall

from conftest import Serve
from runs.scenes import NAMES, Scene, scene_of
from runs.wire import WEATHER, Conversation, outputs_for, text_of
from threadmill.demo.scripted_model import Reply, ScriptedModel
from threadmill.demo.scripted_model import ToolCall as Call


class Told:
    """What a handler was called with."""

    def __init__(self) -> None:
        self.text = ""
        self.called: list[str] = []
        self.messages: list[Message] = []
        self.steps: list[RunStep] = []
        self.exceptions: list[Exception] = []


class AsyncHandler(AsyncAssistantEventHandler):
    def __init__(self, heard: asyncio.Event, run_ids: list[str]) -> None:
        super().__init__()
        self.told = Told()
        self._heard = heard
        self._run_ids = run_ids

    async def on_event(self, event: Any) -> None:
        if event.event == "thread.run.created":
            self._run_ids.append(event.data.id)
        if event.event.endswith(".delta"):
            self._heard.set()

    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.told.text += delta.value
        assert snapshot.value.endswith(delta.value)

    async def on_tool_call_created(self, tool_call: ToolCall) -> None:
        self.told.called.append(tool_call.id)

    async def on_message_done(self, message: Message) -> None:
        self.told.messages.append(message)

    async def on_run_step_done(self, run_step: RunStep) -> None:
        self.told.steps.append(run_step)

    async def on_exception(self, exception: Exception) -> None:
        self.told.exceptions.append(exception)


class SyncHandler(AssistantEventHandler):
    """The same, called in a thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, heard: asyncio.Event, run_ids: list[str]
    ) -> None:
        super().__init__()
        self.told = Told()
        self._loop = loop
        self._heard = heard
        self._run_ids = run_ids

    def on_event(self, event: Any) -> None:
        if event.event == "thread.run.created":
            self._run_ids.append(event.data.id)
        if event.event.endswith(".delta"):
            self._loop.call_soon_threadsafe(self._heard.set)

    def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.told.text += delta.value
        assert snapshot.value.endswith(delta.value)

    def on_tool_call_created(self, tool_call: ToolCall) -> None:
        self.told.called.append(tool_call.id)

    def on_message_done(self, message: Message) -> None:
        self.told.messages.append(message)

    def on_run_step_done(self, run_step: RunStep) -> None:
        self.told.steps.append(run_step)

    def on_exception(self, exception: Exception) -> None:
        self.told.exceptions.append(exception)


Seen = tuple[Told, Run, list[Message], list[RunStep]]


class AsyncReader:
    def __init__(self, talk: Conversation, address: str) -> None:
        self._talk = talk
        self.heard = asyncio.Event()
        self.run_ids: list[str] = []

    async def create(self) -> Seen:
        runs = self._talk.client.beta.threads.runs
        handler = AsyncHandler(self.heard, self.run_ids)
        async with runs.stream(
            thread_id=self._talk.thread_id,
            assistant_id=self._talk.assistant_id,
            event_handler=handler,
        ) as stream:
            return await self._read(stream)

    async def submit(self, run: Run) -> Seen:
        runs = self._talk.client.beta.threads.runs
        handler = AsyncHandler(self.heard, self.run_ids)
        async with runs.submit_tool_outputs_stream(
            run_id=run.id,
            thread_id=self._talk.thread_id,
            tool_outputs=outputs_for(run),
            event_handler=handler,
        ) as stream:
            return await self._read(stream)

    async def _read(self, stream: AsyncHandler) -> Seen:
        await stream.until_done()
        messages: list[Message] = []
        if stream.told.messages:  # the helper asserts that there is one
            messages = await stream.get_final_messages()
        steps = await stream.get_final_run_steps() if stream.told.steps else []
        return stream.told, await stream.get_final_run(), messages, steps


class SyncReader:
    def __init__(self, talk: Conversation, address: str) -> None:
        self._talk = talk
        self._address = address
        self.heard = asyncio.Event()
        self.run_ids: list[str] = []
        self._loop = asyncio.get_running_loop()

    async def create(self) -> Seen:
        return await asyncio.to_thread(self._create)

    async def submit(self, run: Run) -> Seen:
        return await asyncio.to_thread(self._submit, run)

    def _create(self) -> Seen:
        handler = SyncHandler(self._loop, self.heard, self.run_ids)
        with (
            self._client() as client,
            client.beta.threads.runs.stream(
                thread_id=self._talk.thread_id,
                assistant_id=self._talk.assistant_id,
                event_handler=handler,
            ) as stream,
        ):
            return self._read(stream)

    def _submit(self, run: Run) -> Seen:
        handler = SyncHandler(self._loop, self.heard, self.run_ids)
        with (
            self._client() as client,
            client.beta.threads.runs.submit_tool_outputs_stream(
                run_id=run.id,
                thread_id=self._talk.thread_id,
                tool_outputs=outputs_for(run),
                event_handler=handler,
            ) as stream,
        ):
            return self._read(stream)

    def _read(self, stream: SyncHandler) -> Seen:
        stream.until_done()
        messages = stream.get_final_messages() if stream.told.messages else []
        steps = stream.get_final_run_steps() if stream.told.steps else []
        return stream.told, stream.get_final_run(), messages, steps

    def _client(self) -> openai.OpenAI:
        return openai.OpenAI(api_key="any", base_url=f"{self._address}/v1", max_retries=0)


@pytest.mark.parametrize("name", NAMES)
async def test_the_helpers_read_every_stream(name: str, serve: Serve, model: ScriptedModel) -> None:
    scene = scene_of(name)
    model.reply(*scene.replies, *scene_of(name).replies)
    async with (
        serve(**scene.settings) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0) as client,
    ):
        assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
        for reader in (AsyncReader, SyncReader):
            talk = await Conversation.begin(client, assistant.id)
            await _read(scene, talk, reader(talk, server.address))


async def _read(scene: Scene, talk: Conversation, reader: AsyncReader | SyncReader) -> None:
    reading = asyncio.create_task(reader.create())
    if scene.meanwhile is not None:
        async with asyncio.timeout(30):
            await reader.heard.wait()
        await scene.meanwhile(talk, reader.run_ids[0])
    told, run, messages, steps = await reading
    _check(told, messages, steps)
    if scene.after_outputs is not None:
        assert run.status == "requires_action"
        assert run.required_action is not None
        calls = run.required_action.submit_tool_outputs.tool_calls
        assert told.called == [call.id for call in calls]
        told, run, messages, steps = await reader.submit(run)
        _check(told, messages, steps)
    assert run.status == scene.status
    assert told.text == (scene.text or "")
    assert [message.id for message in messages] == [
        message.id for message in (await talk.messages())[-len(messages) :] if messages
    ]
    assert {step.id for step in steps} <= {step.id for step in await talk.steps(run)}


def _check(told: Told, messages: list[Message], steps: list[RunStep]) -> None:
    assert told.exceptions == []
    assert "".join(map(text_of, messages)) == told.text
    assert messages == told.messages
    assert all(message.status != "in_progress" for message in messages)


async def test_calls_are_one_whole_each_for_the_helper(
    talk: Conversation, model: ScriptedModel
) -> None:
    """A client that executes a function in `on_tool_call_done` gets it with all its arguments."""
    model.reply(
        Reply(tool_calls=[Call("get_weather", ['{"a"', ":1}"]), Call("get_weather", ["{", "}"])])
    )
    done: list[str] = []

    class Handler(AsyncAssistantEventHandler):
        async def on_tool_call_done(self, tool_call: Any) -> None:
            done.append(tool_call.function.arguments)

    async with talk.client.beta.threads.runs.stream(
        thread_id=talk.thread_id, assistant_id=talk.assistant_id, event_handler=Handler()
    ) as stream:
        await stream.until_done()
    assert done == ['{"a":1}', "{}"]
