"""The event log: streams that are picked up again, and runs that are followed from elsewhere."""

import asyncio
from typing import Any

import openai
import pytest

from conftest import Serve
from runs.scenes import BEGUN, COMPLETED, MESSAGE, NAMES, WRITTEN, scene_of
from runs.wire import WEATHER, Api, Conversation, Event, Json, eventually, names
from threadmill.app import Served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.store.database import Database

CALL = ToolCall("get_weather", ['{"city"', ': "Paris"}'], id="call_a")


def seqs(events: list[Event]) -> list[int]:
    assert all(event.seq is not None for event in events)
    return [event.seq for event in events if event.seq is not None]


def told(events: list[Event]) -> list[tuple[int | None, str, Any]]:
    return [(event.seq, event.name, event.data) for event in events]


async def follow(api: Api, run: Json, after: int | None = None) -> list[Event]:
    async with api.follow(run, after) as stream:
        return await stream.all()


async def statement(database: Database, text: str, *values: Any) -> list[Any]:
    async with database.connection() as connection:
        cursor = await connection.execute(text, values)
        return await cursor.fetchall() if cursor.description else []


def client_of(server: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0)


async def begin(client: openai.AsyncOpenAI) -> Conversation:
    assistant = await client.beta.assistants.create(model="scripted", tools=[WEATHER])
    return await Conversation.begin(client, assistant.id)


@pytest.mark.parametrize("name", NAMES)
async def test_a_stream_that_is_cut_anywhere_is_picked_up_whole(
    name: str, serve: Serve, model: ScriptedModel
) -> None:
    """Both parts of it, where it has a second one after the client's outputs."""
    scene = scene_of(name)
    model.reply(*scene.replies)
    async with (
        serve(**scene.settings) as server,
        client_of(server) as client,
        Api(server.address) as api,
    ):
        talk = await begin(client)
        async with api.stream(talk.runs_path, talk.body) as stream:
            run = (await stream.until("thread.run.created")).data
            if scene.meanwhile is not None:
                is_text = "message.delta" in scene.events
                await stream.until("thread.message.delta" if is_text else "thread.run.step.delta")
                await scene.meanwhile(talk, run["id"])
            whole = await stream.all()
        await _check_every_cut(api, run, whole, [None])
        if scene.after_outputs is not None:
            waiting = await talk.look(run["id"])
            assert waiting.required_action is not None
            calls = waiting.required_action.submit_tool_outputs.tool_calls
            outputs = [{"tool_call_id": call.id, "output": "sunny"} for call in calls]
            path = f"{talk.runs_path}/{run['id']}/submit_tool_outputs"
            async with api.stream(path, {"tool_outputs": outputs}) as second:
                more = await second.all()
            assert seqs(whole)[-1] < seqs(more)[0]
            await _check_every_cut(api, run, more, [seqs(whole)[-1]])
            assert told(await follow(api, run)) == told(whole), "up to the call for outputs"


async def _check_every_cut(
    api: Api, run: Json, whole: list[Event], befores: list[int | None]
) -> None:
    numbers = seqs(whole)
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "no gaps"
    for k, after in enumerate([*befores, *numbers]):
        rest = await follow(api, run, after)
        # Whoever has it all is told so once more.
        assert told(whole[:k] + rest) == told(whole) or (after == numbers[-1] and k == len(whole))
        assert rest[-1].name == "done"
        assert rest[-1].seq == numbers[-1]


async def test_a_run_without_stream_is_followed_from_its_creation(
    talk: Conversation, api: Api, model: ScriptedModel
) -> None:
    gate = Gate()
    model.reply(Reply(text=["Hel", "lo", gate, "!"]))
    run = (await talk.start()).to_dict()
    async with api.follow(run) as early:
        await early.until("thread.message.delta")
        async with api.follow(run) as late:
            await late.until("thread.message.delta")
            gate.set()
            both = await asyncio.gather(early.all(), late.all())
    assert told(both[0]) == told(both[1])
    is_delta = [event.name == "thread.message.delta" for event in both[0]]
    written = "".join(
        event.data["delta"]["content"][0]["text"]["value"]
        for event in both[0]
        if event.name == "thread.message.delta"
    )
    assert written == "Hello!"
    others = [name for name in names(both[0]) if name != "message.delta"]
    assert others == [*BEGUN, *MESSAGE, *WRITTEN, *COMPLETED]
    assert sum(is_delta) <= 3, "what nobody listens to is gathered"
    assert told(await follow(api, run)) == told(both[0]), "after its end too"


async def test_two_clients_follow_from_different_places(
    talk: Conversation, api: Api, model: ScriptedModel
) -> None:
    first, second = Gate(), Gate()
    model.reply(Reply(text=["a", "b", first, "c", second, "d"]))
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        at_b = [await stream.until("thread.message.delta") for _ in range(2)][-1]
        async with api.follow(run, at_b.seq) as late, api.follow(run) as early:
            first.set()
            await early.until("thread.message.delta")
            assert (await late.until("thread.message.delta")).seq == seqs([at_b])[0] + 1
            second.set()
            whole = await stream.all()
            assert told(await early.all()) == told(whole)
            assert told(await late.all()) == told(whole[whole.index(at_b) + 1 :])


async def test_the_header_of_browsers_says_where_to_go_on_and_the_query_wins(
    talk: Conversation, api: Api, model: ScriptedModel
) -> None:
    model.reply(Reply(text="Hello"))
    async with api.stream(talk.runs_path, talk.body) as stream:
        whole = await stream.all()
    run = whole[0].data
    async with api.follow(run, headers={"Last-Event-ID": "5"}) as stream:
        assert seqs(await stream.all())[0] == 6
    async with api.follow(run, 7, headers={"Last-Event-ID": "5"}) as stream:
        assert seqs(await stream.all())[0] == 8


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 19, "١"])
async def test_what_is_no_number_is_refused(talk: Conversation, api: Api, after: str) -> None:
    run = (await talk.run()).to_dict()
    path = f"{talk.runs_path}/{run['id']}/events"
    status, answer = await api.get(f"{path}?after={after}")
    assert (status, answer["error"]["param"]) == (400, "after")
    status, answer = await api.get(f"{talk.runs_path}/run_unknown/events")
    assert (status, answer["error"]["message"]) == (404, "No run found with id 'run_unknown'.")


async def test_an_azure_path_is_followed_too(
    talk: Conversation, server: Served, model: ScriptedModel
) -> None:
    run = await talk.run()
    async with openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/openai") as azure:
        path = f"{talk.runs_path}/{run.id}/events?api-version=2024-05-01-preview"
        answer = await azure.get(path, cast_to=str)
    assert answer.endswith("event: done\ndata: [DONE]\n\n")


async def test_a_thread_that_was_made_with_its_run_is_the_first_event(
    api: Api, client: openai.AsyncOpenAI, model: ScriptedModel
) -> None:
    assistant = await client.beta.assistants.create(model="scripted")
    body = {
        "assistant_id": assistant.id,
        "thread": {"messages": [{"role": "user", "content": "Hi"}]},
    }
    async with api.stream("/threads/runs", body) as stream:
        whole = await stream.all()
    assert names(whole)[:3] == ["created", "run.created", "run.queued"]
    assert seqs(whole)[0] == 0
    assert told(await follow(api, whole[1].data)) == told(whole)


async def test_events_that_are_gone_are_not_found(
    talk: Conversation, api: Api, database: Database, model: ScriptedModel
) -> None:
    model.reply(Reply(text="Hello"))
    run = (await talk.run()).to_dict()
    whole = await follow(api, run)
    path = f"{talk.runs_path}/{run['id']}/events"
    await statement(database, "UPDATE runs SET completed_at = completed_at - 60")
    # Only the latest of very many are kept: the beginning goes first.
    [(frames,)] = await statement(
        database, "DELETE FROM run_events WHERE run_id = %s RETURNING frames", run["id"]
    )
    status, answer = await api.get(path)
    assert (status, answer["error"]["code"]) == (404, "events_gone")
    tail = frames.index(b"id: 5\n")
    await statement(
        database,
        "INSERT INTO run_events (run_id, first_seq, last_seq, is_end, frames)"
        " VALUES (%s, 5, %s, true, %s)",
        run["id"],
        seqs(whole)[-1],
        frames[tail:],
    )
    for query in ("", "?after=3"):
        status, answer = await api.get(path + query)
        assert (status, answer["error"]["code"]) == (404, "events_gone")
    assert told(await follow(api, run, 4)) == told(whole[4:])


async def test_events_missing_in_the_middle_cut_the_stream_short(
    talk: Conversation, api: Api, database: Database, model: ScriptedModel
) -> None:
    """Postgres crashed, which empties the table, while the run went on."""
    first, second = Gate(), Gate()
    model.reply(Reply(text=["a", first, "b", second, "c"]))
    async with api.stream(talk.runs_path, talk.body) as stream:
        run = (await stream.until("thread.run.created")).data
        at_a = await stream.until("thread.message.delta")

        async with api.follow(run) as followed:
            await followed.until("thread.message.delta")
            lock = "LOCK TABLE run_events IN ACCESS EXCLUSIVE MODE"
            async with database.transaction() as connection:
                await connection.execute(lock)  # the follower sees nothing of what comes now
                first.set()
                at_b = await stream.until("thread.message.delta")
            async with database.transaction() as connection:
                await connection.execute(lock)
                await connection.execute("DELETE FROM run_events WHERE last_seq >= %s", [at_b.seq])
            assert at_a.seq is not None
            second.set()
            events = await followed.all()
    seen = [event.seq for event in events if event.seq is not None]
    if seen[-1] < at_b.seq:  # it was not faster than we
        assert events[-1].name == "error"
        assert seen == list(range(1, at_b.seq))


async def test_followers_hear_the_end_of_what_a_dead_executor_began(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    """And the text that they have read is the text that stays, though no draft had it yet."""
    model.reply(Reply(text=["Half ", "of it", Gate()]), Reply(text=["Whole"]))
    async with (
        serve(run_lease_s=0.4, draft_interval_s=60) as server,
        client_of(server) as client,
        Api(server.address) as api,
    ):
        talk = await begin(client)
        run = (await talk.start()).to_dict()
        async with api.follow(run) as stream:
            await stream.until("thread.message.delta")
            await statement(database, "UPDATE runs SET worker = 'dead' WHERE id = %s", run["id"])
            events = await stream.all()
        assert [name for name in names(events) if name != "message.delta"] == [
            *BEGUN,
            *MESSAGE,
            "message.incomplete",
            "run.step.failed",
            "run.in_progress",
            *MESSAGE,
            *WRITTEN,
            *COMPLETED,
        ]
        assert seqs(events) == sorted(set(seqs(events)))
        [closed] = [event.data for event in events if event.name == "thread.message.incomplete"]
        assert closed["content"] == [
            {"type": "text", "text": {"value": "Half of it", "annotations": []}}
        ]
        assert closed["incomplete_details"] == {"reason": "run_failed"}
        assert await talk.texts() == ["Hi", "Half of it", "Whole"]
        half = (await talk.messages())[1]
        assert (half.id, half.status) == (closed["id"], "incomplete")
        steps = [(step.type, step.status) for step in await talk.steps(run["id"])]
        assert steps == [("message_creation", "failed"), ("message_creation", "completed")]


async def test_a_call_that_a_dead_executor_began_is_closed_too(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    cut = ToolCall("get_weather", ['{"city"', Gate()], id="call_cut")
    model.reply(Reply(tool_calls=[cut]), Reply(tool_calls=[CALL]), Reply(text="Sunny"))
    async with (
        serve(run_lease_s=0.4) as server,
        client_of(server) as client,
        Api(server.address) as api,
    ):
        talk = await begin(client)
        run = (await talk.start()).to_dict()
        async with api.follow(run) as stream:
            await stream.until("thread.run.step.delta")
            await statement(database, "UPDATE runs SET worker = 'dead' WHERE id = %s", run["id"])
            events = await stream.all()
        assert names(events)[-1] == "done"
        assert names(events).count("run.step.failed") == 1
        assert names(events).count("run.requires_action") == 1
        waiting = await talk.look(run["id"])
        failed, asking = await talk.steps(run["id"])
        assert (failed.status, asking.status) == ("failed", "in_progress")
        assert failed.step_details.type == "tool_calls"
        assert [call.id for call in failed.step_details.tool_calls] == ["call_cut"]
        await talk.stopped(await talk.answer(waiting))
        rest = await follow(api, run, seqs(events)[-1])
        assert names(rest)[:3] == ["run.step.completed", "run.queued", "run.in_progress"]
        assert names(rest)[-1] == "done"
        assert names(rest).count("run.step.failed") == 0


async def test_an_end_that_nobody_could_tell_is_told(
    talk: Conversation, api: Api, database: Database, model: ScriptedModel
) -> None:
    """The executor died when the end was in the database and not in the log."""
    gate = Gate()
    model.reply(Reply(text=["Hel", gate, "lo"]))
    run = (await talk.start()).to_dict()
    async with api.follow(run) as stream:
        at = (await stream.until("thread.message.delta")).seq
        async with database.transaction() as connection:
            await connection.execute("LOCK TABLE run_events IN ACCESS EXCLUSIVE MODE")
            gate.set()
            await talk.stopped(run["id"])
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE"
                " 'INSERT INTO run_events%%' AND datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
            await _silence(connection)
        events = await stream.all()
    assert at is not None
    ending = [name for name in names(events) if name != "message.delta"]
    assert ending == [*BEGUN, *MESSAGE, *WRITTEN, *COMPLETED]
    assert events[-1].seq == 999_999_999
    assert told(await follow(api, run)) == told(events)


async def _silence(connection: Any) -> None:
    """The log of this run takes nothing more but ends that others tell."""
    await connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.first_seq < 999000000 THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    await connection.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON run_events FOR EACH ROW EXECUTE FUNCTION refuse()"
    )


async def test_a_deleted_thread_leaves_no_events(
    talk: Conversation, api: Api, client: openai.AsyncOpenAI, database: Database, model: Any
) -> None:
    model.reply(Reply(text="Hello"), Reply(text=["Hel", Gate()]))
    run = (await talk.run()).to_dict()
    assert len(await follow(api, run)) > 0
    second = (await talk.start()).to_dict()
    async with api.follow(second) as stream:
        await stream.until("thread.message.delta")
        await client.beta.threads.delete(talk.thread_id)
        events = await stream.all()
    assert events[-1].name == "error"
    status, _ = await api.get(f"{talk.runs_path}/{run['id']}/events")
    assert status == 404
    rows = await statement(database, "SELECT run_id FROM run_events WHERE run_id = %s", run["id"])
    assert rows == []


async def test_the_log_is_swept_when_a_run_has_ended_long_ago(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    model.reply(Reply(text="Hello"), Reply(tool_calls=[CALL]), Reply(text="Hello"))
    async with serve() as server, client_of(server) as client, Api(server.address) as api:
        ended, waits, young = [await begin(client) for _ in range(3)]
        runs = [(await one.run()).to_dict() for one in (ended, waits, young)]
        for run in runs:
            await follow(api, run)  # it is in the log
        await statement(database, "UPDATE runs SET completed_at = completed_at - 3660")
        for run in runs[:2]:
            await statement(
                database,
                "UPDATE run_events SET written_at = now() - interval '61 minutes'"
                " WHERE run_id = %s",
                run["id"],
            )
    async with serve() as server, client_of(server), Api(server.address) as api:

        async def is_swept() -> bool:
            found = await statement(database, "SELECT DISTINCT run_id FROM run_events")
            return {run_id for (run_id,) in found} == {runs[1]["id"], runs[2]["id"]}

        await eventually(is_swept)
        status, _ = await api.get(f"{ended.runs_path}/{runs[0]['id']}/events")
        assert status == 404


async def test_a_long_run_keeps_its_latest_events_only(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    limit = 1024**2
    model.reply(Reply(text=["x" * 20_000] * 150))
    async with (
        serve(event_log_run_max_bytes=limit) as server,
        client_of(server) as client,
        Api(server.address) as api,
    ):
        talk = await begin(client)
        async with api.stream(talk.runs_path, talk.body) as stream:
            whole = await stream.all()
        run = whole[0].data

        async def is_written() -> bool:
            return bool(
                await statement(
                    database, "SELECT 1 FROM run_events WHERE last_seq = %s", seqs(whole)[-1]
                )
            )

        await eventually(is_written)
        await statement(database, "UPDATE runs SET completed_at = completed_at - 60")
        kept = await statement(
            database, "SELECT first_seq, octet_length(frames) FROM run_events ORDER BY last_seq"
        )
        # The last row is large whatever else goes: there the message is as a whole.
        assert sum(size_bytes for _, size_bytes in kept[:-1]) <= limit
        first = kept[0][0]
        assert first > 1
        status, _ = await api.get(f"{talk.runs_path}/{run['id']}/events")
        assert status == 404
        rest = await follow(api, run, first - 1)
        assert told(rest) == told(whole[first - 1 :])


async def test_without_a_log_nothing_can_be_followed_and_streams_are_as_ever(
    serve: Serve, database: Database, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Hel", "lo"]))
    async with (
        serve(event_log_retention_s=0) as server,
        client_of(server) as client,
        Api(server.address) as api,
    ):
        talk = await begin(client)
        async with api.stream(talk.runs_path, talk.body) as stream:
            whole = await stream.all()
        assert names(whole)[-1] == "done"
        status, answer = await api.get(f"{talk.runs_path}/{whole[0].data['id']}/events")
        assert (status, answer["error"]["code"]) == (404, "events_gone")
    assert await statement(database, "SELECT run_id FROM run_events") == []
