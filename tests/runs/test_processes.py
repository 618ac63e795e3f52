"""Real processes on one database: killed, stopped, busy. Another one goes on."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai.types.beta.threads import Run

from processes import FAST, FOR_EVER, Launch, Process, launcher
from runs.wire import WEATHER, Api, Conversation, eventually, text_of
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.store.database import Database

CALL = ToolCall("get_weather", id="call_a")


@pytest.fixture
async def launch(database_url: str, model: ScriptedModel, tmp_path: Path) -> AsyncIterator[Launch]:
    async with launcher(database_url, model, tmp_path) as launch:
        yield launch


async def _begin(client: openai.AsyncOpenAI) -> Conversation:
    assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
    return await Conversation.begin(client, assistant.id)


def _through(process: Process, talk: Conversation) -> Conversation:
    return Conversation(process.client, talk.assistant_id, talk.thread_id)


async def _ends(talk: Conversation, run: Run | str) -> Run:
    """Through a process that may take its time until it takes the run over."""
    run_id = run if isinstance(run, str) else run.id
    ended: list[Run] = []

    async def has_ended() -> bool:
        found = await talk.look(run_id)
        ended[:] = [found]
        return found.completed_at is not None or found.last_error is not None

    await eventually(has_ended)
    return ended[0]


async def test_a_killed_process_is_replaced_in_the_middle_of_a_stream(
    launch: Launch, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Half", Gate()]), Reply(text=["Whole", "."]))
    first, second = await asyncio.gather(launch(**FAST), launch(**FAST))
    talk = await _begin(first.client)
    other = _through(second, talk)
    run = await talk.start()

    async def is_half_written() -> bool:
        return await other.texts() == ["Hi", "Half"]

    await eventually(is_half_written)
    await first.dies()
    ended = await _ends(other, run)
    assert ended.status == "completed"
    half, whole = (await other.messages())[1:]
    assert (half.status, text_of(half)) == ("incomplete", "Half")
    assert half.incomplete_details is not None
    assert half.incomplete_details.reason == "run_failed"
    assert (whole.status, text_of(whole)) == ("completed", "Whole.")
    assert [step.status for step in await other.steps(run)] == ["failed", "completed"]
    assert model.requests[0].body == model.requests[1].body  # half an answer is no history
    await other.say("The thread is free.")


async def test_with_default_settings_another_process_goes_on_within_15_s(
    launch: Launch, model: ScriptedModel
) -> None:
    """Two deaths at once, so that the wait for the lease is paid once: in the middle of the
    answer, and between the client's outputs and the model's next turn."""
    answering = Gate()

    def answer(body: dict[str, Any]) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "tool":
            return Reply(gate=answering, text=f"It is {last['content']}.")
        if last["content"] == "Weather?":
            return Reply(tool_calls=[CALL])
        return Reply(text=["Whole", answering, "."])

    model.answer = answer
    first = await launch()
    talk = await _begin(first.client)
    calling = await Conversation.begin(first.client, talk.assistant_id, "Weather?")
    waiting = await calling.run()
    await calling.answer(waiting, "sunny")
    run = await talk.start()
    await model.received(3)
    second = await launch()
    await first.kill()
    died = time.monotonic()
    await model.received(5)  # both are tried again
    assert time.monotonic() - died < 15
    answering.set()
    texts, asked = _through(second, talk), _through(second, calling)
    assert (await _ends(texts, run)).status == "completed"
    assert (await _ends(asked, waiting)).status == "completed"
    assert (await texts.texts())[-1] == "Whole."
    assert await asked.texts() == ["Weather?", "It is sunny."]  # not asked for again
    steps = [(step.type, step.status) for step in await asked.steps(waiting)]
    assert steps == [("tool_calls", "completed"), ("message_creation", "completed")]


async def test_what_waits_in_the_queue_of_a_killed_process_is_executed(
    launch: Launch, model: ScriptedModel
) -> None:
    model.answer = lambda body: (
        Reply(text=["Half", Gate()])
        if body["messages"][-1]["content"] == "Block"
        else Reply(text="Hello")
    )
    first = await launch(THREADMILL_MAX_CONCURRENT_RUNS="1", **FAST)
    talk = await _begin(first.client)
    blocking = await Conversation.begin(first.client, talk.assistant_id, "Block")
    streamed = await Conversation.begin(first.client, talk.assistant_id)
    await blocking.start()
    await model.received(1)
    queued = await talk.start()
    async with Api(first.address) as api, api.stream(streamed.runs_path, streamed.body) as stream:
        also_queued = (await stream.until("thread.run.queued")).data["id"]
        await first.dies()
    second = await launch(THREADMILL_MAX_CONCURRENT_RUNS="2", **FAST)
    for waiting, run_id in ((talk, queued.id), (streamed, also_queued)):
        ended = await _ends(_through(second, waiting), run_id)
        assert ended.status == "completed", ended.last_error


async def test_a_run_that_was_only_just_claimed_is_executed_by_another(
    launch: Launch, model: ScriptedModel
) -> None:
    """The model has not answered yet."""
    model.reply(Reply(gate=Gate()), Reply(text="Hello"))
    first, second = await asyncio.gather(launch(**FAST), launch(**FAST))
    talk = await _begin(first.client)
    run = await talk.start()
    await model.received(1)
    await first.dies()
    assert (await _ends(_through(second, talk), run)).status == "completed"
    assert await _through(second, talk).texts() == ["Hi", "Hello"]


async def test_a_run_that_waits_for_outputs_needs_no_process(
    launch: Launch, model: ScriptedModel
) -> None:
    model.reply(Reply(tool_calls=[CALL]), Reply(text="Sunny."))
    first, second = await asyncio.gather(launch(**FAST), launch(**FAST))
    talk = await _begin(first.client)
    waiting = await talk.run()
    await first.dies()
    other = _through(second, talk)
    assert (await other.stopped(await other.answer(waiting))).status == "completed"
    assert await other.texts() == ["Hi", "Sunny."]
    assert len(model.requests) == 2


async def test_what_was_committed_and_never_answered_is_done_all_the_same(
    launch: Launch, database: Database, model: ScriptedModel
) -> None:
    """The process dies when its run is in the database, in its own name, and nobody knows it."""
    model.reply(Reply(text="Hello"))
    first, second = await asyncio.gather(launch(**FAST), launch(**FAST))
    talk = await _begin(first.client)
    other = _through(second, talk)
    async with database.connection() as connection, Api(first.address) as api:
        await connection.execute(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$"
        )
        await connection.execute(
            "CREATE TRIGGER wait BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION wait()"
        )
        await connection.execute("SELECT pg_advisory_lock(1)")
        asking = asyncio.create_task(api.post(talk.runs_path, talk.body))

        async def is_at_the_lock() -> bool:
            cursor = await connection.execute(
                "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
            return cursor.rowcount == 1

        await eventually(is_at_the_lock)
        first.signal(signal.SIGSTOP)
        await connection.execute("SELECT pg_advisory_unlock(1)")

        async def is_committed() -> bool:
            return len(await other.runs()) == 1

        await eventually(is_committed)
        await first.dies()
        with pytest.raises(aiohttp.ClientError):
            await asking
    [run] = await other.runs()
    assert (await _ends(other, run)).status == "completed"
    assert await other.texts() == ["Hi", "Hello"]


async def test_a_stopped_process_finishes_or_hands_back(
    launch: Launch, model: ScriptedModel
) -> None:
    last = Gate()
    model.answer = lambda body: (
        Reply(text=["Fin", last, "ished"])
        if body["messages"][-1]["content"] == "Short"
        else Reply(text=["Half", Gate()] if len(model.requests) <= 2 else ["Whole"])
    )
    # Nobody misses anybody: what is handed back is all that another one can go on with.
    first = await launch(THREADMILL_DRAIN_TIMEOUT_S="1", **FOR_EVER)
    long = await _begin(first.client)
    short = await Conversation.begin(first.client, long.assistant_id, "Short")
    long_run, short_run = await long.start(), await short.start()
    await model.received(2)
    second = await launch(**FOR_EVER)
    seen_long, seen_short = _through(second, long), _through(second, short)
    first.signal(signal.SIGTERM)
    last.set()
    assert await first.ended() == 0
    assert (await seen_short.look(short_run.id)).status == "completed"
    assert await seen_short.texts() == ["Short", "Finished"]
    ended = await _ends(seen_long, long_run)
    assert ended.status == "completed"
    half, whole = (await seen_long.messages())[1:]
    assert (half.status, text_of(half)) == ("incomplete", "Half")
    assert (whole.status, text_of(whole)) == ("completed", "Whole")
    assert len(model.requests) == 3


async def test_a_worker_executes_what_a_full_server_cannot(
    launch: Launch, model: ScriptedModel
) -> None:
    """And a cancel that the server is told of reaches it by a hint: it looks only after hours."""
    model.answer = lambda body: Reply(text=["Half", Gate()])
    server, _ = await asyncio.gather(
        launch(THREADMILL_MAX_CONCURRENT_RUNS="1", **FOR_EVER), launch("worker", **FOR_EVER)
    )
    blocking = await _begin(server.client)
    talk = await Conversation.begin(server.client, blocking.assistant_id)
    local = await blocking.start()
    await model.received(1)
    remote = await talk.start()
    await model.received(2)  # the server has no room for it
    assert (await talk.look(remote.id)).status == "in_progress"
    assert (await talk.cancel(remote)).status == "cancelling"
    assert (await talk.stopped(remote)).status == "cancelled"
    await model.disconnected()
    assert (await blocking.look(local.id)).status == "in_progress"
    await blocking.cancel(local)
    assert (await blocking.stopped(local)).status == "cancelled"


async def test_what_was_found_before_a_death_is_cited_after_it(
    launch: Launch, model: ScriptedModel
) -> None:
    """The process dies between the search and the answer."""

    def answer(body: dict[str, Any]) -> Reply:
        last = body["messages"][-1]
        if last["role"] != "tool":
            return Reply(tool_calls=[ToolCall("file_search", {"queries": ["Anna"]})])
        marker = last["content"].partition("\n")[0]
        prompts.append(body)
        return Reply(text=["Pizza", marker], gate=Gate() if len(prompts) == 1 else None)

    prompts: list[dict[str, Any]] = []
    model.answer = answer
    searching = {**FAST, "THREADMILL_EMBEDDING_MODEL": "hashing"}
    first, second = await asyncio.gather(launch(**searching), launch(**searching))
    client = first.client
    store = await client.vector_stores.create()
    file = await client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("foods.txt", b"Anna likes pizza."), poll_interval_ms=20
    )
    assistant = await client.beta.assistants.create(
        model="scripted",
        tools=[{"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store.id]}},
    )
    talk = await Conversation.begin(client, assistant.id)
    run = await talk.start()
    other = _through(second, talk)

    async def has_searched() -> bool:
        return len(prompts) == 1

    await eventually(has_searched)
    await second.client.files.delete(file.id)  # what was found stays found
    await first.dies()
    ended = await _ends(other, run)
    assert ended.status == "completed", ended.last_error
    assert prompts[0] == prompts[1]
    [part] = (await other.messages())[-1].content
    assert part.type == "text"
    assert part.text.value == "Pizza【2:0†foods.txt】"
    [annotation] = part.text.annotations
    assert annotation.to_dict() == {
        "type": "file_citation",
        "text": "【2:0†foods.txt】",
        "start_index": 5,
        "end_index": 20,
        "file_citation": {"file_id": file.id},
    }
    steps = [(step.type, step.status) for step in await other.steps(run)]
    assert steps == [("tool_calls", "completed"), ("message_creation", "completed")]
    assert ended.usage is not None
    taken = [step.usage.total_tokens for step in await other.steps(run) if step.usage]
    assert ended.usage.total_tokens == sum(taken)
