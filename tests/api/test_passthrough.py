"""What the same client asks models directly is passed on, and passed back as it came."""

import asyncio
from typing import Any

import aiohttp
import openai
import orjson
import pytest

from conftest import Serve
from runs.wire import eventually
from threadmill.app import Served
from threadmill.demo.scripted_model import Gate, Reply, ScriptedModel
from threadmill.settings import ModelRoute
from threadmill.store.database import Database

HI: Any = [{"role": "user", "content": "Hi"}]
Client = openai.AsyncOpenAI


def _raw(*pieces: bytes | Gate) -> Reply:
    return Reply(raw=pieces)


async def _usage(database: Database, model: str = "scripted") -> tuple[int, int]:
    async with database.connection() as connection:
        found = await connection.execute(
            "SELECT coalesce(sum(prompt_tokens), 0)::bigint,"
            " coalesce(sum(completion_tokens), 0)::bigint FROM usage_days WHERE model = %s",
            [model],
        )
        row = await found.fetchone()
    assert row is not None
    return row[0], row[1]


async def test_a_completion_comes_back_as_the_endpoint_wrote_it(
    client: Client, model: ScriptedModel, database: Database
) -> None:
    model.reply(Reply(text="Hello.", usage={"prompt_tokens": 7, "completion_tokens": 3}))
    answer = await client.chat.completions.create(
        model="scripted", messages=HI, temperature=0.5, extra_body={"top_k": 3}
    )
    assert answer.choices[0].message.content == "Hello."
    sent = model.requests[0].body
    assert sent == {"model": "scripted", "messages": HI, "temperature": 0.5, "top_k": 3}
    await _counted(database, (7, 3))


async def test_a_stream_comes_back_byte_for_byte(
    server: Served, model: ScriptedModel, database: Database
) -> None:
    """With its comments, its blanks and its unknown fields, and as soon as it comes."""
    gate = Gate()
    first = b': hello\n\ndata:{"id":"1","odd":[1,  2],"choices":[{"delta":{"content":"A"}}]}\n\n'
    second = b'data: {"choices":[{"delta":{"content":"\xc3\xa9"},"finish_reason":"stop"}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    model.reply(_raw(first[:20], first[20:], gate, second + usage, b"data: [DONE]\n\n"))
    body = {"model": "scripted", "messages": HI, "stream": True}
    async with aiohttp.ClientSession() as http, _post(http, server, body) as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readexactly(len(first)) == first
        gate.set()
        rest = await response.read()
    assert rest == second + b"data: [DONE]\n\n"  # the usage was not asked for
    assert model.requests[0].body["stream_options"] == {"include_usage": True}
    await _counted(database, (5, 2))


async def test_who_asks_for_the_usage_of_a_stream_gets_it(
    client: Client, model: ScriptedModel, database: Database
) -> None:
    model.reply(Reply(text=["a", "b"], usage={"prompt_tokens": 5, "completion_tokens": 2}))
    stream = await client.chat.completions.create(
        model="scripted", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "ab"
    assert chunks[-1].usage is not None
    await _counted(database, (5, 2))


async def test_a_stream_without_usage_is_counted_by_its_events(
    client: Client, model: ScriptedModel, database: Database
) -> None:
    model.reply(Reply(text=["a", "b", "c"], usage=None))
    stream = await client.chat.completions.create(model="scripted", messages=HI, stream=True)
    assert len([chunk async for chunk in stream]) == 4

    async def is_counted() -> bool:
        return (await _usage(database))[1] > 0

    await eventually(is_counted)
    prompt, completion = await _usage(database)
    assert prompt > 0
    assert 3 <= completion <= 5


async def test_an_endpoint_that_knows_no_stream_options_is_asked_without(
    client: Client, model: ScriptedModel
) -> None:
    refusal = {"error": {"message": "unknown field: stream_options"}}
    model.reply(Reply(status=400, body=refusal), Reply(text=["a"]))
    stream = await client.chat.completions.create(model="scripted", messages=HI, stream=True)
    assert [chunk async for chunk in stream]
    assert "stream_options" not in model.requests[1].body


# --- completions of a prompt, which came before chats ---


async def test_a_prompt_is_completed(
    client: Client, model: ScriptedModel, database: Database
) -> None:
    model.reply(Reply(text=" there was.", usage={"prompt_tokens": 4, "completion_tokens": 3}))
    answer = await client.completions.create(
        model="scripted", prompt="Once upon a time", max_tokens=3, suffix="The end."
    )
    assert answer.object == "text_completion"
    assert answer.choices[0].text == " there was."
    [sent] = model.requests
    assert sent.path == "/v1/completions"
    assert sent.body == {
        "model": "scripted",
        "prompt": "Once upon a time",
        "max_tokens": 3,
        "suffix": "The end.",
    }
    await _counted(database, (4, 3))


async def test_a_prompt_is_completed_in_a_stream(
    client: Client, model: ScriptedModel, database: Database
) -> None:
    gate = Gate()
    usage = {"prompt_tokens": 4, "completion_tokens": 2}
    model.reply(Reply(text=[" there", gate, " was."], usage=usage))
    stream = await client.completions.create(model="scripted", prompt="Once", stream=True)
    chunks = aiter(stream)
    assert (await anext(chunks)).choices[0].text == " there"  # before the model has said the rest
    gate.set()
    rest = [chunk async for chunk in chunks]
    assert [chunk.choices[0].text for chunk in rest] == [" was.", ""]  # the usage is taken out
    assert rest[-1].choices[0].finish_reason == "stop"
    assert model.requests[0].body["stream_options"] == {"include_usage": True}
    await _counted(database, (4, 2))


async def test_a_completed_prompt_without_usage_is_counted_here(
    client: Client, model: ScriptedModel, database: Database
) -> None:
    model.reply(Reply(text=["a", "b"], usage=None))
    stream = await client.completions.create(model="scripted", prompt="word " * 50, stream=True)
    assert len([chunk async for chunk in stream]) == 3

    async def is_counted() -> bool:
        return (await _usage(database))[1] > 0

    await eventually(is_counted)
    prompt, completion = await _usage(database)
    assert 25 <= prompt <= 300
    assert 2 <= completion <= 4


async def test_a_refusal_to_complete_a_prompt_is_the_endpoints(
    client: Client, model: ScriptedModel
) -> None:
    error = {"message": "This is a chat model.", "type": "x", "param": "model", "code": None}
    model.reply(Reply(status=404, body={"error": error}))
    with pytest.raises(openai.NotFoundError) as refusal:
        await client.completions.create(model="scripted", prompt="Once")
    assert refusal.value.body == error


async def test_embeddings_are_those_of_the_endpoint(
    client: Client, model: ScriptedModel, database: Database
) -> None:
    answer = await client.embeddings.create(model="scripted", input=["one", "two"])
    assert [len(one.embedding) for one in answer.data] == [64, 64]
    await _counted(database, (2, 0))


async def test_an_endpoint_of_its_own_for_embeddings_is_asked_for_them(
    serve: Serve, model: ScriptedModel
) -> None:
    async with ScriptedModel() as embedder, serve(embedding_base_url=embedder.base_url) as server:
        async with _client(server) as client:
            await client.embeddings.create(model="some-embedder", input="one")
        assert [request.path for request in embedder.requests] == ["/v1/embeddings"]
        assert model.requests == []


async def test_an_errors_words_are_the_endpoints(client: Client, model: ScriptedModel) -> None:
    error = {"message": "No.", "type": "invalid_request_error", "param": "messages", "code": "x"}
    model.reply(Reply(status=400, body={"error": error}))
    with pytest.raises(openai.BadRequestError) as refusal:
        await client.chat.completions.create(model="scripted", messages=HI)
    assert refusal.value.body == error
    assert len(model.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
async def test_that_our_key_is_refused_is_not_the_clients_fault(
    client: Client, model: ScriptedModel, status: int
) -> None:
    model.reply(Reply(status=status))
    with pytest.raises(openai.InternalServerError) as refusal:
        await client.chat.completions.create(model="scripted", messages=HI)
    assert refusal.value.status_code == 502


async def test_an_answer_that_is_no_json_is_told_in_the_originals_shape(
    client: Client, model: ScriptedModel
) -> None:
    model.reply(Reply(status=404, body="nothing here"))
    with pytest.raises(openai.NotFoundError) as refusal:
        await client.chat.completions.create(model="scripted", messages=HI)
    body: Any = refusal.value.body
    assert body["message"] == "The endpoint answered 404: nothing here"
    assert set(body) == {"message", "type", "param", "code"}


async def test_what_fails_before_its_first_byte_is_tried_again(
    client: Client, model: ScriptedModel
) -> None:
    model.reply(
        Reply(status=500),
        Reply(drop_before_headers=True),
        Reply(status=429, headers={"retry-after": "0"}),
        Reply(text="Hello."),
    )
    answer = await client.chat.completions.create(model="scripted", messages=HI)
    assert answer.choices[0].message.content == "Hello."
    assert len(model.requests) == 4


async def test_a_rate_limit_that_stays_is_told_with_its_wait(
    client: Client, model: ScriptedModel
) -> None:
    model.reply(Reply(status=429, headers={"retry-after": "33"}))
    with pytest.raises(openai.RateLimitError) as refusal:
        await client.chat.completions.create(model="scripted", messages=HI)
    assert refusal.value.response.headers["retry-after-ms"] == "33000"


async def test_names_are_translated_and_fallbacks_asked(
    serve: Serve, model: ScriptedModel, database: Database
) -> None:
    routes = {
        "mine": ModelRoute(upstream_name="theirs", fallbacks=["other"]),
        "other": ModelRoute(upstream_name="scripted-2"),
    }
    model.answer = lambda body: (
        Reply(status=503) if body["model"] == "theirs" else Reply(text=["Hello."])
    )
    async with serve(models=routes, model_max_attempts=2) as server, _client(server) as client:
        answer = await client.chat.completions.create(model="mine", messages=HI)
    assert answer.usage is not None
    assert [request.body["model"] for request in model.requests] == [
        "theirs",
        "theirs",
        "scripted-2",
    ]
    told = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    await _counted(database, told, "other")


async def test_a_model_that_nobody_serves_does_not_exist(serve: Serve) -> None:
    async with serve(model_base_url=None) as server, _client(server) as client:
        with pytest.raises(openai.NotFoundError) as refusal:
            await client.chat.completions.create(model="nobody", messages=HI)
        assert refusal.value.code == "model_not_found"


@pytest.mark.parametrize("body", [b"{", b"[]", b"{}", b'{"model": 7}', b'{"model": ""}'])
async def test_a_body_without_a_model_is_refused(server: Served, body: bytes) -> None:
    async with aiohttp.ClientSession() as http, _post(http, server, raw=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_a_body_above_the_limit_is_refused(serve: Serve) -> None:
    async with (
        serve(request_body_max_bytes=1024) as server,
        aiohttp.ClientSession() as http,
        _post(http, server, raw=b"x" * 2000) as response,
    ):
        assert response.status == 413


async def test_without_a_key_nobody_asks_a_model(server: Served, model: ScriptedModel) -> None:
    async with aiohttp.ClientSession() as http:
        url = f"{server.address}/v1/chat/completions"
        async with http.post(url, data=b'{"model": "scripted"}') as response:
            assert response.status == 401
    assert model.requests == []


async def test_when_the_client_of_a_stream_goes_the_model_is_stopped(
    server: Served, model: ScriptedModel, database: Database
) -> None:
    model.reply(Reply(text=["Half", Gate()]))
    body = {"model": "scripted", "messages": HI, "stream": True}
    async with aiohttp.ClientSession() as http:
        async with _post(http, server, body) as response:
            assert b"Half" in await response.content.readany()
            response.close()
        async with asyncio.timeout(30):
            await model.disconnected()

    async def is_counted() -> bool:
        return (await _usage(database))[1] == 1

    await eventually(is_counted)


async def test_when_a_client_goes_before_its_answer_the_model_is_stopped(
    server: Served, model: ScriptedModel
) -> None:
    model.reply(Reply(text="Never.", gate=Gate()))
    body = {"model": "scripted", "messages": HI}
    async with aiohttp.ClientSession() as http:
        asking = asyncio.create_task(_read_all(http, server, body))
        await model.received(1)
        asking.cancel()
        async with asyncio.timeout(30):
            await model.disconnected()
        await asyncio.gather(asking, return_exceptions=True)


async def test_a_stream_that_breaks_off_does_not_look_whole(
    client: Client, model: ScriptedModel
) -> None:
    model.reply(Reply(text=["a", "b", "c"], drop_after_chunks=2))
    stream = await client.chat.completions.create(model="scripted", messages=HI, stream=True)
    with pytest.raises(openai.APIError, match="broke off"):
        async for _ in stream:
            pass


async def test_azures_clients_name_the_deployment_in_the_path(
    server: Served, model: ScriptedModel
) -> None:
    model.say("Hello.")
    async with openai.AsyncAzureOpenAI(
        api_key="any", azure_endpoint=server.address, api_version="2024-10-21", max_retries=0
    ) as azure:
        answer = await azure.chat.completions.create(model="scripted", messages=HI)
        assert answer.choices[0].message.content == "Hello."
        vectors = await azure.embeddings.create(model="scripted", input="one")
        assert vectors.data
    assert {request.body["model"] for request in model.requests} == {"scripted"}


async def test_a_completion_asked_for_again_under_its_key_is_the_same(
    server: Served, model: ScriptedModel
) -> None:
    model.answer = lambda _: ["Hello."]
    body = {"model": "scripted", "messages": HI}
    headers = {"Idempotency-Key": "k1"}
    async with aiohttp.ClientSession() as http:
        answers = [await _read_all(http, server, body, headers) for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(model.requests) == 1


async def _counted(database: Database, expected: tuple[int, int], model: str = "scripted") -> None:
    async def is_counted() -> bool:
        return await _usage(database, model) == expected

    await eventually(is_counted)


async def _read_all(
    http: aiohttp.ClientSession, server: Served, body: Any, headers: Any = None
) -> bytes:
    async with _post(http, server, body, headers=headers) as response:
        return await response.read()


def _post(
    http: aiohttp.ClientSession,
    server: Served,
    body: Any = None,
    *,
    raw: bytes | None = None,
    headers: Any = None,
) -> Any:
    return http.post(
        f"{server.address}/v1/chat/completions",
        data=raw if raw is not None else orjson.dumps(body),
        headers={"Authorization": "Bearer any"} | (headers or {}),
    )


def _client(server: Served) -> Client:
    return openai.AsyncOpenAI(api_key="any", base_url=f"{server.address}/v1", max_retries=0)
