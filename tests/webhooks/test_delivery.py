"""From a run's end to a client's server, over real HTTP."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from aiohttp.abc import AbstractResolver, ResolveResult

from conftest import Serve
from processes import FAST, launcher
from runs.wire import WEATHER, Conversation, eventually
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel, ToolCall
from threadmill.runtime import open_runtime
from threadmill.settings import Settings
from threadmill.webhooks.delivery import Deliveries
from webhooks.receiver import Receiver

RUN_EVENTS = [
    f"thread.run.{how}"
    for how in ("requires_action", "completed", "incomplete", "failed", "cancelled", "expired")
]
FILE_EVENTS = [f"vector_store.file.{how}" for how in ("completed", "failed", "cancelled")]
IN_OUR_NETWORK = {"webhook_allow_private_addresses": True, "webhook_retry_waits_s": [0.05] * 5}


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


Client = openai.AsyncOpenAI


@pytest_asyncio.fixture
async def client(serve: Serve) -> AsyncIterator[Client]:
    async with serve(**IN_OUR_NETWORK) as server, _client(server.address) as client:
        yield client


@asynccontextmanager
async def _client(address: str) -> AsyncIterator[Client]:
    async with openai.AsyncOpenAI(api_key="any", base_url=f"{address}/v1", max_retries=0) as client:
        yield client


async def _listen(client: Client, url: str, event_types: Any = None) -> Any:
    return await client.webhooks.create(
        name="ours", url=url, event_types=event_types or RUN_EVENTS + FILE_EVENTS
    )


async def _deliveries(client: Client, endpoint_id: str) -> list[dict[str, Any]]:
    listed = await client.get(
        f"/webhook_endpoints/{endpoint_id}/deliveries?limit=100", cast_to=object
    )
    return listed["data"]  # type: ignore[index]


async def _settled(client: Client, endpoint_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def is_settled() -> bool:
        found[:] = await _deliveries(client, endpoint_id)
        return bool(found) and all(one["status"] != "pending" for one in found)

    await eventually(is_settled)
    return found


async def _talk(client: Client, **assistant: Any) -> Conversation:
    made = await client.beta.assistants.create(model="scripted", **assistant)
    return await Conversation.begin(client, made.id)


async def test_the_end_of_a_run_is_told_and_the_sdk_finds_it_genuine(
    client: Client, receiver: Receiver, model: ScriptedModel
) -> None:
    endpoint = await _listen(client, receiver.address + "/hook?tenant=7")
    model.say("Hello.")
    talk = await _talk(client)
    run = await talk.run()
    [taken] = await receiver.received(1)
    event: Any = client.webhooks.unwrap(
        taken.body, dict(taken.headers), secret=endpoint.signing_secret
    )
    assert (event.id, event.object, event.type) == (taken.id, "event", "thread.run.completed")
    assert event.id.startswith("evt_")
    retrieved = await client.beta.threads.runs.retrieve(run.id, thread_id=talk.thread_id)
    assert taken.event["data"] == retrieved.model_dump(exclude_unset=True)
    assert abs(event.created_at - (retrieved.completed_at or 0)) < 60
    assert taken.headers["content-type"] == "application/json"
    [delivery] = await _settled(client, endpoint.id)
    assert (delivery["id"], delivery["status"]) == (taken.id, "delivered")
    assert (delivery["attempts"], delivery["last_status_code"]) == (1, 200)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(
            taken.body + b" ", dict(taken.headers), secret=endpoint.signing_secret
        )


async def test_every_way_in_which_a_run_ends_or_waits_is_told(
    client: Client, receiver: Receiver, model: ScriptedModel
) -> None:
    await _listen(client, receiver.address)
    gate = Gate()
    call = Reply(tool_calls=[ToolCall("get_weather", id="call_a")])
    model.reply(
        call, Reply(text="Sunny."), Reply(status=400), Reply(text="x", finish_reason="length")
    )
    model.reply(Reply(text=["Half", gate]))
    talk = await _talk(client, tools=[WEATHER])
    waiting = await talk.run()
    await talk.stopped(await talk.answer(waiting, "sunny"))
    ended = await talk.run()  # the model refuses
    assert ended.status == "failed"
    short = await talk.run(max_completion_tokens=256)
    assert short.status == "incomplete"
    stopped = await talk.start()
    await model.received(5)
    await client.beta.threads.runs.cancel(stopped.id, thread_id=talk.thread_id)
    taken = await receiver.received(5)
    assert sorted(one.event["type"] for one in taken) == sorted(
        f"thread.run.{how}"
        for how in ("requires_action", "completed", "failed", "incomplete", "cancelled")
    )
    [asking] = [one.event["data"] for one in taken if one.event["type"].endswith("action")]
    assert asking["required_action"]["submit_tool_outputs"]["tool_calls"][0]["id"] == "call_a"


async def test_files_that_were_read_and_those_that_could_not_be_are_told(
    client: Client, receiver: Receiver
) -> None:
    await _listen(client, receiver.address, FILE_EVENTS)
    store = await client.vector_stores.create()
    good = await client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("notes.txt", b"Some words."), poll_interval_ms=20
    )
    await client.vector_stores.files.upload_and_poll(
        vector_store_id=store.id, file=("notes.pdf", b"no pdf"), poll_interval_ms=20
    )
    taken = await receiver.received(2)
    told = {one.event["type"]: one.event["data"] for one in taken}
    assert set(told) == {"vector_store.file.completed", "vector_store.file.failed"}
    completed = told["vector_store.file.completed"]
    assert completed == good.model_dump(exclude_unset=True)
    assert told["vector_store.file.failed"]["last_error"] is not None


async def test_only_what_was_asked_for_is_told_and_to_everyone_who_asked(
    client: Client, receiver: Receiver, model: ScriptedModel
) -> None:
    await _listen(client, receiver.address + "/all")
    await _listen(client, receiver.address + "/failures", ["thread.run.failed"])
    await _listen(client, receiver.address + "/ends", ["thread.run.completed"])
    model.reply(Reply(text="Yes."), Reply(status=400))
    talk = await _talk(client)
    await talk.run()
    await talk.run()
    taken = await receiver.received(4)
    assert sorted((one.path, one.event["type"]) for one in taken) == [
        ("/all", "thread.run.completed"),
        ("/all", "thread.run.failed"),
        ("/ends", "thread.run.completed"),
        ("/failures", "thread.run.failed"),
    ]
    assert len({one.id for one in taken}) == 2  # one event, however many are told of it


async def test_an_endpoint_that_fails_at_first_is_told_again_with_the_same_id(
    client: Client, receiver: Receiver, model: ScriptedModel
) -> None:
    receiver.statuses = [500, 302, 404]
    receiver.headers = {"location": receiver.address + "/elsewhere"}
    endpoint = await _listen(client, receiver.address + "/hook")
    model.say("Hello.")
    talk = await _talk(client)
    await talk.run()
    taken = await receiver.received(4)
    [delivery] = await _settled(client, endpoint.id)
    assert (delivery["status"], delivery["attempts"]) == ("delivered", 4)
    assert {one.id for one in taken} == {delivery["id"]}
    assert {one.path for one in taken} == {"/hook"}  # nobody sends us elsewhere
    assert len({one.body for one in taken}) == 1
    found: Any = await client.webhooks.retrieve(endpoint.id)
    assert (found.status, found.failing_since) == ("enabled", None)


async def test_when_all_tries_have_failed_it_can_be_seen(
    client: Client, receiver: Receiver, model: ScriptedModel
) -> None:
    receiver.statuses = [503] * 6
    endpoint = await _listen(client, receiver.address)
    model.say("Hello.")
    talk = await _talk(client)
    await talk.run()
    [delivery] = await _settled(client, endpoint.id)
    assert (delivery["status"], delivery["attempts"]) == ("failed", 6)
    assert delivery["last_status_code"] == 503
    assert delivery["last_error"] == "The endpoint answered 503."
    assert delivery["next_attempt_at"] is None
    assert len(receiver.taken) == 6
    found: Any = await client.webhooks.retrieve(endpoint.id)
    assert found.status == "enabled"  # it takes days until we give up altogether
    assert found.failing_since is not None


async def test_an_endpoint_that_is_gone_is_disabled(
    client: Client, receiver: Receiver, model: ScriptedModel
) -> None:
    receiver.statuses = [410]
    endpoint = await _listen(client, receiver.address)
    model.answer = lambda _: ["Yes."]
    talk = await _talk(client)
    await talk.run()
    await _settled(client, endpoint.id)
    found: Any = await client.webhooks.retrieve(endpoint.id)
    assert (found.status, found.disabled_reason) == ("disabled", "it answered 410 Gone")
    await talk.run()
    assert len(await _deliveries(client, endpoint.id)) == 1
    await client.post(
        f"/webhook_endpoints/{endpoint.id}", body={"status": "enabled"}, cast_to=object
    )
    await talk.run()
    assert len(await receiver.received(2)) == 2


async def test_after_days_without_success_an_endpoint_is_disabled(
    serve: Serve, receiver: Receiver, model: ScriptedModel, database: Any
) -> None:
    receiver.statuses = [500]
    settings = IN_OUR_NETWORK | {"webhook_retry_waits_s": []}
    async with serve(**settings) as server, _client(server.address) as client:
        endpoint = await _listen(client, receiver.address)
        async with database.connection() as connection:
            await connection.execute(
                "UPDATE webhook_endpoints SET failing_since = extract(epoch FROM now()) - 260000"
            )
        model.say("Yes.")
        talk = await _talk(client)
        await talk.run()

        async def is_disabled() -> bool:
            found: Any = await client.webhooks.retrieve(endpoint.id)
            return bool(found.status == "disabled")

        await eventually(is_disabled)


async def test_an_endpoint_that_never_answers_holds_up_no_other(
    serve: Serve, receiver: Receiver, model: ScriptedModel
) -> None:
    receiver.holds = {"/silent"}
    settings = IN_OUR_NETWORK | {"webhook_timeout_s": 60}
    async with serve(**settings) as server, _client(server.address) as client:
        await _listen(client, receiver.address + "/silent")
        await _listen(client, receiver.address + "/quick")
        model.answer = lambda _: ["Yes."]
        talk = await _talk(client)
        for _ in range(12):
            await talk.run()
        async with asyncio.timeout(30):
            while sum(one.path == "/quick" for one in receiver.taken) < 12:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        silent = [one for one in receiver.taken if one.path == "/silent"]
        assert 4 <= len(silent) <= 7  # no more of them at once
        assert len({one.id for one in receiver.taken if one.path == "/quick"}) == 12


async def test_each_event_is_told_once_by_several_processes(
    serve: Serve, receiver: Receiver, model: ScriptedModel
) -> None:
    model.answer = lambda _: ["Yes."]
    async with (
        serve(**IN_OUR_NETWORK) as one,
        serve(**IN_OUR_NETWORK) as two,
        _client(one.address) as first,
        _client(two.address) as second,
    ):
        endpoint = await _listen(first, receiver.address)
        talks = [await _talk(client) for client in (first, second) for _ in range(15)]
        await asyncio.gather(*(talk.run() for talk in talks))
        assert len(await _settled(first, endpoint.id)) == 30
        assert len(receiver.taken) == 30
        assert len({taken.id for taken in receiver.taken}) == 30


async def test_both_secrets_sign_while_they_are_exchanged(
    client: Client, receiver: Receiver, model: ScriptedModel
) -> None:
    before = await _listen(client, receiver.address)
    after = await client.webhooks.rotate_secret(before.id, keep_old_secret_active_for_24_hours=True)
    model.answer = lambda _: ["Yes."]
    talk = await _talk(client)
    await talk.run()
    [taken] = await receiver.received(1)
    for secret in (before.signing_secret, after.signing_secret):
        client.webhooks.verify_signature(taken.body, dict(taken.headers), secret=secret)
    last = await client.webhooks.rotate_secret(before.id)
    await talk.run()
    taken = (await receiver.received(2))[1]
    client.webhooks.verify_signature(taken.body, dict(taken.headers), secret=last.signing_secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(
            taken.body, dict(taken.headers), secret=after.signing_secret
        )


async def test_an_endpoint_can_be_tried_out(client: Client, receiver: Receiver) -> None:
    endpoint = await _listen(client, receiver.address)
    receiver.statuses = [418]
    kind: Any = "thread.run.completed"
    result = await client.webhooks.test(endpoint.id, event_type=kind)
    assert (result.status_code, result.event_type) == (418, kind)
    [taken] = receiver.taken
    client.webhooks.verify_signature(
        taken.body, dict(taken.headers), secret=endpoint.signing_secret
    )
    await client.webhooks.update(endpoint.id, url="http://127.0.0.1:1/closed")
    with pytest.raises(openai.BadRequestError, match="could not be sent"):
        await client.webhooks.test(endpoint.id, event_type=kind)


# --- a process dies ---


async def test_what_a_killed_process_had_not_told_another_one_tells(
    database_url: str, database: Any, model: ScriptedModel, receiver: Receiver, tmp_path: Path
) -> None:
    """One event that it had just sent, without hearing the answer, and one that it had not."""
    environment = FAST | {
        "THREADMILL_WEBHOOK_ALLOW_PRIVATE_ADDRESSES": "true",
        "THREADMILL_WEBHOOK_TIMEOUT_S": "60",
        "THREADMILL_WEBHOOK_RETRY_WAITS_S": "0.1,0.1",
    }
    receiver.holds = {"/held"}
    model.answer = lambda _: ["Yes."]
    async with launcher(database_url, model, tmp_path) as launch:
        first = await launch(**environment)
        endpoint = await _listen(first.client, receiver.address + "/held")
        talk = await _talk(first.client)
        await talk.run()
        [held] = await receiver.received(1)
        await talk.run()
        await first.dies()
        receiver.holds = set()
        async with database.connection() as connection:  # as when that time is over
            await connection.execute("UPDATE webhook_deliveries SET due_at = now()")
        second = await launch(**environment)
        ended = await _settled(second.client, endpoint.id)
        assert [one["status"] for one in ended] == ["delivered", "delivered"]
        assert {one["id"] for one in ended} == {taken.id for taken in receiver.taken}
        assert sum(taken.id == held.id for taken in receiver.taken) == 2


# --- addresses that are not for us ---


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "https://127.0.0.1/hook",
        "https://[::1]/hook",
        "https://[::ffff:10.0.0.1]/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://localhost/hook",
        "https://LOCALHOST./hook",
        "https://user:password@example.com/",
        "https://example.com:99999/",
        "ftp://example.com/",
    ],
)
async def test_a_url_that_leads_elsewhere_than_to_the_internet_is_refused(
    serve: Serve, url: str
) -> None:
    async with serve() as server, _client(server.address) as client:
        with pytest.raises(openai.BadRequestError) as refusal:
            await _listen(client, url)
        assert refusal.value.param == "url"


class Rebinding(AbstractResolver):
    """A name that leads to a public address when it is looked at, and here when it is used."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=0,
            )
            for address in self._addresses
        ]

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    "addresses", [["127.0.0.1"], ["127.0.0.1", "127.0.0.1"], ["::ffff:127.0.0.1"]]
)
async def test_a_name_that_leads_into_our_own_network_is_not_followed(
    settings: Settings, receiver: Receiver, database: Any, addresses: list[str]
) -> None:
    port = int(receiver.address.rpartition(":")[2])
    async with open_runtime(settings) as runtime:
        await _enqueue(database, f"http://rebind.example:{port}/")
        error = await _sent_with(Deliveries(runtime, resolver=Rebinding(*addresses)), database)
        assert "is not an address of the public internet" in error
    assert receiver.taken == []


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
async def test_an_address_in_any_spelling_is_not_followed_either(
    settings: Settings, receiver: Receiver, database: Any, host: str
) -> None:
    """As they might stand in the table since private addresses were allowed."""
    port = int(receiver.address.rpartition(":")[2])
    async with open_runtime(settings) as runtime:
        await _enqueue(database, f"http://{host}:{port}/")
        await _sent_with(Deliveries(runtime), database)
    assert receiver.taken == []


async def test_the_resolver_of_these_tests_does_lead_to_the_receiver(
    settings: Settings, receiver: Receiver, database: Any
) -> None:
    port = int(receiver.address.rpartition(":")[2])
    allowing = settings.model_copy(update={"webhook_allow_private_addresses": True})
    async with open_runtime(allowing) as runtime:
        await _enqueue(database, f"http://rebind.example:{port}/")
        sending = asyncio.create_task(
            Deliveries(runtime, resolver=Rebinding("127.0.0.1")).send_due()
        )
        await receiver.received(1)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def _enqueue(database: Any, url: str) -> None:
    """An endpoint, and a file whose end it is to be told."""
    async with database.connection() as connection:
        for statement in (
            "INSERT INTO webhook_endpoints"
            " (id, project_id, created_at, updated_at, name, url, event_types, secret)"
            " VALUES ('wh_1', 'proj_default', 1, 1, 'x', %(url)s,"
            " '{vector_store.file.completed}', 'whsec_c2VjcmV0')",
            "INSERT INTO vector_stores (id, project_id, created_at, last_active_at, search)"
            " VALUES ('vs_1', 'proj_default', 1, 1, '{}')",
            "INSERT INTO files (id, project_id, created_at, filename, purpose, bytes, sha256)"
            " VALUES ('file-1', 'proj_default', 1, 'a.txt', 'assistants', 1, '')",
            "INSERT INTO vector_store_files (vector_store_id, id, project_id, created_at, status,"
            " chunking_strategy) VALUES ('vs_1', 'file-1', 'proj_default', 1, 'in_progress', '{}')",
            "UPDATE vector_store_files SET status = 'completed'",
        ):
            await connection.execute(statement, {"url": url})


async def _sent_with(deliveries: Deliveries, database: Any) -> str:
    """What the first try came to."""
    sending = asyncio.create_task(deliveries.send_due())
    error: list[str] = []

    async def has_failed() -> bool:
        async with database.connection() as connection:
            found = await connection.execute("SELECT last_error FROM webhook_deliveries")
            error[:] = [row[0] for row in await found.fetchall() if row[0]]
        return bool(error)

    try:
        await eventually(has_failed)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return error[0]
