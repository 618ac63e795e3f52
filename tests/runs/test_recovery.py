"""What holds when executors die, writes come too late, or nobody has room.

A death is played by taking the run from its executor in the database: what the other processes
see is the same. Processes that are really killed are in test_processes.py.
"""

import json
from typing import Any

import openai
import pytest

from conftest import Serve
from runs.wire import WEATHER, Api, Conversation, eventually, names, text_of
from threadmill.app import Served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.lifecycle import RunStatus
from threadmill.runs.outputs import accept
from threadmill.schemas.requests import ToolOutput
from threadmill.store import projects, runs
from threadmill.store.database import Database

CALL = ToolCall("get_weather", id="call_a")


def client_of(server: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0)


async def begin(client: openai.AsyncOpenAI) -> Conversation:
    assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
    return await Conversation.begin(client, assistant.id)


async def change(database: Database, statement: str, *values: Any) -> None:
    async with database.connection() as connection:
        await connection.execute(statement, values)


async def take_away(database: Database, run_id: str) -> None:
    """As if the executor had died: its lease is over."""
    await change(database, "UPDATE runs SET worker = 'dead' WHERE id = %s", run_id)


async def test_a_run_that_kills_its_executors_ends_failed(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    model.answer = lambda body: Reply(text=["Hel", Gate()])
    async with (
        serve(run_max_attempts=2, run_lease_s=0.4, draft_interval_s=0.02) as server,
        client_of(server) as client,
    ):
        talk = await begin(client)
        run = await talk.start()
        for death in range(1, 3):
            await model.received(death)

            async def has_draft(count: int = death) -> bool:
                return len(await talk.messages()) == 1 + count

            await eventually(has_draft)
            await take_away(database, run.id)
        ended = await talk.stopped(run)
        assert ended.status == "failed"
        assert ended.last_error is not None
        assert ended.last_error.message == (
            "The run was started 2 times without getting any further."
        )
        assert len(model.requests) == 2
        assert [step.status for step in await talk.steps(run)] == ["failed", "failed"]
        assert [message.status for message in await talk.messages()][1:] == ["incomplete"] * 2


async def test_progress_makes_the_count_of_deaths_begin_anew(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    def answer(body: dict[str, Any]) -> Reply:
        said = len([one for one in body["messages"] if one["role"] == "tool"])
        if said == 2:
            return Reply(text="Done.")
        return Reply(gate=gates.setdefault(said, Gate()), tool_calls=[ToolCall("get_weather")])

    gates: dict[int, Gate] = {}
    model.answer = answer
    async with serve(run_max_attempts=2, run_lease_s=0.4) as server, client_of(server) as client:
        talk = await begin(client)
        run = await talk.start()
        for number in range(2):
            await model.received(2 * number + 1)
            await take_away(database, run.id)  # one death before every step
            await model.received(2 * number + 2)
            gates[number].set()
            await talk.answer(await talk.stopped(run))
        ended = await talk.stopped(run)
        assert ended.status == "completed", ended.last_error


async def test_an_executor_that_lost_its_run_writes_nothing(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    """It wakes up after another one has taken over, and finds that it may not write."""
    first, second = Gate(), Gate()
    model.reply(Reply(text=["From the first", first]), Reply(text=["From the second", second]))
    # With long leases neither looks what became of its runs, and the first has no room for more.
    async with (
        serve(run_lease_s=60, max_concurrent_runs=1) as server,
        serve(run_lease_s=60) as other,
        client_of(server) as client,
    ):
        talk = await begin(client)
        run = await talk.start()
        await model.received(1)
        await take_away(database, run.id)
        await model.received(2)
        assert list(other.worker.executor._executions) == [run.id]
        first.set()

        async def has_let_go() -> bool:
            return server.worker.executor.has_room

        await eventually(has_let_go)
        assert (await talk.look(run.id)).status == "in_progress"
        second.set()
        assert (await talk.stopped(run)).status == "completed"
        assert await talk.texts() == ["Hi", "From the second"]


async def test_a_forced_tool_stays_forced_when_the_first_turn_died(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Hm", Gate()]), Reply(tool_calls=[CALL]), Reply(text="Sunny."))
    async with serve(run_lease_s=0.4, draft_interval_s=0.02) as server, client_of(server) as client:
        talk = await begin(client)
        run = await talk.start(tool_choice="required")
        await model.received(1)

        async def has_draft() -> bool:
            return len(await talk.messages()) == 2

        await eventually(has_draft)
        await take_away(database, run.id)
        waiting = await talk.stopped(run)
        await talk.stopped(await talk.answer(waiting))
    choices = [request.body.get("tool_choice") for request in model.requests]
    assert choices == ["required", "required", None]


async def test_a_cancel_between_text_and_call_leaves_no_open_message(
    talk: Conversation, api: Api, database: Database, model: ScriptedModel
) -> None:
    gate = Gate()
    call = {"index": 0, "id": "call_a", "function": {"name": "get_weather", "arguments": "{}"}}
    model.reply(
        Reply(raw=[_chunk({"content": "Let me see."}), gate, _chunk({"tool_calls": [call]})])
    )
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        await stream.until("thread.message.delta")
        async with database.connection() as connection:  # the hint is lost
            await runs.request_cancel(
                connection, projects.DEFAULT_PROJECT_ID, talk.thread_id, run["id"]
            )
        gate.set()
        events = await stream.all()
    assert names(events)[-5:] == [
        "run.cancelling",
        "message.incomplete",
        "run.step.cancelled",
        "run.cancelled",
        "done",
    ]
    [step] = await talk.steps(run["id"])
    assert step.status == "cancelled"
    message = (await talk.messages())[1]
    assert (message.status, text_of(message)) == ("incomplete", "Let me see.")


async def test_a_cancel_before_the_call_for_outputs_shows_no_required_action(
    talk: Conversation, api: Api, database: Database, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(tool_calls=[ToolCall("get_weather", ["{", gate, "}"])]))
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        await stream.until("thread.run.step.delta")
        async with database.connection() as connection:
            await runs.request_cancel(
                connection, projects.DEFAULT_PROJECT_ID, talk.thread_id, run["id"]
            )
        gate.set()
        events = await stream.all()
    told = [event.data for event in events if event.name == "thread.run.cancelling"]
    assert [one["required_action"] for one in told] == [None]
    assert names(events)[-3:] == ["run.step.cancelled", "run.cancelled", "done"]


async def test_a_cancel_that_meets_a_hand_back_is_a_cancel(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Hel", Gate()]))
    async with serve(drain_timeout_s=0) as server, client_of(server) as client:
        talk = await begin(client)
        run = await talk.start()
        await model.received(1)
        execution = server.worker.executor._executions[run.id]

        async def has_begun() -> bool:
            return execution.draft() is not None

        await eventually(has_begun)
        async with database.connection() as connection:
            await runs.request_cancel(
                connection, projects.DEFAULT_PROJECT_ID, talk.thread_id, run.id
            )
    async with serve() as server, client_of(server) as client:
        talk = Conversation(client, talk.assistant_id, talk.thread_id)
        ended = await talk.stopped(run)
        assert ended.status == "cancelled"
        message = (await talk.messages())[1]
        assert (message.status, text_of(message)) == ("incomplete", "Hel")


async def test_a_late_submission_does_not_answer_the_next_round(
    server: Served, talk: Conversation, database: Database, model: ScriptedModel
) -> None:
    """One that looked at the run before another one's outputs were taken."""
    model.reply(
        Reply(tool_calls=[ToolCall("get_weather", id="call_1")]),
        Reply(tool_calls=[ToolCall("get_weather", id="call_2")]),
    )
    first = await talk.run()
    async with database.connection() as connection:
        seen = await runs.get(connection, projects.DEFAULT_PROJECT_ID, talk.thread_id, first.id)
        step = await runs.waiting_step(connection, first.id)
        assert step is not None
        await talk.answer(first, "in time")
        second = await talk.stopped(first)
        late = await runs.resume(connection, seen, step, to=RunStatus.QUEUED, worker=None)
    assert late is None
    assert (await talk.look(first.id)).status == "requires_action"
    assert second.required_action is not None
    [_, open_step] = await talk.steps(first)
    assert open_step.status == "in_progress"


async def test_outputs_for_a_run_that_is_seen_too_late_are_refused(
    server: Served, talk: Conversation, database: Database, model: ScriptedModel
) -> None:
    model.reply(Reply(tool_calls=[CALL]), Reply(text="Sunny."))
    waiting = await talk.run()
    async with database.connection() as connection:
        seen = await runs.get(connection, projects.DEFAULT_PROJECT_ID, talk.thread_id, waiting.id)
        await talk.stopped(await talk.answer(waiting))
        outputs = [ToolOutput(tool_call_id="call_a", output="late")]
        with pytest.raises(Exception, match='Runs in status "completed" do not accept'):
            await accept(connection, server.worker.executor, seen, outputs, streams=False)


async def test_a_run_that_is_held_but_not_executed_is_taken_up(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    """The claim was written, but its answer was lost with the connection."""
    model.reply(Reply(tool_calls=[CALL]), Reply(text="Sunny."))
    async with serve(run_lease_s=0.4) as server, client_of(server) as client:
        talk = await begin(client)
        waiting = await talk.run()
        step = waiting.required_action
        assert step is not None
        async with database.connection() as connection:
            run = await runs.get(
                connection, projects.DEFAULT_PROJECT_ID, talk.thread_id, waiting.id
            )
            open_step = await runs.waiting_step(connection, run.id)
            assert open_step is not None
            resumed = await runs.resume(
                connection,
                run,
                open_step,
                to=RunStatus.IN_PROGRESS,
                worker=server.worker.executor.name,
            )
        assert resumed is not None
        assert (await talk.stopped(waiting)).status == "completed"


async def test_cancelled_runs_end_though_nobody_has_room(
    serve: Serve, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(tool_calls=[CALL]), Reply(text=["Hel", gate, "lo"]))
    async with serve(max_concurrent_runs=1) as server, client_of(server) as client:
        waits, runs_now, queued = [await begin(client) for _ in range(3)]
        waiting = await waits.run()
        running = await runs_now.start()
        await model.received(2)
        queued_run = await queued.start()
        assert (await queued.look(queued_run.id)).status == "queued"
        await queued.cancel(queued_run)
        await waits.cancel(waiting)
        assert (await queued.stopped(queued_run)).status == "cancelled"
        assert (await waits.stopped(waiting)).status == "cancelled"
        assert [step.status for step in await waits.steps(waiting)] == ["cancelled"]
        gate.set()
        assert (await runs_now.stopped(running)).status == "completed"


async def test_runs_expire_though_nobody_has_room(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(tool_calls=[CALL]), Reply(text=["Hel", gate, "lo"]))
    async with serve(max_concurrent_runs=1) as server, client_of(server) as client:
        waits, runs_now, queued = [await begin(client) for _ in range(3)]
        waiting = await waits.run()
        running = await runs_now.start()
        await model.received(2)
        queued_run = await queued.start()
        for run in (waiting, queued_run):
            await change(database, "UPDATE runs SET expires_at = created_at WHERE id = %s", run.id)
        assert (await waits.reaches(waiting, "expired")).status == "expired"
        assert (await queued.reaches(queued_run, "expired")).status == "expired"
        gate.set()
        assert (await runs_now.stopped(running)).status == "completed"


async def test_a_stream_waits_for_room_where_it_is_read(serve: Serve, model: ScriptedModel) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]), Reply(text="Second"))
    async with (
        serve(max_concurrent_runs=1) as server,
        client_of(server) as client,
        Api(server.address) as api,
    ):
        first, second = [await begin(client) for _ in range(2)]
        running = await first.start()
        await model.received(1)
        async with api.stream(second.runs_path, second.body) as stream:
            run = (await stream.until("thread.run.queued")).data
            assert (await second.look(run["id"])).status == "queued"
            gate.set()
            events = await stream.all()
        assert names(events)[2] == "run.in_progress"
        assert names(events)[-2:] == ["run.completed", "done"]
        assert (await first.stopped(running)).status == "completed"
        ended = await second.look(run["id"])
        assert ended.started_at is not None


async def test_the_last_messages_are_counted_without_those_of_the_run(
    talk: Conversation, model: ScriptedModel
) -> None:
    model.reply(
        Reply(text="One moment.", tool_calls=[CALL]),
        Reply(text="Again.", tool_calls=[ToolCall("get_weather", id="call_b")]),
        Reply(text="Sunny."),
    )
    await talk.say("What about Paris?")
    waiting = await talk.run(truncation_strategy={"type": "last_messages", "last_messages": 1})
    await talk.answer(waiting)
    await talk.answer(await talk.stopped(waiting))
    assert (await talk.stopped(waiting)).status == "completed"
    for request in model.requests:
        roles = [(one["role"], one["content"]) for one in request.body["messages"]]
        assert roles[:2] == [("system", "Be brief."), ("user", "What about Paris?")]
    assert len(model.requests[2].body["messages"]) == 6


def _chunk(delta: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()


async def test_the_attempts_do_not_count_a_hand_back(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    model.answer = lambda body: Reply(text=["Hel", gate, "lo"])
    gate = Gate()
    async with serve(drain_timeout_s=0) as server, client_of(server) as client:
        talk = await begin(client)
        run = await talk.start()
        await model.received(1)
    for number in range(2, 5):
        async with serve(drain_timeout_s=0, run_max_attempts=2) as server:
            await model.received(number)
    gate.set()
    async with serve(run_max_attempts=2) as server, client_of(server) as client:
        talk = Conversation(client, talk.assistant_id, talk.thread_id)
        ended = await talk.stopped(run)
        assert ended.status == "completed", ended.last_error
        assert (await talk.texts())[-1] == "Hello"


async def test_a_stream_hears_nothing_of_the_execution_that_follows(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    """Not even in the same process, where a run that was lost may come back to."""
    second = Gate()
    model.reply(Reply(text=["From the first", Gate()]), Reply(text=["From ", second, "the second"]))
    async with (
        serve(run_lease_s=4) as server,
        client_of(server) as client,
        Api(server.address) as api,
    ):
        talk = await begin(client)
        async with api.stream(talk.runs_path, talk.body) as stream:
            run = (await stream.until("thread.run.created")).data
            await stream.until("thread.message.delta")
            await take_away(database, run["id"])
            await model.received(2)
            events = await stream.all()  # until it hears that it has lost the run
            second.set()
        assert names(events)[-2:] == ["message.delta", "error"]
        assert (await talk.stopped(run["id"])).status == "completed"
        assert (await talk.texts())[-1] == "From the second"


async def test_a_process_that_has_slept_keeps_its_runs(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    """Its lease is over, but nobody else is there to take them."""
    gate = Gate()
    model.answer = lambda body: Reply(text=["Hel", gate, "lo"])
    async with serve(run_lease_s=60) as server, client_of(server) as client:
        talk = await begin(client)
        run = await talk.start()
        other = await begin(client)
        other_run = await other.start()
        await model.received(2)
        await change(database, "UPDATE workers SET lease_until = now() - interval '1 minute'")
        await take_away(database, other_run.id)
        await model.received(3)  # this one was swept, so the first was looked at too
        gate.set()
        assert (await talk.stopped(run)).status == "completed"
        assert await talk.texts() == ["Hi", "Hello"]
        await other.stopped(other_run)
        assert len(model.requests) == 3


async def test_searches_that_were_cut_off_are_made_again(
    serve: Serve, model: ScriptedModel
) -> None:
    """The server stops between the two searches of one turn. What the first one found was never
    given to the model, and does not count."""

    def answer(body: dict[str, Any]) -> Reply:
        outputs = [one["content"] for one in body["messages"] if one["role"] == "tool"]
        if outputs:
            return Reply(text=[output.partition("\n")[0] for output in outputs])
        calls = [ToolCall("file_search", {"queries": [query]}) for query in ("pizza", "olives")]
        return Reply(tool_calls=calls)

    def before_embeddings(body: dict[str, Any]) -> Reply | None:
        if body["input"] != ["olives"] or is_second.is_set():
            return None
        is_first.set()
        return Reply(gate=is_second)

    is_first, is_second = Gate(), Gate()
    model.answer, model.before_embeddings = answer, before_embeddings
    searching = {"embedding_model": "hashing", "drain_timeout_s": 0}
    async with serve(**searching) as server, client_of(server) as client:
        store = await client.vector_stores.create()
        await client.vector_stores.files.upload_and_poll(
            vector_store_id=store.id, file=("foods.txt", b"Pizza with olives"), poll_interval_ms=20
        )
        assistant = await client.beta.assistants.create(
            model="scripted",
            tools=[{"type": "file_search"}],
            tool_resources={"file_search": {"vector_store_ids": [store.id]}},
        )
        talk = await Conversation.begin(client, assistant.id)
        run = await talk.start()
        await is_first.wait()
    is_second.set()
    async with serve(**searching) as server, client_of(server) as client:
        talk = Conversation(client, talk.assistant_id, talk.thread_id)
        ended = await talk.stopped(run)
        assert ended.status == "completed", ended.last_error
        assert (await talk.texts())[-1] == "【2:0†foods.txt】【3:0†foods.txt】"
        steps = [(step.type, step.status) for step in await talk.steps(run)]
    assert steps == [
        ("tool_calls", "failed"),
        ("tool_calls", "completed"),
        ("message_creation", "completed"),
    ]
