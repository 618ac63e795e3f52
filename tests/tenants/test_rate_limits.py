"""Requests and tokens in a minute: exact over several servers, and what is told is true."""

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from runs.wire import WEATHER, Conversation, eventually
from tenants.conftest import Answer, NewTenant, Tenant
from threadmill.api.rate_limits import shown_duration
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.store.database import Database

RATE_HEADERS = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")


async def race(tenants: list[Tenant], count: int) -> list[Answer]:
    """So many requests at once, on all servers by turns."""
    return await asyncio.gather(
        *(
            tenants[number % len(tenants)].send("GET", "/assistants", server=number)
            for number in range(count)
        )
    )


def passed(answers: list[Answer]) -> int:
    found = Counter(answer.status for answer in answers)
    assert set(found) <= {200, 429}
    return found[200]


async def refill(database: Database, subject: str, seconds: float, kind: str = "requests") -> None:
    """As if so much time had gone by."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE rate_buckets SET full_at_ns = full_at_ns - %s WHERE subject = %s AND kind = %s",
            [int(seconds * 10**9), subject, kind],
        )


async def test_of_fifty_requests_at_once_twenty_pass_over_two_servers(tenant: NewTenant) -> None:
    one = await tenant(max_requests_per_minute=20)
    began = time.monotonic()
    come_back_s = 60 / 20
    assert 20 <= passed(await race([one], 50)) <= 20 + (time.monotonic() - began) // come_back_s


async def test_of_key_and_project_the_tighter_limit_holds(
    tenant: NewTenant, database: Database
) -> None:
    one = await tenant("shared", key={"max_requests_per_minute": 7}, max_requests_per_minute=10)
    other = await tenant("shared")
    assert passed(await race([one], 20)) == 7
    # What was refused by the key was not taken from the project either.
    assert passed(await race([other], 20)) == 3
    await refill(database, one.key_id, 60)
    refused = await one.send("GET", "/assistants")
    assert refused.status == 429
    assert f"for project {one.project_id} on" in refused.json["error"]["message"]
    # And what was refused by the project was not taken from the key.
    await refill(database, one.project_id, 60)
    assert passed(await race([one], 20)) == 7


async def test_one_tenants_limit_is_not_anothers(tenant: NewTenant) -> None:
    limited, free = await tenant(max_requests_per_minute=1), await tenant()
    assert passed(await race([limited], 5)) == 1
    assert passed(await race([free], 20)) == 20


async def test_after_the_time_that_is_told_and_not_before_one_request_passes(
    tenant: NewTenant, database: Database
) -> None:
    one = await tenant(max_requests_per_minute=60)
    while (refused := await one.send("GET", "/assistants")).status == 200:
        pass
    wait_s = int(refused.headers["retry-after-ms"]) / 1000
    assert 0 < wait_s <= 1
    assert refused.headers["retry-after"] == "1"
    told_at = time.monotonic()
    while (answer := await one.send("GET", "/assistants")).status == 429:
        assert time.monotonic() < told_at + wait_s + 30
    waited_s = time.monotonic() - told_at
    assert waited_s > wait_s - 0.1
    assert int(answer.headers["x-ratelimit-remaining-requests"]) < waited_s
    # A full minute brings all of them back, and not one more.
    await refill(database, one.project_id, 600)
    began = time.monotonic()
    assert 60 <= passed(await race([one], 70)) <= 61 + time.monotonic() - began


async def test_a_refusal_says_what_the_original_said(tenant: NewTenant) -> None:
    one = await tenant(max_requests_per_minute=3)
    for left in (2, 1, 0):
        answer = await one.send("GET", "/assistants")
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
        assert "retry-after" not in answer.headers
    refused = await one.send("POST", "/threads", {})
    error = refused.json["error"]
    text, _, wait = error.pop("message").partition(" Please try again in ")
    assert text == (
        f"Rate limit reached for project {one.project_id} on requests per min (RPM): Limit 3,"
        " Used 3, Requested 1."
    )
    assert wait.endswith("s.")
    assert 15 < float(wait.removesuffix("s.")) <= 20
    assert error == {"type": "requests", "param": None, "code": "rate_limit_exceeded"}
    assert 15 < int(refused.headers["retry-after"]) <= 20
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


async def test_the_sdk_waits_and_gets_through(tenant: NewTenant) -> None:
    one = await tenant(max_requests_per_minute=60)
    await asyncio.gather(*(one.send("GET", "/assistants") for _ in range(60)))
    patient = one.client.with_options(max_retries=2)
    assert (await patient.beta.assistants.list()).data == []


async def test_callers_without_limits_get_no_such_headers_and_leave_no_rows(
    tenant: NewTenant, database: Database
) -> None:
    free = await tenant()
    answer = await free.send("GET", "/assistants")
    assert not [name for name in answer.headers if name.lower().startswith(RATE_HEADERS)]
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM rate_buckets")
        assert await cursor.fetchone() == (0,)


async def test_a_run_start_is_refused_when_the_minutes_tokens_are_spent(
    tenant: NewTenant, model: ScriptedModel, database: Database
) -> None:
    one = await tenant(max_tokens_per_minute=1000)
    usage = {"prompt_tokens": 900, "completion_tokens": 300, "total_tokens": 1200}
    model.answer = lambda _: Reply(text="ok", usage=usage)
    assistant = await one.client.beta.assistants.create(model="scripted", instructions="x")
    body = {
        "assistant_id": assistant.id,
        "thread": {"messages": [{"role": "user", "content": "x"}]},
    }
    first = await one.send("POST", "/threads/runs", body | {"stream": False})
    assert first.headers["x-ratelimit-remaining-tokens"] == "1000"
    thread_id = first.json["thread_id"]
    done = await one.client.beta.threads.runs.poll(
        first.json["id"], thread_id=thread_id, poll_interval_ms=20
    )
    assert done.status == "completed"
    assert done.usage is not None
    assert done.usage.total_tokens == 1200
    starts = {
        "/threads/runs": body,
        f"/threads/{thread_id}/runs": {"assistant_id": assistant.id},
    }
    for path, sent in starts.items():
        refused = await one.send("POST", path, sent)
        error = refused.json["error"]
        assert (refused.status, error["type"], error["code"]) == (
            429,
            "tokens",
            "rate_limit_exceeded",
        )
        assert error["message"].startswith(
            f"Rate limit reached for project {one.project_id} on tokens per min (TPM): Limit 1000,"
        )
        # 200 more than there were: they take 12 s to come back.
        assert 5 < int(refused.headers["retry-after"]) <= 13
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    # Everything else goes on.
    assert (await one.send("GET", f"/threads/{thread_id}")).status == 200
    await refill(database, one.project_id, 13, "tokens")
    assert (await one.send("POST", "/threads/runs", body)).status == 200


async def test_a_run_that_goes_on_is_not_stopped_by_the_tokens_it_spends(
    tenant: NewTenant, model: ScriptedModel
) -> None:
    one = await tenant(max_tokens_per_minute=10)
    usage = {"prompt_tokens": 50, "completion_tokens": 50, "total_tokens": 100}
    model.reply(
        Reply(tool_calls=[ToolCall("get_weather", id="call_a")], usage=usage),
        Reply(text="Sunny", usage=usage),
    )
    assistant = await one.client.beta.assistants.create(model="scripted", tools=[WEATHER])
    talk = await Conversation.begin(one.client, assistant.id)
    run = await talk.run()
    assert run.status == "requires_action"
    refused = await one.send("POST", "/threads/runs", {"assistant_id": assistant.id})
    assert refused.status == 429
    run = await talk.stopped(await talk.answer(run))
    assert run.status == "completed"
    assert run.usage is not None
    assert run.usage.total_tokens == 200


@pytest.mark.parametrize(
    ("duration_ns", "shown"),
    [
        (0, "0ms"),
        (1, "1ms"),
        (120 * 10**6, "120ms"),
        (8_640 * 10**6, "8.64s"),
        (20 * 10**9, "20s"),
        (360 * 10**9, "6m0s"),
        (61_500 * 10**6, "1m1.5s"),
    ],
)
def test_durations_are_written_as_the_original_does(duration_ns: int, shown: str) -> None:
    assert shown_duration(duration_ns) == shown


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/completions", {"prompt": "Once upon a time"}),
        ("/embeddings", {"input": "word " * 600}),
    ],
)
async def test_models_that_are_asked_directly_spend_the_minutes_tokens_too(
    tenant: NewTenant, model: ScriptedModel, path: str, asked: Any
) -> None:
    usage = {"prompt_tokens": 500, "completion_tokens": 100}
    model.answer = lambda _: Reply(text="x", usage=usage)
    one = await tenant(max_tokens_per_minute=200)
    body = {"model": "scripted", **asked}
    assert (await one.send("POST", path, body)).status == 200
    refused: list[Answer] = []

    async def is_refused() -> bool:  # what was used is counted behind the answer
        refused[:] = [await one.send("POST", path, body)]
        return refused[0].status == 429

    await eventually(is_refused)
    assert refused[0].json["error"]["code"] == "rate_limit_exceeded"
    asked_so_far = len(model.requests)
    assert (await one.send("POST", path, body)).status == 429
    assert len(model.requests) == asked_so_far
    other = await tenant()
    assert (await other.send("POST", path, body)).status == 200
