import asyncio
import gc
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from llm.raw_server import RawServer
from threadmill.demo.scripted_model import Reply, ScriptedModel, ToolCall
from threadmill.errors import Unavailable
from threadmill.llm.client import ModelClient, ModelError, TurnRecord
from threadmill.llm.stream import Chunk
from threadmill.settings import ModelRoute, Settings

MakeSettings = Callable[..., Settings]
MESSAGES = [{"role": "user", "content": "Hi"}]


class Sleeps:
    """Stands in for asyncio.sleep between tries: notes how long, and does not."""

    def __init__(self) -> None:
        self.waited: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.waited.append(seconds)


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
async def client(settings: MakeSettings, sleeps: Sleeps) -> AsyncIterator[ModelClient]:
    async with ModelClient(settings(), sleep=sleeps) as client:
        yield client


@asynccontextmanager
async def opened(settings: Settings, sleeps: Sleeps) -> AsyncIterator[ModelClient]:
    async with ModelClient(settings, sleep=sleeps) as client:
        yield client


async def ask(
    client: ModelClient, name: str = "m", *, record: TurnRecord | None = None, **body: Any
) -> list[Chunk]:
    record = record or TurnRecord()
    reads = client.stream(name, {"messages": MESSAGES, **body}, record=record)
    return [chunk async for chunks in reads for chunk in chunks]


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


# --- what is sent, what comes ---


async def test_an_answer_arrives_with_usage_and_is_recorded(
    client: ModelClient, model: ScriptedModel
) -> None:
    model.say("Hello", " world")
    before, record = time.time(), TurnRecord()
    chunks = await ask(client, "gpt-x", record=record, temperature=0.5, max_tokens=9)
    assert text_of(chunks) == "Hello world"
    assert chunks[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None

    sent = model.requests[0]
    assert sent.path == "/v1/chat/completions"
    assert sent.body == {
        "model": "gpt-x",
        "messages": MESSAGES,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
    }
    assert "Authorization" not in sent.headers
    assert json.loads(record.request) == sent.body
    times = [record.sent_at, record.headers_at, record.first_chunk_at, record.ended_at]
    known = [at for at in times if at is not None]
    assert known == sorted(known)
    assert len(known) == 4
    assert before <= known[0]
    assert (record.model, record.base_url) == ("gpt-x", model.base_url)
    assert (record.finish_reason, record.usage) == ("stop", chunks[-1].usage)
    assert [(one.status, one.error) for one in record.tries] == [(200, None)]


async def test_chunks_of_one_read_come_together(settings: MakeSettings, raw: RawServer) -> None:
    event = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    raw.answer(b"HTTP/1.1 200 OK\r\n\r\n", event * 3 + b"data: [DONE]\n\n")
    async with ModelClient(settings(model_base_url=raw.base_url)) as client:
        reads = [one async for one in client.stream("m", {}, record=TurnRecord())]
    assert [len(chunks) for chunks in reads] == [4]


async def test_parallel_tool_calls_arrive_in_fragments(
    client: ModelClient, model: ScriptedModel
) -> None:
    calls = [ToolCall("f", ['{"a"', ":1}"]), ToolCall("g", {"b": 2}, id="call_g")]
    model.reply(Reply(text=["Let me see."], tool_calls=calls))
    chunks = await ask(client)
    arguments = {0: "", 1: ""}
    for delta in (delta for chunk in chunks for delta in chunk.tool_calls):
        arguments[delta.index] += delta.arguments
    assert arguments == {0: '{"a":1}', 1: '{"b": 2}'}
    assert text_of(chunks) == "Let me see."
    assert chunks[-1].finish_reason == "tool_calls"


async def test_an_answer_without_usage_has_none(client: ModelClient, model: ScriptedModel) -> None:
    model.reply(Reply(text=["a"], usage=None, finish_reason="length"))
    assert (await ask(client))[-1] == Chunk(finish_reason="length")


async def test_a_plain_body_to_a_streamed_request_is_read(
    client: ModelClient, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["Hello"], plain=True))
    chunks = await ask(client)
    assert text_of(chunks) == "Hello"
    assert chunks[-1].usage is not None


async def test_a_server_that_refuses_stream_options_is_asked_without(
    client: ModelClient, model: ScriptedModel
) -> None:
    refusal = {"error": {"message": "Unknown field: stream_options"}}
    model.reply(Reply(status=400, body=refusal))
    model.say("a")
    model.say("b")
    record = TurnRecord()
    assert text_of(await ask(client, record=record)) == "a"
    assert text_of(await ask(client)) == "b"
    assert ["stream_options" in one.body for one in model.requests] == [True, False, False]
    assert [one.status for one in record.tries] == [400, 200]


async def test_large_requests_and_odd_characters_are_sent(
    client: ModelClient, model: ScriptedModel
) -> None:
    model.say("a")
    model.say("b")
    large = "x" * 3_000_000
    await ask(client, messages=[{"role": "user", "content": large}])
    await ask(client, messages=[{"role": "user", "content": "\ud83d"}], big=2**70)
    assert model.requests[0].body["messages"][0]["content"] == large
    assert model.requests[1].body["big"] == 2**70


async def test_connections_are_used_again(settings: MakeSettings, raw: RawServer) -> None:
    body = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
    late = asyncio.Event()
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (
        len(body),
        body,
    )
    raw.answer(answer, late, b"0\r\n\r\n", asyncio.Event())
    async with ModelClient(settings(model_base_url=raw.base_url)) as client:
        assert text_of(await ask(client)) == "a"  # although the body has not ended
        late.set()
        await asyncio.gather(*client._closing)
        connector = client._session.connector  # type: ignore[union-attr]
        assert [len(one) for one in connector._conns.values()] == [1]  # type: ignore[union-attr]


# --- tries ---


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
async def test_what_may_pass_is_tried_again(
    client: ModelClient, model: ScriptedModel, sleeps: Sleeps, status: int
) -> None:
    model.reply(Reply(status=status), Reply(status=status), Reply(text=["a"]))
    record = TurnRecord()
    assert text_of(await ask(client, record=record)) == "a"
    assert [one.status for one in record.tries] == [status, status, 200]
    assert [one.waited_s for one in record.tries] == [*sleeps.waited, 0]
    assert 0.25 <= sleeps.waited[0] <= 0.75
    assert 0.5 <= sleeps.waited[1] <= 1.5


@pytest.mark.parametrize(
    "broken",
    [
        Reply(drop_before_headers=True),
        Reply(text=["a"], drop_after_chunks=0),
        Reply(text=["a"], drop_after_chunks=0, drop_in_line=True),
        Reply(raw=[b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n']),
        Reply(raw=[b'data: {"error": {"message": "overloaded"}}\n\n']),
        Reply(raw=[]),
    ],
)
async def test_what_broke_before_the_first_word_is_tried_again(
    client: ModelClient, model: ScriptedModel, broken: Reply
) -> None:
    model.reply(broken, Reply(text=["a"]))
    record = TurnRecord()
    assert text_of(await ask(client, record=record)) == "a"
    assert record.tries[0].error
    assert len(record.tries) == 2


@pytest.mark.parametrize(
    "broken",
    [
        Reply(text=["a", "b"], drop_after_chunks=1),
        Reply(text=["a", "b"], drop_after_chunks=1, drop_in_line=True),
    ],
)
async def test_what_broke_after_the_first_word_is_an_error(
    client: ModelClient, model: ScriptedModel, broken: Reply
) -> None:
    model.reply(broken)
    record, seen = TurnRecord(), []

    async def read() -> None:
        async for chunks in client.stream("m", {}, record=record):
            seen.extend(chunks)

    with pytest.raises(ModelError, match="dropped in the middle") as raised:
        await read()
    assert raised.value.code == "server_error"
    assert text_of(seen) == "a"
    assert len(model.requests) == 1
    assert record.tries[0].error
    assert record.ended_at


async def test_an_answer_that_broke_off_after_its_finish_reason_is_whole(
    client: ModelClient, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["a"], drop_after_chunks=2))
    assert (await ask(client))[-1] == Chunk(finish_reason="stop")


async def test_a_connection_left_open_after_the_finish_reason_is_not_waited_for(
    client: ModelClient, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["a"], silent_after_chunks=2))
    async with asyncio.timeout(30):
        assert (await ask(client))[-1] == Chunk(finish_reason="stop")
        await model.disconnected()


async def test_connecting_has_its_own_timeout(
    settings: MakeSettings, raw: RawServer, sleeps: Sleeps
) -> None:
    # The server waits for a request while we wait for its part of the TLS handshake.
    url = raw.base_url.replace("http:", "https:")
    deaf = settings(model_base_url=url, model_connect_timeout_s=0.1, model_max_attempts=1)
    async with opened(deaf, sleeps) as client:
        with pytest.raises(ModelError, match=rf"No connection to {url} within 0.1 seconds"):
            await ask(client)


async def test_a_compressed_answer_is_read(settings: MakeSettings, raw: RawServer) -> None:
    body = gzip.compress(b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n')
    raw.answer(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + body)
    async with ModelClient(settings(model_base_url=raw.base_url)) as client:
        assert text_of(await ask(client)) == "a"


async def test_tries_have_an_end(client: ModelClient, model: ScriptedModel) -> None:
    record = TurnRecord()
    with pytest.raises(ModelError, match="script is empty") as raised:
        await ask(client, record=record)
    assert raised.value.code == "server_error"
    assert len(model.requests) == len(record.tries) == 4


async def test_nobody_listening_is_tried_again_and_named(
    settings: MakeSettings, sleeps: Sleeps
) -> None:
    nowhere = settings(model_base_url="http://127.0.0.1:1/v1", model_max_attempts=2)
    async with opened(nowhere, sleeps) as client:
        with pytest.raises(ModelError, match=r"No connection to http://127.0.0.1:1/v1") as raised:
            await ask(client)
    assert raised.value.code == "server_error"
    assert len(sleeps.waited) == 1


@pytest.mark.parametrize(
    ("status", "code", "requests"),
    [
        (400, "invalid_prompt", 1),
        (413, "invalid_prompt", 1),
        (422, "invalid_prompt", 1),
        (401, "server_error", 1),
        (403, "server_error", 1),
        (404, "server_error", 1),
        (418, "server_error", 1),
        (429, "rate_limit_exceeded", 4),
        (503, "server_error", 4),
    ],
)
async def test_the_status_decides_code_and_tries(
    client: ModelClient, model: ScriptedModel, status: int, code: str, requests: int
) -> None:
    body = {"error": {"message": "in its own words"}}
    model.answer = lambda _: Reply(status=status, body=body)
    with pytest.raises(ModelError) as raised:
        await ask(client, "gpt-x")
    assert raised.value.code == code
    expected = f"Model 'gpt-x': The endpoint answered {status}: in its own words"
    assert raised.value.message == expected
    assert len(model.requests) == requests


async def test_an_empty_quota_is_not_asked_again(client: ModelClient, model: ScriptedModel) -> None:
    model.reply(Reply(status=429, body={"error": {"message": "x", "code": "insufficient_quota"}}))
    with pytest.raises(ModelError) as raised:
        await ask(client)
    assert raised.value.code == "rate_limit_exceeded"
    assert len(model.requests) == 1


def in_two_seconds() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


@pytest.mark.parametrize(
    ("headers", "waited_s"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "20"}, 20),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
    ],
)
async def test_retry_after_is_honoured(
    client: ModelClient,
    model: ScriptedModel,
    sleeps: Sleeps,
    headers: dict[str, str],
    waited_s: float,
) -> None:
    model.reply(Reply(status=429, headers=headers), Reply(text=["a"]))
    await ask(client)
    assert sleeps.waited == [waited_s]


async def test_retry_after_may_be_a_date(
    client: ModelClient, model: ScriptedModel, sleeps: Sleeps
) -> None:
    model.reply(Reply(status=503, headers={"retry-after": in_two_seconds()}), Reply(text=["a"]))
    await ask(client)
    assert 0 < sleeps.waited[0] <= 2


@pytest.mark.parametrize("odd", ["soon", "nan", "", "Thu, 99 Foo"])
async def test_an_odd_retry_after_is_ignored(
    client: ModelClient, model: ScriptedModel, sleeps: Sleeps, odd: str
) -> None:
    model.reply(Reply(status=503, headers={"retry-after": odd}), Reply(text=["a"]))
    await ask(client)
    assert 0.25 <= sleeps.waited[0] <= 0.75


@pytest.mark.parametrize("far", ["21", "inf"])
async def test_a_retry_after_beyond_the_bound_ends_the_tries(
    client: ModelClient, model: ScriptedModel, sleeps: Sleeps, far: str
) -> None:
    model.reply(Reply(status=429, headers={"retry-after": far}))
    with pytest.raises(ModelError):
        await ask(client)
    assert sleeps.waited == []


# --- fallbacks ---


def with_fallbacks(settings: MakeSettings, **fields: Any) -> Settings:
    models = {"a": ModelRoute(fallbacks=["b", "c"], upstream_name="big-a")}
    return settings(models=models, **fields)


def by_model(**replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    return lambda body: replies[body["model"].replace("-", "_")]


async def test_fallbacks_are_asked_in_turn(
    settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps
) -> None:
    model.answer = by_model(big_a=Reply(status=500), b=Reply(status=401), c=Reply(text=["from c"]))
    record = TurnRecord()
    async with opened(with_fallbacks(settings, model_max_attempts=2), sleeps) as client:
        assert text_of(await ask(client, "a", record=record)) == "from c"
    assert [(one.model, one.upstream_name, one.status) for one in record.tries] == [
        ("a", "big-a", 500),
        ("a", "big-a", 500),
        ("b", "b", 401),
        ("c", "c", 200),
    ]
    assert record.model == "c"
    assert json.loads(record.request)["model"] == "c"
    assert len(sleeps.waited) == 1


async def test_an_invalid_prompt_is_not_taken_to_a_fallback(
    settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps
) -> None:
    model.answer = by_model(big_a=Reply(status=400))
    async with opened(with_fallbacks(settings), sleeps) as client:
        with pytest.raises(ModelError) as raised:
            await ask(client, "a")
    assert raised.value.code == "invalid_prompt"


async def test_when_all_fail_the_last_one_is_heard(
    settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps
) -> None:
    model.answer = by_model(big_a=Reply(status=500), b=Reply(status=500), c=Reply(status=429))
    async with opened(with_fallbacks(settings), sleeps) as client:
        with pytest.raises(ModelError, match="Model 'c'") as raised:
            await ask(client, "a")
    assert raised.value.code == "rate_limit_exceeded"
    assert len(model.requests) == 12


async def test_a_model_nobody_serves_is_an_error(settings: MakeSettings, sleeps: Sleeps) -> None:
    async with opened(settings(model_base_url=None), sleeps) as client:
        assert client.route("m") is None
        with pytest.raises(ModelError, match="No endpoint serves the model 'm'"):
            await ask(client)


# --- silence and cancellation ---


async def test_silence_before_the_first_word_is_a_failed_try(
    settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps
) -> None:
    model.reply(Reply(gate=asyncio.Event()), Reply(text=["a"], silent_after_chunks=0))
    model.say("a")
    record = TurnRecord()
    async with opened(settings(model_idle_timeout_s=0.5), sleeps) as client:
        assert text_of(await ask(client, record=record)) == "a"
        await model.disconnected(2)
    silent = "The endpoint sent nothing for 0.5 seconds."
    assert [one.error for one in record.tries] == [silent, silent, None]
    assert [one.status for one in record.tries] == [None, 200, 200]


async def test_silence_in_the_middle_is_an_error(
    settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps
) -> None:
    model.reply(Reply(text=["a", "b"], silent_after_chunks=1))
    async with opened(settings(model_idle_timeout_s=0.5), sleeps) as client:
        with pytest.raises(ModelError, match=r"sent nothing for 0.5 seconds") as raised:
            await ask(client)
        await model.disconnected()
    assert raised.value.code == "server_error"
    assert len(model.requests) == 1


async def test_comments_are_signs_of_life(
    settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps
) -> None:
    gates = [asyncio.Event() for _ in range(4)]
    waiting = [piece for gate in gates for piece in (gate, b": wait\n\n")]
    model.reply(Reply(raw=[*waiting, b"data: [DONE]\n\n"]))
    for number, gate in enumerate(gates):
        asyncio.get_running_loop().call_later(0.4 * (number + 1), gate.set)
    async with opened(settings(model_idle_timeout_s=1.5), sleeps) as client:
        await ask(client)
    assert len(model.requests) == 1


@pytest.mark.parametrize(
    "reply",
    [
        Reply(gate=asyncio.Event()),
        Reply(text=["a"], silent_after_chunks=0),
        Reply(text=["a", "b"], silent_after_chunks=1),
    ],
    ids=["before the headers", "before the first word", "in the middle"],
)
async def test_cancelling_cuts_the_connection(
    client: ModelClient, model: ScriptedModel, reply: Reply
) -> None:
    model.reply(reply)
    task = asyncio.create_task(ask(client))
    await model.received(1)
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(30):
        await model.disconnected()
    gc.collect()  # what was leaked would warn here, and warnings are errors


async def test_leaving_early_cuts_the_connection(client: ModelClient, model: ScriptedModel) -> None:
    model.reply(Reply(text=["a", asyncio.Event(), "b"]))
    record = TurnRecord()
    async with aclosing(client.stream("m", {}, record=record)) as reads:
        async for _ in reads:
            break
    async with asyncio.timeout(30):
        await model.disconnected()
    assert record.ended_at


async def test_many_streams_at_once(client: ModelClient, model: ScriptedModel) -> None:
    gate = asyncio.Event()
    model.answer = lambda body: ["a", gate, body["messages"][0]["content"]]
    asks = [
        asyncio.create_task(ask(client, messages=[{"role": "user", "content": str(number)}]))
        for number in range(300)
    ]
    await model.received(300)
    gate.set()
    assert [text_of(chunks) for chunks in await asyncio.gather(*asks)] == [
        f"a{number}" for number in range(300)
    ]


# --- what is told ---


async def test_keys_are_not_repeated_and_messages_are_bounded(
    settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps
) -> None:
    body = {"error": {"message": "bad key sk-secret-123 \0" + "x" * 10_000}}
    model.reply(Reply(status=401, body=body))
    record = TurnRecord()
    async with opened(settings(model_api_key=" sk-secret-123\n"), sleeps) as client:
        with pytest.raises(ModelError) as raised:
            await ask(client, record=record)
    assert model.requests[0].headers["Authorization"] == "Bearer sk-secret-123"
    for message in (raised.value.message, record.tries[0].error or ""):
        assert "bad key [key] \ufffdxxx" in message
        assert len(message) == 2000


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": "b"}, "b"),
        ({"message": "c"}, "c"),
        ({"detail": "d"}, "d"),
        ({"detail": [{"loc": ["x"], "msg": "e"}]}, '[{"loc":["x"],"msg":"e"}]'),
        ([{"error": {"message": "f", "code": 400}}], "f"),
        (b"<html>g</html>", "<html>g</html>"),
        (b"", "Bad Gateway"),
        ({}, "{}"),
    ],
)
async def test_errors_are_told_in_the_upstreams_words(
    client: ModelClient, model: ScriptedModel, body: Any, words: str
) -> None:
    model.answer = lambda _: Reply(status=502, body=body)
    with pytest.raises(ModelError) as raised:
        await ask(client)
    assert raised.value.message == f"Model 'm': The endpoint answered 502: {words}"


async def test_a_redirect_is_an_error_that_names_the_place(
    client: ModelClient, model: ScriptedModel
) -> None:
    model.reply(Reply(status=307, headers={"Location": "https://elsewhere.example/v1"}))
    with pytest.raises(ModelError, match=r"307 and points to https://elsewhere.example/v1"):
        await ask(client)
    assert len(model.requests) == 1


async def test_an_endless_error_body_is_cut(settings: MakeSettings, raw: RawServer) -> None:
    raw.answer(b"HTTP/1.1 400 Bad\r\n\r\n", b"x" * 10_000_000, asyncio.Event())
    async with ModelClient(settings(model_base_url=raw.base_url)) as client:
        with pytest.raises(ModelError, match="answered 400: xxx"):
            await ask(client)


async def test_what_is_not_http_is_an_error(
    settings: MakeSettings, raw: RawServer, sleeps: Sleeps
) -> None:
    raw.answer(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    async with opened(settings(model_base_url=raw.base_url), sleeps) as client:
        with pytest.raises(ModelError, match="No connection to"):
            await ask(client)
    assert raw.connections == 4


# --- models and embeddings ---


async def test_named_models_are_listed_before_those_of_the_endpoint(
    settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps
) -> None:
    model.models = ["x", "named"]
    models = {"named": ModelRoute(), "gpt-*": ModelRoute()}
    async with opened(settings(models=models), sleeps) as client:
        listed = await client.list_models()
        assert [one["id"] for one in listed] == ["named", "x"]
        assert listed[1] == {"id": "x", "object": "model", "created": 0, "owned_by": "scripted"}
        await model.stop()
        assert await client.list_models() == listed  # remembered


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"data": [{"id": "a"}, {"id": 3}, None, {"id": "a"}]}, ["a"]),
        ({"models": [{"name": "llama3"}]}, ["llama3"]),
        (["a", "b"], ["a", "b"]),
        ({"data": None}, []),
        (7, []),
    ],
)
async def test_odd_model_lists_are_read(
    settings: MakeSettings, raw: RawServer, sleeps: Sleeps, body: Any, names: list[str]
) -> None:
    raw.answer(b"HTTP/1.1 200 OK\r\n\r\n" + json.dumps(body).encode())
    async with opened(settings(model_base_url=raw.base_url), sleeps) as client:
        assert [one["id"] for one in await client.list_models()] == names


async def test_an_endpoint_that_lists_nothing_leaves_the_named_models(
    settings: MakeSettings, sleeps: Sleeps
) -> None:
    nowhere = settings(model_base_url="http://127.0.0.1:1/v1", models={"named": ModelRoute()})
    async with opened(nowhere, sleeps) as client:
        assert [one["id"] for one in await client.list_models()] == ["named"]


async def test_no_models_at_all_is_unavailable(settings: MakeSettings, sleeps: Sleeps) -> None:
    async with opened(settings(model_base_url="http://127.0.0.1:1/v1"), sleeps) as client:
        with pytest.raises(Unavailable, match=r"models of http://127.0.0.1:1/v1 could not be"):
            await client.list_models()
    async with opened(settings(model_base_url=None), sleeps) as client:
        with pytest.raises(Unavailable, match="THREADMILL_MODEL_BASE_URL"):
            await client.list_models()


async def test_embeddings(settings: MakeSettings, model: ScriptedModel, sleeps: Sleeps) -> None:
    embedding = settings(embedding_model="e", embedding_dimensions=8)
    async with opened(embedding, sleeps) as client:
        first, second = await client.embed(["one text", "another"])
    assert len(first) == len(second) == 8
    assert model.requests[0].body == {
        "model": "e",
        "input": ["one text", "another"],
        "dimensions": 8,
    }


async def test_embeddings_that_are_none_are_an_error(
    settings: MakeSettings, raw: RawServer, sleeps: Sleeps
) -> None:
    broken = settings(model_base_url=raw.base_url, embedding_model="e")
    async with opened(broken, sleeps) as client:
        raw.answer(b'HTTP/1.1 200 OK\r\n\r\n{"data": []}')
        with pytest.raises(ModelError, match="1 texts were sent, 0 embeddings"):
            await client.embed(["a"])
        raw._answers[:] = [[b"HTTP/1.1 200 OK\r\n\r\n<html>"]]
        with pytest.raises(ModelError, match="is not JSON"):
            await client.embed(["a"])
        raw._answers[:] = [[b"HTTP/1.1 401 No\r\n\r\nno key"]]
        with pytest.raises(ModelError, match="answered 401: no key"):
            await client.embed(["a"])
    async with opened(settings(), sleeps) as client:
        with pytest.raises(ModelError, match="configured"):
            await client.embed(["a"])
