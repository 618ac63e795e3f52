"""One run at a time on a thread, and what happens when many move the same run at once."""

import asyncio
import random
import time
from collections import Counter
from typing import Any

import openai
import pytest
from openai.types.beta.threads import Run

from conftest import Serve
from runs.wire import ENDED, Api, Conversation, eventually, names, outputs_for, refused
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.store.database import Database

CALL = ToolCall("get_weather", id="call_a")


async def _is_locked(talk: Conversation, run_id: str) -> None:
    assert await refused(talk.say("More")) == (
        f"Can't add messages to {talk.thread_id} while a run {run_id} is active."
    )
    active = f"Thread {talk.thread_id} already has an active run {run_id}."
    assert await refused(talk.start()) == active
    more: Any = [{"role": "user", "content": "More"}]
    assert await refused(talk.start(additional_messages=more)) == active


async def _is_free(talk: Conversation, model: ScriptedModel) -> None:
    await talk.say("More")
    model.say("Hello")
    assert (await talk.run()).status == "completed"


async def test_a_thread_is_locked_while_its_run_is_written(
    talk: Conversation, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    run = await talk.start()
    await talk.reaches(run, "in_progress")
    await _is_locked(talk, run.id)
    thread = await talk.client.beta.threads.update(talk.thread_id, metadata={"a": "1"})
    assert thread.metadata == {"a": "1"}  # everything else stays open
    assert await talk.texts() == ["Hi"]
    gate.set()
    await talk.stopped(run)
    await _is_free(talk, model)


async def test_a_thread_is_locked_while_its_run_waits_for_the_client(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(Reply(tool_calls=[CALL]))
    waiting = await talk.run()
    await _is_locked(talk, waiting.id)
    await talk.cancel(waiting)
    await talk.stopped(waiting)
    await _is_free(talk, model)


async def test_a_thread_is_locked_while_its_run_waits_in_the_queue(
    serve: Serve, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]), Reply(text="Hello"))
    async with (
        serve(max_concurrent_runs=1) as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0) as client,
    ):
        assistant = await client.beta.assistants.create(model="scripted")
        first = await Conversation.begin(client, assistant.id)
        second = await Conversation.begin(client, assistant.id)
        running = await first.start()
        await model.received(1)
        queued = await second.start()
        assert (await second.look(queued.id)).status == "queued"
        await _is_locked(second, queued.id)
        gate.set()
        assert (await first.stopped(running)).status == "completed"
        assert (await second.stopped(queued)).status == "completed"


async def test_a_thread_is_locked_while_its_run_is_cancelling(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    async with (
        serve(run_lease_s=3600) as server,  # so that the executor does not look
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0) as client,
    ):
        assistant = await client.beta.assistants.create(model="scripted")
        talk = await Conversation.begin(client, assistant.id)
        run = await talk.start()
        await model.received(1)
        async with database.connection() as connection:  # without telling it
            await connection.execute(
                "UPDATE runs SET status = 'cancelling' WHERE id = %s", [run.id]
            )
        await _is_locked(talk, run.id)
        assert await refused(talk.cancel(run)) == "Cannot cancel run with status 'cancelling'."
        gate.set()  # and who executes it finds out when it ends
        assert (await talk.stopped(run)).status == "cancelled"


@pytest.mark.parametrize("additional", [None, [{"role": "user", "content": "More"}]])
async def test_of_twenty_runs_one_wins(
    talk: Conversation, model: ScriptedModel, additional: Any
) -> None:
    gate = Gate()
    model.reply(Reply(gate=gate, text="Hello"))
    tried = await asyncio.gather(
        *(talk.start(additional_messages=additional) for _ in range(20)), return_exceptions=True
    )
    [winner] = [one for one in tried if not isinstance(one, BaseException)]
    bodies: list[Any] = [one.body for one in tried if isinstance(one, openai.BadRequestError)]
    refusals = Counter(body["message"] for body in bodies)
    assert refusals == {f"Thread {talk.thread_id} already has an active run {winner.id}.": 19}
    assert [run.id for run in (await talk.client.beta.threads.runs.list(talk.thread_id)).data] == [
        winner.id
    ]
    gate.set()
    await talk.stopped(winner)
    assert await talk.texts() == ["Hi", *(["More"] if additional else []), "Hello"]
    assert len(model.requests) == 1


async def test_of_twenty_submissions_one_wins(talk: Conversation, model: ScriptedModel) -> None:
    gate = Gate()
    model.reply(Reply(tool_calls=[CALL]), Reply(gate=gate, text="Sunny."))
    waiting = await talk.run()
    tried = await asyncio.gather(
        *(talk.answer(waiting, f"output {n}") for n in range(20)), return_exceptions=True
    )
    won = [n for n, one in enumerate(tried) if not isinstance(one, BaseException)]
    assert len(won) == 1
    for one in tried:
        if isinstance(one, openai.BadRequestError):
            assert "do not accept tool outputs." in str(one)
    gate.set()
    assert (await talk.stopped(waiting)).status == "completed"
    assert len(model.requests) == 2
    assert model.requests[1].body["messages"][-1]["content"] == f"output {won[0]}"


async def test_of_twenty_cancels_one_is_taken(talk: Conversation, model: ScriptedModel) -> None:
    model.reply(Reply(text=["Hel", Gate()]))
    run = await talk.start()
    await model.received(1)
    tried = await asyncio.gather(*(talk.cancel(run) for _ in range(20)), return_exceptions=True)
    assert len([one for one in tried if not isinstance(one, BaseException)]) == 1
    for one in tried:
        if isinstance(one, BaseException):
            assert "Cannot cancel run with status 'cancel" in str(one)
    assert (await talk.stopped(run)).status == "cancelled"


async def test_cancel_against_completion(talk: Conversation, model: ScriptedModel) -> None:
    """Whoever is first: the run's end, its message and its step say the same."""
    ends = Counter[str]()
    for round_number in range(12):
        gate = Gate()
        model.reply(Reply(text=["Hel", gate, "lo"]))
        run = await talk.start()
        await model.received(round_number + 1)

        async def cancel(run_id: str = run.id) -> bool:
            await asyncio.sleep(random.uniform(0, 0.008))
            try:
                await talk.cancel(run_id)
            except openai.BadRequestError as refused_with:
                told = str(refused_with)
            else:
                return True
            assert "Cannot cancel run with status 'completed'." in told
            return False

        gate.set()
        was_taken = await cancel()
        ended = await talk.stopped(run)
        assert ended.status == ("cancelled" if was_taken else "completed")
        ends[ended.status] += 1
        made = [message for message in await talk.messages() if message.run_id == run.id]
        steps = await talk.steps(run)
        assert [step.status for step in steps] == [ended.status] * len(steps)
        wanted = "completed" if ended.status == "completed" else "incomplete"
        assert [message.status for message in made] == [wanted] * len(made)
        assert len(made) == len(steps)


async def test_submit_against_cancel(talk: Conversation, model: ScriptedModel) -> None:
    model.answer = lambda body: (
        Reply(text="Sunny.") if body["messages"][-1]["role"] == "tool" else Reply(tool_calls=[CALL])
    )
    for _ in range(12):
        waiting = await talk.run()
        answered, cancelled = await asyncio.gather(
            talk.answer(waiting), talk.cancel(waiting), return_exceptions=True
        )
        ended = await talk.reaches(waiting, *ENDED)
        [step, *_] = await talk.steps(ended)
        if isinstance(cancelled, BaseException):
            assert "Cannot cancel run" in str(cancelled)
            assert ended.status == "completed"
        else:
            assert ended.status == "cancelled"
        if isinstance(answered, BaseException):
            assert 'Runs in status "cancel' in str(answered)
            assert step.status == "cancelled"
        else:
            assert step.status == "completed"


async def test_submit_against_expiry(serve: Serve, model: ScriptedModel) -> None:
    model.answer = lambda body: (
        Reply(text="Sunny.") if body["messages"][-1]["role"] == "tool" else Reply(tool_calls=[CALL])
    )
    async with (
        serve() as server,
        openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0) as client,
    ):
        assistant = await client.beta.assistants.create(model="scripted")
        talks = [await Conversation.begin(client, assistant.id) for _ in range(10)]
        runs = [await talk.run() for talk in talks]
        expires_at = int(time.time()) + 3
        async with server.runtime.database.connection() as connection:
            await connection.execute("UPDATE runs SET expires_at = %s", [expires_at])

        async def race(number: int, talk: Conversation, waiting: Run) -> str:
            """The first one is in time and the last one late, whatever the machine does."""
            if number == len(talks) - 1:
                await talk.reaches(waiting, "expired")
            elif number > 0:
                await asyncio.sleep(max(expires_at - time.time() + (number - 5) * 0.08, 0))
            [answered] = await asyncio.gather(talk.answer(waiting), return_exceptions=True)
            ended = await talk.reaches(waiting, *ENDED)
            if isinstance(answered, BaseException):
                assert 'Runs in status "' in str(answered)
                assert ended.status == "expired"
                return "refused"
            assert ended.status in ("completed", "expired")
            [step, *_] = await talk.steps(ended)
            assert step.status == "completed"
            return "taken"

        racing = (race(n, *pair) for n, pair in enumerate(zip(talks, runs, strict=True)))
        told = Counter(await asyncio.gather(*racing))
    assert told["refused"] > 0
    assert told["taken"] > 0


async def test_a_message_and_a_run_never_pass_each_other(
    talk: Conversation, model: ScriptedModel
) -> None:
    """Either the message comes first and the model reads it, or it is refused."""
    for number in range(25):
        gate = Gate()
        model.answer = lambda body, gate=gate: Reply(  # type: ignore[misc]
            text=[gate, f"I read {len(body['messages']) - 1}."]
        )
        before = len(await talk.messages())
        said, run = await asyncio.gather(
            talk.say(f"Question {number}"), talk.start(), return_exceptions=True
        )
        gate.set()
        assert not isinstance(run, BaseException), run
        await talk.stopped(run)
        was_taken = not isinstance(said, BaseException)
        assert was_taken or "while a run" in str(said)
        texts = await talk.texts()
        assert texts[before:] == [
            *([f"Question {number}"] if was_taken else []),
            f"I read {before + was_taken}.",
        ]


async def test_a_thread_that_is_deleted_takes_its_run_along(
    talk: Conversation, api: Api, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Hel", Gate()]))
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        await stream.until("thread.message.delta")
        await talk.client.beta.threads.delete(talk.thread_id)
        events = await stream.all()
    await model.disconnected()
    assert names(events)[-1] == "error"  # which the SDKs raise; there is no run to tell of
    with pytest.raises(openai.NotFoundError, match="No run found"):
        await talk.look(run["id"])
    with pytest.raises(openai.NotFoundError, match="No thread found"):
        await talk.say("More")


async def test_threads_are_deleted_while_runs_are_started_and_end(
    client: openai.AsyncOpenAI, database: Database, talk: Conversation, model: ScriptedModel
) -> None:
    model.answer = lambda body: Reply(text="Hello")

    async def one() -> None:
        other = await Conversation.begin(client, talk.assistant_id)
        started, deleted = await asyncio.gather(
            other.start(), client.beta.threads.delete(other.thread_id), return_exceptions=True
        )
        assert not isinstance(deleted, BaseException), deleted
        assert not isinstance(started, BaseException) or isinstance(started, openai.NotFoundError)

    await asyncio.gather(*(one() for _ in range(20)))

    async def is_clean() -> bool:
        async with database.connection() as connection:
            found = await connection.execute(
                "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM steps),"
                " (SELECT count(*) FROM messages WHERE role = 'assistant')"
            )
            return await found.fetchone() == (0, 0, 0)

    await eventually(is_clean)


async def test_a_late_answer_to_an_earlier_round_changes_nothing(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(
        Reply(tool_calls=[ToolCall("get_weather", id="call_1")]),
        Reply(tool_calls=[ToolCall("get_weather", id="call_2")]),
    )
    first = await talk.run()
    await talk.answer(first, "one")
    second = await talk.stopped(first)
    late = outputs_for(first, "late")
    assert await refused(
        talk.client.beta.threads.runs.submit_tool_outputs(
            first.id, thread_id=talk.thread_id, tool_outputs=late
        )
    ) == ("Expected tool outputs for call_ids ['call_2'], got ['call_1']")
    [step, _] = await talk.steps(second)
    calls: Any = step.step_details
    assert calls.tool_calls[0].function.output == "one"
