"""How many runs go on at once: never more, nobody refused, each in its turn."""

import asyncio
from pathlib import Path
from typing import Any

from processes import FAST, launcher
from runs.wire import WEATHER, Api, Conversation, eventually, names
from tenants.conftest import NewTenant, Tenant
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.store.database import Database


class Crowd:
    """Answers only when it is told to, and knows who waits for an answer."""

    def __init__(self, model: ScriptedModel) -> None:
        self.asking: list[tuple[str, Gate]] = []  # the text of the question, in order of arrival
        self.largest = 0
        self._open = 0
        model.answer = self._answer

    def _answer(self, body: dict[str, Any]) -> Reply:
        gate = Gate()
        self.asking.append((body["messages"][-1]["content"], gate))
        self._open += 1
        self.largest = max(self.largest, self._open)
        return Reply(text=["ok", gate])

    async def asked(self, count: int) -> list[str]:
        async def are_there() -> bool:
            return len(self.asking) >= count

        await eventually(are_there)
        return [text for text, _ in self.asking]

    def let_go(self, number: int) -> None:
        self._open -= 1
        self.asking[number][1].set()


async def started(tenant: Tenant, count: int, name: str = "") -> list[Conversation]:
    """Runs in threads of their own, started one after the other on the servers by turns."""
    assistant = await tenant.client.beta.assistants.create(model="scripted")
    talks = []
    for number in range(count):
        client = tenant.clients[number % len(tenant.clients)]
        talk = await Conversation.begin(client, assistant.id, f"{name}{number}")
        await talk.start()
        talks.append(talk)
    return talks


async def statuses(talks: list[Conversation]) -> list[str]:
    found = []
    for talk in talks:
        runs = await talk.client.beta.threads.runs.list(talk.thread_id)
        found.append(str(runs.data[0].status))
    return found


async def test_no_more_than_the_limit_go_on_and_the_others_follow_in_their_order(
    tenant: NewTenant, model: ScriptedModel
) -> None:
    crowd = Crowd(model)
    one = await tenant(max_concurrent_runs=2)
    talks = await started(one, 6)
    assert sorted(await crowd.asked(2)) == ["0", "1"]
    assert await statuses(talks) == ["in_progress"] * 2 + ["queued"] * 4
    for number in range(6):
        crowd.let_go(number)
        follower = min(number + 3, 6)
        assert sorted(await crowd.asked(follower)) == [str(text) for text in range(follower)]
    await eventually(lambda: all_are(talks, "completed"))
    assert crowd.largest == 2


async def all_are(talks: list[Conversation], status: str) -> bool:
    return set(await statuses(talks)) == {status}


async def test_started_at_once_on_two_servers_no_more_than_the_limit_go_on(
    tenant: NewTenant, model: ScriptedModel
) -> None:
    crowd = Crowd(model)
    one = await tenant(max_concurrent_runs=3)
    assistant = await one.client.beta.assistants.create(model="scripted")
    talks = [
        await Conversation.begin(one.clients[number % 2], assistant.id, str(number))
        for number in range(12)
    ]
    await asyncio.gather(*(talk.start() for talk in talks))
    for number in range(12):
        await crowd.asked(number + 1)
        crowd.let_go(number)
    await eventually(lambda: all_are(talks, "completed"))
    assert crowd.largest == 3


async def test_the_keys_of_a_project_take_turns(tenant: NewTenant, model: ScriptedModel) -> None:
    crowd = Crowd(model)
    eager = await tenant("shared", max_concurrent_runs=2)
    modest = await tenant("shared")
    await started(eager, 5, "eager ")
    await started(modest, 2, "modest ")
    await crowd.asked(2)
    crowd.let_go(0)
    assert (await crowd.asked(3))[2] == "modest 0"
    crowd.let_go(1)
    assert (await crowd.asked(4))[3] == "eager 2"
    crowd.let_go(2)
    assert (await crowd.asked(5))[4] == "modest 1"


async def test_a_key_may_have_less_than_its_project(
    tenant: NewTenant, model: ScriptedModel
) -> None:
    crowd = Crowd(model)
    narrow = await tenant("shared", key={"max_concurrent_runs": 1}, max_concurrent_runs=3)
    wide = await tenant("shared")
    waiting = await started(narrow, 2, "narrow ")
    await started(wide, 3, "wide ")
    assert sorted(await crowd.asked(3)) == ["narrow 0", "wide 0", "wide 1"]
    assert await statuses(waiting) == ["in_progress", "queued"]


async def test_one_tenant_who_waits_keeps_nobody_else_waiting(
    tenant: NewTenant, model: ScriptedModel
) -> None:
    crowd = Crowd(model)
    limited, free = await tenant(max_concurrent_runs=1), await tenant()
    await started(limited, 4, "limited ")
    await started(free, 4, "free ")
    assert len([text for text in await crowd.asked(5) if text.startswith("free")]) == 4


async def test_a_streamed_run_waits_in_its_stream(tenant: NewTenant, model: ScriptedModel) -> None:
    crowd = Crowd(model)
    one = await tenant(max_concurrent_runs=1)
    await started(one, 1)
    await crowd.asked(1)
    assistant = await one.client.beta.assistants.create(model="scripted")
    talk = await Conversation.begin(one.client, assistant.id, "streamed")
    async with (
        Api(one.addresses[1], one.key) as api,
        api.stream(talk.runs_path, talk.body) as stream,
    ):
        await stream.until("thread.run.queued")
        assert await statuses([talk]) == ["queued"]
        crowd.let_go(0)
        assert (await crowd.asked(2))[1] == "streamed"
        crowd.let_go(1)
        told = names(await stream.all())
    assert told[:3] == ["run.created", "run.queued", "run.in_progress"]
    assert told[-2:] == ["run.completed", "done"]


async def test_a_run_that_waits_for_its_client_makes_room_and_takes_its_turn_again(
    tenant: NewTenant, model: ScriptedModel
) -> None:
    one = await tenant(max_concurrent_runs=1)
    gate = Gate()
    model.reply(
        Reply(tool_calls=[ToolCall("get_weather", id="call_a")]),
        Reply(text=["second", gate]),
        Reply(text="Sunny"),
    )
    assistant = await one.client.beta.assistants.create(model="scripted", tools=[WEATHER])
    first = await Conversation.begin(one.client, assistant.id)
    run = await first.run()
    assert run.status == "requires_action"
    second = await Conversation.begin(one.client, assistant.id)
    other = await second.reaches(await second.start(), "in_progress")
    resumed = await first.answer(run)
    assert resumed.status == "queued"
    assert (await first.look(run.id)).status == "queued"
    gate.set()
    assert (await second.stopped(other)).status == "completed"
    assert (await first.stopped(run)).status == "completed"
    assert await first.texts() == ["Hi", "Sunny"]


async def test_a_waiting_run_can_be_cancelled_and_its_follower_comes(
    tenant: NewTenant, model: ScriptedModel
) -> None:
    crowd = Crowd(model)
    one = await tenant(max_concurrent_runs=1)
    talks = await started(one, 3)
    await crowd.asked(1)
    [run] = (await one.client.beta.threads.runs.list(talks[1].thread_id)).data
    await talks[1].cancel(run)
    await talks[1].reaches(run.id, "cancelled")
    crowd.let_go(0)
    assert (await crowd.asked(2))[1] == "2"


async def test_a_raised_limit_lets_more_go_on(
    tenant: NewTenant, model: ScriptedModel, database: Database
) -> None:
    crowd = Crowd(model)
    one = await tenant(max_concurrent_runs=1)
    await started(one, 3)
    await crowd.asked(1)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE projects SET max_concurrent_runs = NULL WHERE id = %s", [one.project_id]
        )
    assert sorted(await crowd.asked(3)) == ["0", "1", "2"]


async def test_a_killed_process_takes_no_room_with_it(
    database_url: str, model: ScriptedModel, database: Database, tmp_path: Path
) -> None:
    """What it held, waiting or not, goes on in another process, one after the other."""
    async with database.connection() as connection:
        await connection.execute("UPDATE projects SET max_concurrent_runs = 1")
    async with launcher(database_url, model, tmp_path) as launch:
        first, second = await launch(**FAST), await launch(**FAST)
        model.reply(Reply(text=["Hel", Gate()]), Reply(text="Hello"), Reply(text="Bye"))
        assistant = await first.client.beta.assistants.create(model="scripted")
        talks = [await Conversation.begin(first.client, assistant.id) for _ in range(2)]
        runs = []
        async with (
            Api(first.address) as api,
            api.stream(talks[0].runs_path, talks[0].body) as stream,
        ):
            runs.append((await stream.until("thread.run.in_progress")).data["id"])
            await model.received(1)
            async with api.stream(talks[1].runs_path, talks[1].body) as waiting:
                runs.append((await waiting.until("thread.run.queued")).data["id"])
                await first.dies()
        for talk, run_id in zip(talks, runs, strict=True):
            there = Conversation(second.client, assistant.id, talk.thread_id)
            assert (await there.stopped(run_id)).status == "completed"
    assert len(model.requests) == 3


async def test_what_waits_has_an_index_of_its_own(database: Database) -> None:
    """The queue must not be read through the runs that a limit keeps waiting."""
    statements: dict[str, Any] = {
        "runs_queue_idx": "SELECT id FROM runs WHERE worker IS NULL AND status IN"
        " ('queued', 'in_progress', 'cancelling') AND slot IS DISTINCT FROM 'waiting'"
        " ORDER BY seq LIMIT 10",
        "runs_slots_idx": "SELECT id FROM runs WHERE project_id = 'p' AND slot IS NOT NULL"
        " AND status IN ('queued', 'in_progress', 'cancelling')",
    }
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL enable_seqscan = off")
        for index, statement in statements.items():
            cursor = await connection.execute(f"EXPLAIN {statement}")
            plan = "\n".join(line for (line,) in await cursor.fetchall())
            assert index in plan, plan
